"""Tests of the folder dataset, on real tiles and on damaged ones."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from explora_geo.datasets import FolderDataset

DATA = Path(__file__).parents[1] / 'data'
RGB = DATA / 'eurosat_rgb' / 'test'
MS = DATA / 'eurosat_ms'
MS_BANDS = [f'B{i:02d}' for i in range(1, 13)] + ['B8A']


def write_tif(path: Path, pixels: np.ndarray[Any, Any], **options: Any) -> None:
    """Write bands, shape (C, H, W), as a TIFF without coordinates."""
    profile = {
        'driver': 'GTiff',
        'dtype': pixels.dtype.name,
        'count': len(pixels),
        'height': pixels.shape[1],
        'width': pixels.shape[2],
        **options,
    }
    with rasterio.open(path, 'w', **profile) as file:
        file.write(pixels)


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Five real JPEG tiles in a flat folder."""
    for path in sorted((RGB / 'River').glob('*.jpg'))[:5]:
        shutil.copy(path, tmp_path)
    return tmp_path


def test_class_folders_give_labels_in_sorted_order() -> None:
    dataset = FolderDataset(RGB)
    assert len(dataset) == 1000
    assert dataset.classes == tuple(sorted(p.name for p in RGB.iterdir() if p.is_dir()))
    assert dataset.files == sorted(dataset.files)
    sample = dataset[-1]
    assert sample['label'].item() == dataset.classes.index('SeaLake') == 9
    assert sample['label'].dtype == torch.long
    assert sample['image'].dtype == torch.float32
    with Image.open(dataset.files[-1]) as image:
        assert np.array_equal(sample['image'].permute(1, 2, 0).numpy(), np.array(image))


def test_only_class_folders_give_labels(tiles: Path) -> None:
    assert 'label' not in FolderDataset(RGB, labeled=False)[0]
    for count in (5, 105):  # a flat folder, and loose images beside a folder
        dataset = FolderDataset(tiles)
        assert (len(dataset), dataset.classes, dataset.labels) == (count, (), None)
        assert set(dataset[0]) == {'image'}
        with pytest.raises(ValueError, match=r'labeled=True .* 5 are directly in'):
            FolderDataset(tiles, labeled=True)
        shutil.copytree(RGB / 'Forest', tiles / 'Forest', dirs_exist_ok=True)


def test_bands_are_found_by_name_on_a_real_tile_whose_last_band_is_b8a() -> None:
    dataset = FolderDataset(MS, bands=('B8A', 'B04', 'B09'), file_bands=MS_BANDS)
    with rasterio.open(dataset.files[7]) as file:
        expected = file.read([13, 4, 9]).astype(np.float32)
        nearby = file.read(9)
    image = dataset[7]['image'].numpy()
    assert np.array_equal(image, expected)
    assert not np.array_equal(image[0], nearby)
    assert dataset.bands == ('B8A', 'B04', 'B09') and image.max() > 255


def test_band_names_ignore_case_and_know_r_g_b(tiles: Path) -> None:
    dataset = FolderDataset(tiles, bands=['B', 'Red'])
    full = FolderDataset(tiles)
    assert dataset.bands == ('blue', 'red')
    assert torch.equal(dataset[1]['image'], full[1]['image'][[2, 0]])
    assert FolderDataset(tiles, file_bands=['R', 'G', 'B']).bands == ('red', 'green', 'blue')


def test_band_descriptions_in_the_file_are_used(tmp_path: Path) -> None:
    path = tmp_path / 'a.tif'
    write_tif(path, np.arange(2 * 64, dtype=np.float32).reshape(2, 8, 8))
    with rasterio.open(path, 'r+') as file:
        file.descriptions = ('VV', 'VH')
    dataset = FolderDataset(tmp_path, bands=['vh'])
    assert dataset.bands == ('VH',)
    assert dataset[0]['image'].min() == 64


def test_four_bands_without_names_ask_for_names(tmp_path: Path) -> None:
    write_tif(tmp_path / 'a.tif', np.ones((4, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match=r'has 4 unnamed uint8 bands, .*; set file_bands'):
        FolderDataset(tmp_path)
    assert FolderDataset(tmp_path, ['nir'], ['red', 'green', 'blue', 'nir'])[0]['image'].shape[0] == 1


def test_unknown_bands_list_wanted_and_available(tiles: Path) -> None:
    with pytest.raises(ValueError, match='you requested nir, the files contain red, green, blue'):
        FolderDataset(tiles, bands=['nir'])
    with pytest.raises(ValueError, match='at least one band'):
        FolderDataset(tiles, bands=[])
    with pytest.raises(ValueError, match='got 2 names'):
        FolderDataset(tiles, file_bands=['red', 'green'])
    with pytest.raises(ValueError, match='must be unique'):
        FolderDataset(tiles, file_bands=['red', 'R', 'blue'])


@pytest.mark.parametrize(
    ('mode', 'file_bands', 'count'),
    [
        ('L', None, 1),
        ('L', ('red', 'green', 'blue'), 3),
        ('1', None, 1),
        ('LA', None, 1),
        ('P', None, 3),
        ('RGBA', None, 3),
        ('RGBA', ('red', 'green', 'blue', 'nir'), 4),
        ('CMYK', None, 3),
        ('I;16', None, 1),
    ],
)
def test_plain_images_of_every_mode_become_bands(
    tmp_path: Path, tiles: Path, mode: str, file_bands: tuple[str, ...] | None, count: int
) -> None:
    folder = tmp_path / 'one'
    folder.mkdir()
    with Image.open(next(tiles.glob('*.jpg'))) as image:
        if mode == 'I;16':
            image = Image.fromarray(np.array(image.convert('L')).astype(np.uint16) * 256)
        else:
            image = image.convert(mode)
        image.save(folder / ('a.jpg' if mode == 'CMYK' else 'a.png'))
    sample = FolderDataset(folder, file_bands=file_bands)[0]
    assert sample['image'].shape == (count, 64, 64)
    assert sample['image'].max() > (255 if mode == 'I;16' else 30)


def test_a_palette_tiff_becomes_its_colours(tmp_path: Path) -> None:
    path = tmp_path / 'a.tif'
    write_tif(path, np.eye(8, dtype=np.uint8)[None], photometric='palette')
    with rasterio.open(path, 'r+') as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (200, 100, 50, 255)})
    image = FolderDataset(tmp_path)[0]['image']
    assert image[:, 0, 0].tolist() == [200, 100, 50]
    assert image[:, 0, 1].tolist() == [10, 20, 30]


