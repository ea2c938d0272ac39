"""Maps of scenes behind a URL: read by windows, resumed only where the scene is known."""

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio

from explora_geo.maps import MapOptions, Outputs, make_map
from explora_geo.maps.grid import Box
from explora_geo.maps.model import MapModel
from explora_geo.maps.scene import Scene, UnreadableError
from tests.http_ranges import Ranges, write_cog

OPTIONS = MapOptions(overlap=0.25, block=64, batch_size=16)


def mapped(path: str | Path, model: MapModel, out: Path, options: MapOptions = OPTIONS) -> np.ndarray:
    files = make_map(Scene(path, model.bands), model, Outputs(out), options)
    with rasterio.open(files['map']) as source:
        return source.read()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a server that fails once."""
    monkeypatch.setenv('GDAL_HTTP_MAX_RETRY', '0')


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_a_map_of_a_url_is_that_of_the_file_and_reads_it_once(
    server: Ranges, local: MapModel, tmp_path: Path, workers: int
) -> None:
    file = server.folder / 'scene.tif'
    options = MapOptions(block=128, workers=workers)
    expected = mapped(file, local, tmp_path / 'expected.tif', options)
    found = mapped(f'{server.url}/scene.tif', local, tmp_path / 'map.tif', options)
    assert np.array_equal(found, expected)
    with rasterio.open(tmp_path / 'map.tif') as source:
        assert source.tags()['SCENE'] == 'scene.tif'
    if not workers:  # each has a memory of its own
        assert server.sent < 1.2 * file.stat().st_size


@pytest.mark.parametrize('prefix', ['/vsicurl/', '/vsizip/vsicurl/'])
def test_whatever_gdal_opens_is_a_scene(server: Ranges, local: MapModel, tmp_path: Path, prefix: str) -> None:
    file = 'scenes.zip/scene.tif' if 'zip' in prefix else 'scene.tif'
    scene = Scene(f'{prefix}{server.url}/{file}', local.bands)
    assert scene.identity['changed'] and scene.name == 'scene.tif'
    plain = Scene(server.folder / 'scene.tif', local.bands)
    with scene.open() as one, plain.open() as other:
        assert np.array_equal(scene.read(one, Box(9, 9, 50, 60))[0], plain.read(other, Box(9, 9, 50, 60))[0])


def test_a_window_of_a_large_scene_costs_a_window(server: Ranges) -> None:
    write_cog(server.folder / 'large.tif', 2048)
    scene = Scene(f'{server.url}/large.tif')
    size = (server.folder / 'large.tif').stat().st_size
    assert server.sent < 0.01 * size
    with scene.open() as source:
        scene.read(source, Box(1000, 1000, 1100, 1100))
    assert server.sent < 0.05 * size


def test_a_server_that_dies_loses_no_finished_block(server: Ranges, local: MapModel, tmp_path: Path) -> None:
    write_cog(server.folder / 'large.tif', 1024)
    url, out = f'{server.url}/large.tif', tmp_path / 'map.tif'
    options = MapOptions(block=256, batch_size=64)

    def die(what: str, done: int, total: int) -> None:
        if done == 6:
            server.fail_after(0)

    with pytest.raises(UnreadableError, match=r'large\.tif cannot be read .*Failed at block \d+ of 16; fin'):
        make_map(Scene(url, local.bands), local, Outputs(out), options, progress=die)
    blocks = {p.name: p.stat().st_mtime_ns for p in (tmp_path / '.map.tif.parts').glob('*.npz')}
    assert 6 <= len(blocks) < 16 and not out.exists()
    server.fail_after(None)
    kept: dict[str, int] = {}

    def look(what: str, done: int, total: int) -> None:
        kept.update({p.name: p.stat().st_mtime_ns for p in (tmp_path / '.map.tif.parts').glob('*.npz')})

    make_map(Scene(url, local.bands), local, Outputs(out), options, progress=look)
    assert kept.items() > blocks.items() and len(kept) == 16
    expected = mapped(server.folder / 'large.tif', local, tmp_path / 'expected.tif', options)
    with rasterio.open(out) as source:
        assert np.array_equal(source.read(), expected)


def interrupt(url: str, model: MapModel, out: Path) -> list[int]:
    """Stop after three blocks of sixteen, and return which are computed next."""

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_map(Scene(url, model.bands), model, Outputs(out), OPTIONS, progress=stop)
    return [int(p.stem) for p in out.with_name(f'.{out.name}.parts').glob('*.npz')]


def test_a_scene_that_nobody_can_tell_from_a_changed_one_is_not_resumed(
    server: Ranges, local: MapModel, tmp_path: Path
) -> None:
    url, out = f'{server.url}/scene.tif', tmp_path / 'map.tif'
    server.set_validators(etag=False)
    assert len(interrupt(url, local, out)) == 3
    with pytest.raises(
        ValueError, match=r'parts contains finished blocks, but no ETag or .* tells whether http'
    ):
        mapped(url, local, out)
    server.set_validators(etag=False, modified=True)  # as good as the time of a file on disk
    os.utime(server.folder / 'scene.tif', (1, 1))
    assert mapped(url, local, out).shape == (1, 256, 256)


def test_a_changed_scene_is_begun_anew(server: Ranges, local: MapModel, tmp_path: Path) -> None:
    url, out = f'{server.url}/scene.tif', tmp_path / 'map.tif'
    assert len(interrupt(url, local, out)) == 3
    first = Scene(url).identity
    os.utime(server.folder / 'scene.tif', (1, 1))
    assert Scene(url).identity['changed'] != first['changed']
    done: list[int] = []

    def look(what: str, number: int, total: int) -> None:
        done.append(len(list((tmp_path / '.map.tif.parts').glob('*.npz'))))

    make_map(Scene(url, local.bands), local, Outputs(out), OPTIONS, progress=look)
    assert done[0] == 0
