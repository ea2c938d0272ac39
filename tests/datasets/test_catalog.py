"""Footprints, where files tell and where they do not."""

from pathlib import Path

import pytest
import rasterio
from rasterio.crs import CRS

from explora_geo.datasets.catalog import build_catalog, footprint

DATA = Path(__file__).parents[1] / 'data'


def test_a_stated_polygon_goes_before_the_files_own() -> None:
    tile = next((DATA / 'eurosat_ms').glob('*/*.tif'))
    catalog = build_catalog([tile, tile], {'label': [1, 2]}, ['POINT (7 51)', None])
    assert catalog.geometry.iloc[0].wkt == 'POINT (7 51)' and list(catalog['label']) == [1, 2]
    assert catalog.geometry.iloc[1].geom_type == 'Polygon'


@pytest.mark.parametrize(
    'content', ['', 'no json', '[]', '{}', '{"raw_location": 5}', '{"raw_location": "?"}']
)
def test_a_file_that_does_not_tell_leaves_the_place_empty(tmp_path: Path, content: str) -> None:
    image = tmp_path / 'image.jpg'
    image.with_suffix('.json').write_text(content)
    catalog = build_catalog([image], {})
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
