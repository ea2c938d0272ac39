"""Functional Map of the World in its three forms, on tiny copies of the real layout."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch
from PIL import Image
from torchgeo.datasets import DatasetNotFoundError, NonGeoDataset

from explora_geo.datasets import FMoWRGB, FMoWSentinel, FMoWTemporal
from explora_geo.datasets.fmow import CLASSES, SENTINEL_BANDS

TEN = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')


def test_the_classes_are_the_62_in_alphabetical_order() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 62 and list(CLASSES) == sorted(CLASSES)
    assert (CLASSES[0], CLASSES[-1]) == ('airport', 'zoo')


def test_rgb_images_of_any_size_come_in_one_size_with_their_label(fmow: Path) -> None:
    dataset = FMoWRGB(fmow, size=32)
    assert isinstance(dataset, NonGeoDataset) and len(dataset) == 10
    sample = dataset[4]
    assert sample['image'].shape == (3, 32, 32) and sample['image'].dtype == torch.float32
    assert CLASSES[int(sample['label'])] == 'crop_field'
    assert 0 <= sample['image'].min() and 50 < sample['image'].max() <= 255
    plain = FMoWRGB(fmow, size=None, bands=['blue', 'red'])
    image = np.asarray(Image.open(plain.table['path'][1]))
    assert np.array_equal(plain[1]['image'].numpy(), image[..., [2, 0]].transpose(2, 0, 1))
    assert plain.bands == ('blue', 'red')


def test_evaluation_keeps_the_middle_of_a_larger_size(fmow: Path) -> None:
    large = FMoWRGB(fmow, size=40)[0]['image']
    middle = FMoWRGB(fmow, size=35, crop_pct=35 / 40)[0]['image']
    assert torch.equal(middle, large[:, 2:37, 2:37])


def test_the_catalogue_is_a_table_with_footprints(fmow: Path, fmow_sentinel: Path, tmp_path: Path) -> None:
    rgb, sentinel = FMoWRGB(fmow).catalog, FMoWSentinel(fmow_sentinel).catalog
    for catalog, count in ((rgb, 10), (sentinel, 7)):
        assert len(catalog) == count and catalog.crs == 'EPSG:4326'
        assert {'path', 'category', 'location_id', 'image_id', 'timestamp', 'label'} <= set(catalog.columns)
        assert catalog.geometry.is_valid.all() and not catalog.geometry.is_empty.any()
    assert tuple(rgb.geometry.iloc[4].bounds) == (1, 10, 2, 11)  # from the JSON file beside the image
    with rasterio.open(sentinel['path'].iloc[0]) as source:
        area = (source.bounds.right - source.bounds.left) * (source.bounds.top - source.bounds.bottom)
        footprint = sentinel.to_crs(source.crs).geometry.iloc[0]
    assert footprint.area == pytest.approx(area, rel=0.001)
    sentinel.to_file(tmp_path / 'tiles.gpkg')
    assert (tmp_path / 'tiles.gpkg').stat().st_size > 0


def test_sentinel_bands_are_chosen_by_name_in_the_files_own_order(fmow_sentinel: Path) -> None:
    assert SENTINEL_BANDS[7:10] == ('B08', 'B8A', 'B09')
    dataset = FMoWSentinel(fmow_sentinel, bands=('B8A', 'B9', 'B02'), size=None)
    with rasterio.open(dataset.table['path'][0]) as source:
        expected = source.read([9, 10, 2]).astype(np.float32)
    assert np.array_equal(dataset[0]['image'].numpy(), expected)
    assert dataset.bands == ('B8A', 'B09', 'B02')
    assert FMoWSentinel(fmow_sentinel, bands=TEN)[0]['image'].shape == (10, 96, 96)


def test_sentinel_paths_are_built_and_the_lists_own_are_not_believed(fmow_sentinel: Path) -> None:
    table = FMoWSentinel(fmow_sentinel, split='val').table
    assert table['path'].map(lambda p: p.is_file()).all()
    expected = fmow_sentinel / 'fmow-sentinel/val/lake_or_pond/lake_or_pond_21/lake_or_pond_21_100.tif'
    assert table['path'][3] == expected and CLASSES[table['label'][3]] == 'lake_or_pond'


def test_a_series_is_the_row_and_other_images_of_its_place(fmow: Path) -> None:
    dataset = FMoWTemporal(fmow, size=24)
    sample = dataset[2]  # airport_0 has four images
    assert sample['image'].shape == (3, 3, 24, 24)
    assert sample['timestamps'].tolist()[0] == [2014 - 2002, 2, 12]
    assert len({tuple(t) for t in sample['timestamps'].tolist()}) == 3
    single = FMoWRGB(fmow, size=24)
    assert torch.equal(sample['image'][0], single[2]['image'])
    drawn = {tuple(dataset[2]['timestamps'][1:, 0].tolist()) for _ in range(40)}
    assert drawn == {(a - 2002, b - 2002) for a in (2012, 2013, 2015) for b in (2012, 2013, 2015) if a != b}


def test_places_with_few_images_repeat_them(fmow: Path) -> None:
    dataset = FMoWTemporal(fmow, size=24, num_frames=4)
    two, one = dataset[4]['timestamps'], dataset[6]['timestamps']
    assert two[:, 0].tolist() == [7, 8, 8, 8]  # the anchor, then its only other image
    assert (one == one[0]).all() and CLASSES[int(dataset[6]['label'])] == 'zoo'


def test_series_that_are_not_drawn_are_always_the_same(fmow: Path) -> None:
    dataset = FMoWTemporal(fmow, size=24, num_frames=3, random_frames=False)
    assert all(torch.equal(dataset[0]['timestamps'], dataset[0]['timestamps']) for _ in range(5))
    assert dataset[0]['timestamps'][:, 0].tolist() == [10, 11, 12]


def test_another_frame_that_cannot_be_read_is_named(fmow: Path) -> None:
    dataset = FMoWTemporal(fmow, size=24, num_frames=4)
    first, second, *_ = dataset.files  # of one place
    second.write_bytes(b'')
    assert dataset[0]['skipped'].startswith(f'{first}: frame {second}: cannot be read')


def test_a_series_does_not_mix_kinds_of_files_or_splits(fmow: Path) -> None:
    table = pd.read_csv(fmow / 'train_62classes.csv')
    source = fmow / 'fmow/train/airport/airport_0/airport_0_0_rgb.jpg'
    other = source.with_name('airport_0_0_msrgb.jpg')
    other.write_bytes(source.read_bytes())
    table.loc[len(table)] = [0, str(other.relative_to(fmow)), '2012-01-15T10:20:30Z']
    table.to_csv(fmow / 'train_62classes.csv', index=False)
    dataset = FMoWTemporal(fmow, size=24)
    assert dataset.table.groupby('series').size().max() == 4
    assert (dataset[10]['timestamps'] == dataset[10]['timestamps'][0]).all()


Build = Callable[..., Any]
KINDS = pytest.mark.parametrize('build', [FMoWRGB, FMoWSentinel, FMoWTemporal])


@pytest.fixture
def root(build: Build, fmow: Path, fmow_sentinel: Path) -> Path:
    return fmow_sentinel if build is FMoWSentinel else fmow


@KINDS
def test_rows_without_a_file_are_left_out_and_counted(build: Build, root: Path) -> None:
    complete = build(root)
    gone = complete.table['path'][1]
    gone.unlink()
    with pytest.warns(
        UserWarning, match=rf'1 of {len(complete)} files listed in .* do not exist \(first: .*\); skip'
    ):
        dataset = build(root)
    assert len(dataset) == len(complete) - 1 and dataset.missing == [str(gone)]
    assert len(dataset.catalog) == len(dataset)
    with pytest.raises(ValueError, match=r'do not exist.*or set strict=False'):
        build(root, strict=True)


@KINDS
def test_what_is_not_there_is_reported_in_torchgeos_way(build: Build, root: Path, tmp_path: Path) -> None:
    for place in (tmp_path / 'nowhere', root.parent):
        with pytest.raises(DatasetNotFoundError, match='Dataset not found in `root='):
            build(place)
    with pytest.raises(DatasetNotFoundError):
        build(root, split='test')
    for path in build(root).table['path']:
        path.unlink()
    with pytest.raises(DatasetNotFoundError):
        build(root)


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ('', 'is not a valid CSV file'),
        ('a,b\n', 'is empty; download'),
        ('a\n1\n', 'must have label, path and timestamp'),
        ('a,b,c\n62,x.jpg,2010\n', "unknown fMoW classes \\(first: \\['62'\\]"),
        ('a,b,c\nharbour,x.jpg,2010\n', 'harbour'),
        ('\x00\x01', 'not a valid CSV file|is empty; download'),
    ],
)
def test_a_list_that_does_not_fit_is_refused(fmow: Path, content: str, sentence: str) -> None:
    (fmow / 'train_62classes.csv').write_text(content)
    with pytest.raises(ValueError, match=sentence):
        FMoWRGB(fmow)


def test_a_sentinel_list_without_its_columns_is_refused(fmow_sentinel: Path) -> None:
    (fmow_sentinel / 'train.csv').write_text('category,location_id\nzoo,1\n')
    with pytest.raises(ValueError, match=r"is missing the columns \['image_id', 'timestamp'\], got"):
        FMoWSentinel(fmow_sentinel)


def test_series_need_times(fmow: Path) -> None:
    path = fmow / 'train_62classes.csv'
    table = pd.read_csv(path)
    table.assign(timestamp='yesterday').to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"contain the time of every image.*got 'yesterday'"):
        FMoWTemporal(fmow)


def test_names_of_classes_are_labels_too(fmow: Path) -> None:
    path = fmow / 'train_62classes.csv'
    table = pd.read_csv(path)
    expected = FMoWRGB(fmow).table['label']
    table['category'] = [CLASSES[i] for i in table['category']]
    table.to_csv(path, index=False)
    assert FMoWRGB(fmow).table['label'].equals(expected)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'size': 0}, 'size must be at least 1'),
        ({'crop_pct': 0.0}, 'crop_pct must be above 0'),
        ({'bands': ['nir']}, r"bands \['nir'\] are missing"),
    ],
)
def test_wrong_arguments_are_refused(fmow: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FMoWRGB(fmow, **change)
    with pytest.raises(ValueError, match='num_frames must be at least 1'):
        FMoWTemporal(fmow, num_frames=0)
