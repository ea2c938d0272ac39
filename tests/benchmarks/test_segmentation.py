"""Real segmentation: cutting tiles, and that a missing folder is named."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from benchmarks.segmentation import clouds, index_classes, land_cover, write_raster, write_tiles
from explora_geo.datasets import MaskFolderDataset

TILES = Path(__file__).parents[1] / 'data'


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


def test_classes_of_the_near_infrared() -> None:
    # Red, green, blue, near infrared of open water, bare soil and a green crop.
    pixels = np.array([[40, 120, 50], [60, 110, 90], [50, 90, 40], [10, 130, 180]], dtype=np.uint8)
    assert index_classes(pixels[:, None]).tolist() == [[0, 1, 2]]
    scene = index_classes(rasterio.open(next((TILES / 'naip').glob('*2017*.tif'))).read())
    assert scene.shape == (256, 256) and set(np.unique(scene)) == {0, 1, 2}


def test_a_scene_of_other_bands_is_refused(tmp_path: Path) -> None:
    scene = write_raster(tmp_path / 'rgb.tif', np.ones((3, 64, 64), dtype=np.uint8))
    with pytest.raises(ValueError, match='has 3 bands: give a NAIP scene'):
        land_cover(scene, tmp_path / 'out')
