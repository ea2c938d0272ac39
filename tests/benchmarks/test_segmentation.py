"""Real segmentation: cutting tiles, and that a missing folder is named."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.segmentation import clouds, write_tiles
from explora_geo.datasets import MaskFolderDataset


def test_tiles_are_cut_with_their_masks_and_empty_ones_left_out(tmp_path: Path) -> None:
    image = np.arange(3 * 128 * 192, dtype=np.uint16).reshape(3, 128, 192) % 5000 + 1
    mask = (image[0] % 2).astype(np.uint8)
    image[:, :64, :64] = 0
    assert write_tiles(tmp_path, image, mask, 'a') == 5
    dataset = MaskFolderDataset(tmp_path, strict=True)
    assert len(dataset) == 5 and dataset.bands == ('red', 'green', 'blue')
    sample = dataset[dataset.files.index(tmp_path / 'images' / 'a_0064_0128.tif')]
    assert np.array_equal(sample['image'].numpy(), image[:, 64:, 128:])
    assert np.array_equal(sample['mask'].numpy(), mask[64:, 128:])


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='give the folder of 38-Cloud'):
        clouds(tmp_path, tmp_path / 'out')