def test_16_bit_colour_png_keeps_16_bits(tmp_path: Path) -> None:
    pixels = np.full((3, 8, 8), 40000, dtype=np.uint16)
    write_tif(tmp_path / 'a.png', pixels, driver='PNG')
    assert FolderDataset(tmp_path, file_bands=['R', 'G', 'B'])[0]['image'].max() == 40000


def test_grey_images_among_colour_ones_do_not_change_the_bands(tiles: Path) -> None:
    with Image.open(next(tiles.glob('*.jpg'))) as image:
        image.convert('L').save(tiles / 'AAA.jpg')
    dataset = FolderDataset(tiles)
    assert dataset.bands == ('red', 'green', 'blue')
    grey = dataset[0]['image']
    assert torch.equal(grey[0], grey[2])


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((3, 40, 80), dtype=np.uint8)
    pixels[:, :, 40:] = 255
    Image.fromarray(np.moveaxis(pixels, 0, -1)).save(tmp_path / 'a.png')
    image = FolderDataset(tmp_path, size=20)[0]['image']
    assert image.shape == (3, 20, 20)
    assert image.min() == 0 and image.max() == 255
    assert image[..., :8].max() < 20 and image[..., 12:].min() > 235
    cropped = FolderDataset(tmp_path, size=40)[0]['image']
    assert np.array_equal(cropped.numpy(), pixels[:, :, 20:60])


def test_resizing_agrees_with_pillow(tiles: Path) -> None:
    path = sorted(tiles.glob('*.jpg'))[0]
    with Image.open(path) as image:
        expected = np.array(image.resize((24, 24), Image.Resampling.BICUBIC), dtype=np.float32)
    image24 = FolderDataset(tiles, size=24)[0]['image'].permute(1, 2, 0).numpy()
    # Pillow also rounds and clips between its two passes, which shows at sharp edges only.
    difference = np.abs(image24 - expected)
    assert (difference <= 1).mean() > 0.98 and difference.max() < 5


def test_a_tile_of_the_right_size_is_not_touched(tiles: Path) -> None:
    assert torch.equal(FolderDataset(tiles, size=64)[0]['image'], FolderDataset(tiles)[0]['image'])


def test_missing_empty_and_wrong_folders_say_so(tmp_path: Path, tiles: Path) -> None:
    with pytest.raises(FileNotFoundError, match='does not exist'):
        FolderDataset(tmp_path / 'nowhere')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='contains no images'):
        FolderDataset(tmp_path / 'empty')
    with pytest.raises(NotADirectoryError, match='is a file'):
        FolderDataset(next(tiles.glob('*.jpg')))
    with pytest.raises(FileNotFoundError, match='no images for this split'):
        FolderDataset(tiles, is_valid_file=lambda path: False)
    with pytest.raises(ValueError, match='size must be at least 1'):
        FolderDataset(tiles, size=0)


def test_a_folder_of_unreadable_files_says_so(tmp_path: Path) -> None:
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    with pytest.raises(ValueError, match='none of the 1 files checked'):
        FolderDataset(tmp_path)
    with pytest.raises(ValueError, match=r'a\.jpg'):
        FolderDataset(tmp_path, strict=True)


def test_hidden_files_are_ignored_and_link_loops_end(tiles: Path) -> None:
    (tiles / '._River.jpg').write_bytes(b'')
    (tiles / '.cache').mkdir()
    shutil.copy(next(tiles.glob('R*.jpg')), tiles / '.cache')
    os.symlink(tiles, tiles / 'loop', target_is_directory=True)
    assert len(FolderDataset(tiles)) == 5


def test_a_linked_class_folder_is_read(tmp_path: Path) -> None:
    os.symlink(RGB / 'Forest', tmp_path / 'wood', target_is_directory=True)
    dataset = FolderDataset(tmp_path)
    assert dataset.classes == ('wood',)
    assert len(dataset) == 100


def test_the_cache_keeps_tiles_in_their_own_type(tiles: Path) -> None:
    dataset = FolderDataset(tiles, cache=True)
    first = dataset[0]['image']
    assert [pixels.dtype for pixels in dataset._cached.values()] == [np.uint8]
    dataset.files[0].unlink()
    assert torch.equal(dataset[0]['image'], first)
    dataset[0]['image'].zero_()
    assert torch.equal(dataset[-5]['image'], first)


def test_labels_can_follow_another_class_list(tmp_path: Path) -> None:
    shutil.copytree(RGB / 'River', tmp_path / 'River')
    dataset = FolderDataset(tmp_path)
    dataset.relabel(['Forest', 'River'])
    assert dataset[0]['label'] == 1
    with pytest.raises(ValueError, match=r"\['River'\] .* not among"):
        dataset.relabel(['Forest'])
