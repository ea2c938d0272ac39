"""Folders of images and masks."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from matplotlib import pyplot as plt
from PIL import Image

from explora_geo.datasets import MaskFolderDataset

pytestmark = pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')


def write_mask(path: Path, values: np.ndarray) -> None:
    height, width = values.shape
    profile = {'count': 1, 'dtype': values.dtype, 'height': height, 'width': width}
    with rasterio.open(path, 'w', driver='GTiff', **profile) as target:
        target.write(values[None])


def test_masks_come_with_their_images(masks: Path) -> None:
    dataset = MaskFolderDataset(masks)
    sample = dataset[3]
    assert sample['image'].shape == (3, 64, 64) and sample['mask'].shape == (64, 64)
    with rasterio.open(masks / 'masks' / '03.tif') as source:
        assert np.array_equal(sample['mask'].numpy(), source.read(1))
    assert sample['mask'].dtype == torch.int64 and len(dataset) == 12
    numbers = MaskFolderDataset(masks.parent / 'numbers', numbers=True)[3]['mask']
    assert numbers.dtype == torch.float32 and torch.equal((numbers > 0.1).long(), sample['mask'])


def test_images_and_masks_are_resized_alike(masks: Path) -> None:
    values = np.zeros((64, 64), dtype=np.uint8)
    values[:, 32:] = 7
    write_mask(masks / 'masks' / '00.tif', values)
    mask = MaskFolderDataset(masks, size=32)[0]['mask']
    assert mask.shape == (32, 32) and mask.unique().tolist() == [0, 7]
    assert (mask[:, :16] == 0).all() and (mask[:, 16:] == 7).all()


def test_values_become_classes_and_black_is_ignored(masks: Path) -> None:
    values = np.where(np.arange(64) < 20, 0, 255).astype(np.uint8) * np.ones((64, 1), dtype=np.uint8)
    Image.fromarray(values).save(masks / 'masks' / '01.png')
    (masks / 'masks' / '01.tif').unlink()
    with rasterio.open(masks / 'images' / '01.tif', 'r+') as target:
        pixels = np.maximum(target.read(), 1)
        pixels[:, :5] = 0
        target.write(pixels)
    (masks / 'masks' / '01.png').rename(masks / 'masks' / '01.PNG')
    dataset = MaskFolderDataset(masks, mask_values={0: 0, 255: 1}, ignore_black=9, strict=True)
    mask = dataset[1]['mask']
    odd = MaskFolderDataset(masks, mask_values={0: -1, 255: 300}, strict=True)[1]['mask']
    assert odd.unique().tolist() == [-1, 300]  # beyond the file's 8 bits
    assert (mask[:5] == 9).all() and (mask[5:, :20] == 0).all() and (mask[5:, 20:] == 1).all()
    assert dataset.plot(dataset[1]) is not None
    plt.close('all')


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (
            lambda path: write_mask(path, np.zeros((32, 64), np.uint8)),
            'has 32x64 pixels, but the image has 64x64',
        ),
        (lambda path: path.unlink(), r'mask .*02\.\* not found'),
        (lambda path: path.write_bytes(b'torn'), 'cannot be read'),
        (lambda path: shutil.copy(path.parents[1] / 'images' / '00.tif', path), '3 bands, expected one'),
        (
            lambda path: write_mask(path, np.full((64, 64), 4, np.uint8)),
            r'values \[4\], which are not in mask_values',
        ),
    ],
)
def test_a_mask_that_does_not_fit_is_named(masks: Path, change: object, sentence: str) -> None:
    change(masks / 'masks' / '02.tif')  # type: ignore[operator]
    values = {0: 0, 1: 1}
    with pytest.raises(ValueError, match=sentence):
        MaskFolderDataset(masks, mask_values=values, strict=True)[2]
    skipped = MaskFolderDataset(masks, mask_values=values)[2]['skipped']
    assert '02.tif' in skipped


def test_both_folders_are_needed(masks: Path) -> None:
    shutil.rmtree(masks / 'masks')
    with pytest.raises(FileNotFoundError, match=r'the folder .*masks does not exist'):
        MaskFolderDataset(masks)


@pytest.mark.parametrize('size', [None, 32])
def test_what_an_image_states_as_nodata_is_ignored_as_black_is(masks: Path, size: int | None) -> None:
    with rasterio.open(masks / 'images' / '02.tif', 'r+') as target:
        pixels = np.maximum(target.read(), 1)
        pixels[:, :8] = 255
        pixels[0, 40] = 255
        target.write(pixels)
        target.nodata = 255
    mask = MaskFolderDataset(masks, ignore_black=9, strict=True, size=size)[2]['mask']
    rows = 8 if size is None else 4
    assert (mask[:rows] == 9).all() and not (mask[rows:] == 9).any()


def test_a_number_that_means_nodata_is_no_measurement(masks: Path) -> None:
    folder = masks.parent / 'numbers'
    values = np.full((64, 64), 5, dtype=np.float32)
    values[:, :10] = -9999
    path = next(p for p in sorted((folder / 'masks').iterdir()) if p.stem == '03')
    write_mask(path, values)
    with rasterio.open(path, 'r+') as target:
        target.nodata = -9999
    mask = MaskFolderDataset(folder, numbers=True, strict=True)[3]['mask']
    assert mask[:, :10].isnan().all() and (mask[:, 10:] == 5).all()
