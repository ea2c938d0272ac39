"""Footprints, where files tell and where they do not."""

from pathlib import Path

import pytest
import rasterio
from rasterio.crs import CRS

from explora_geo.datasets.base import TileDataset, footprint

DATA = Path(__file__).parents[1] / 'data'


@pytest.mark.parametrize(
    'content', ['', 'no json', '[]', '{}', '{"raw_location": 5}', '{"raw_location": "?"}']
)
def test_a_file_that_does_not_tell_leaves_the_place_empty(tmp_path: Path, content: str) -> None:
    image = tmp_path / 'image.jpg'
    image.with_suffix('.json').write_text(content)
    catalog = TileDataset(tmp_path, [image]).catalog
    assert catalog.geometry.isna().all() and catalog.crs == 'EPSG:4326'


def test_damaged_and_unplaced_rasters_have_no_footprint(tmp_path: Path) -> None:
    (tmp_path / 'damaged.tif').write_bytes(b'II*\0')
    assert footprint(tmp_path / 'damaged.tif') is None
    assert footprint(tmp_path / 'missing.tif') is None
    assert footprint(tmp_path / 'missing.png') is None


def test_local_coordinates_have_no_place_on_earth(tmp_path: Path) -> None:
    tile = next((DATA / 'eurosat_ms').glob('*/*.tif'))
    with rasterio.open(tile) as source:
        profile, pixels = source.profile, source.read()
    local = CRS.from_wkt('LOCAL_CS["here",UNIT["metre",1]]')
    with rasterio.open(tmp_path / 'local.tif', 'w', **{**profile, 'crs': local}) as target:
        target.write(pixels)
    assert footprint(tmp_path / 'local.tif') is None
