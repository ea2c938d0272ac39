"""`explora-geo map` on real aerial scenes."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from explora_geo.checkpoints import write_state
from explora_geo.models import create_vit
from explora_geo.trainers import SegmentationTask, save_task
from tests.http_ranges import Ranges

NAIP = sorted((Path(__file__).parents[1] / 'data' / 'naip').glob('*.tif'))
NAMES = ['--file-bands', 'red,green,blue,nir']


@pytest.fixture
def model(small_names: None, tmp_path: Path) -> Path:
    """A model of four bands, not trained."""
    bands = ['red', 'green', 'blue', 'nir']
    task = SegmentationTask(
        model='vit_tiny_patch16_64', bands=bands, tuning='full', num_classes=2, head='linear'
    )
    task.data = {'mean': [100.0] * 4, 'std': [40.0] * 4, 'classes': ['other', 'vegetation']}
    save_task(tmp_path / 'model.safetensors', task.eval())
    return tmp_path / 'model.safetensors'


def test_a_real_scene_is_mapped_with_all_its_files(
    run: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    printed = run(
        *('map', NAIP[0], '--model', model, '--out', tmp_path / 'map.tif', *NAMES),
        *('--vectors', tmp_path / 'v.gpkg', '--classes', 'vegetation', '--quicklook', tmp_path / 'q.png'),
        *('--probabilities', tmp_path / 'p.tif', '--embeddings', tmp_path / 'e.tif'),
    )
    assert all(
        f'{kind}: ' in printed for kind in ('map', 'probabilities', 'embeddings', 'vectors', 'quicklook')
    )
    with rasterio.open(tmp_path / 'map.tif') as found, rasterio.open(NAIP[0]) as scene:
        assert found.crs == scene.crs and found.bounds == scene.bounds
        assert set(np.unique(found.read())) <= {0, 1, 255}
    with rasterio.open(tmp_path / 'e.tif') as features:
        assert features.shape == (16, 16) and features.count == 32


def test_a_backbone_has_embeddings(run: Callable[..., str], small_names: None, tmp_path: Path) -> None:
    vit = create_vit('vit_tiny_patch8_64', bands=('red', 'green', 'blue', 'nir'))
    meta = {'backbone': 'vit_tiny_patch8_64', 'bands': '["red", "green", "blue", "nir"]'}
    write_state(tmp_path / 'w.safetensors', vit.state_dict(), meta)
    run('map', NAIP[1], '--weights', tmp_path / 'w.safetensors', '--embeddings', tmp_path / 'e.tif', *NAMES)
    with rasterio.open(tmp_path / 'e.tif') as features:
        assert features.shape == (32, 32) and np.isfinite(features.read()).all()


def test_mistakes_end_in_one_sentence(refuse: Callable[..., str], model: Path, tmp_path: Path) -> None:
    out = ['--out', tmp_path / 'map.tif']
    assert 'turns must be 1, 4' in refuse('map', NAIP[0], '--model', model, *out, '--turns', 3)
    assert 'unnamed uint8 bands, but bands are selected by name; set file_bands' in refuse(
        'map', NAIP[0], '--model', model, *out
    )
    wrong = ['--file-bands', 'red,green,blue,B8A']
    sentence = refuse('map', NAIP[0], '--model', model, *out, *wrong)
    assert (
        'reads the bands red, green, blue, nir, but' in sentence and 'has red, green, blue, B8A' in sentence
    )
    assert 'weights file not found' in refuse(
        'map', NAIP[0], '--model', tmp_path / 'missing.safetensors', *out
    )
    assert 'scene not found' in refuse('map', tmp_path / 'missing.tif', '--model', model, *out)
    assert 'pass either --model' in refuse('map', NAIP[0], *out)
    given = ['map', NAIP[0], '--model', model, *out]
    assert '--adapter requires --weights' in refuse(*given, '--adapter', tmp_path / 'missing.safetensors')
    assert 'min_area applies only to polygons' in refuse(*given, *NAMES, '--min-area', 10)
    assert 'pass out for a map' in refuse('map', NAIP[0], '--model', model, *NAMES)
    assert 'overlap must be' in refuse('map', NAIP[0], '--model', model, *out, *NAMES, '--overlap', 1)


def test_geoparquet_asks_for_its_package_at_once(
    refuse: Callable[..., str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    for option in ('--vectors', '--embeddings'):
        args = ['--out', tmp_path / 'm.tif', *NAMES, option, tmp_path / 'v.parquet']
        sentence = refuse('map', NAIP[0], '--model', model, *args)
        assert 'needs pyarrow: pip install "explora_geo[parquet]"' in sentence
    assert not list(tmp_path.glob('.m.tif*'))


def test_a_scene_behind_a_url_is_mapped_and_a_wrong_one_is_named(
    run: Callable[..., str], refuse: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    out = ['--model', model, '--out', tmp_path / 'map.tif', *NAMES]
    with Ranges(NAIP[0].parent) as server:
        printed = run('map', f'{server.url}/{NAIP[0].name}', *out, '--dry-run')
        assert printed.startswith(f'{server.url}/{NAIP[0].name}: 256 x 256 pixels')
        run('map', f'/vsicurl/{server.url}/{NAIP[0].name}', *out)
        assert 'HTTP response code: 404' in refuse('map', f'{server.url}/missing.tif', *out)
    with rasterio.open(tmp_path / 'map.tif') as found, rasterio.open(NAIP[0]) as scene:
        assert found.bounds == scene.bounds
    for wrong in ('http://127.0.0.1:1/a.tif', 'https://', '/vsizip/none.zip/a.tif', 'gopher://host/a.tif'):
        assert f'{wrong} cannot be read (' in refuse('map', wrong, *out)
