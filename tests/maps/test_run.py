"""Maps: equal to whole-image inference, georeferenced, resumable."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import Tensor

from explora_geo.maps import MapOptions, Outputs, make_map
from explora_geo.maps import outputs as parts_module
from explora_geo.maps import run as run_module
from explora_geo.maps.grid import TileGrid, blending_weights
from explora_geo.maps.model import MapModel, open_features, open_model
from explora_geo.maps.scene import Scene
from explora_geo.models import ViT
from explora_geo.trainers import RegressionTask, save_task

Write = Callable[..., Path]
SMALL = MapOptions(overlap=0.5, block=50, batch_size=4)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read()


def mapped(
    scene: Path, model: MapModel, tmp_path: Path, options: MapOptions = SMALL, **kwargs: Any
) -> dict[str, Path]:
    progress = {k: kwargs.pop(k) for k in ('progress',) if k in kwargs}
    outputs = Outputs(tmp_path / 'map.tif', **kwargs)
    return make_map(Scene(scene, model.bands), model, outputs, options, **progress)


def counted(model: MapModel) -> tuple[MapModel, list[int]]:
    """A model that notes the tiles of each of its calls."""
    calls: list[int] = []
    function = model.function
    assert function is not None

    def counting(image: Tensor) -> Tensor:
        calls.append(len(image))
        return function(image)

    return model._replace(function=counting), calls


def test_a_local_models_map_is_that_of_the_whole_image(
    write_scene: Write, local: MapModel, whole: Callable[..., Tensor], tmp_path: Path
) -> None:
    path = write_scene()
    files = mapped(path, local, tmp_path, probabilities=tmp_path / 'p.tif')
    expected = whole(Scene(path), local)
    np.testing.assert_allclose(read(files['probabilities']), expected, atol=1e-5)
    assert np.array_equal(read(files['map'])[0], expected.argmax(0))


def test_averaged_over_turns_the_map_of_a_turned_scene_is_the_turned_map(
    write_scene: Write, model: MapModel, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (3, 64, 64)).astype(np.uint8)
    found = {}
    for turns in (1, 8):
        options = MapOptions(overlap=0.5, block=64, turns=turns)
        for quarter in (0, 1):
            path = write_scene(pixels=np.rot90(pixels, quarter, (1, 2)), name=f'{turns}_{quarter}.tif')
            files = mapped(path, model, tmp_path, options, probabilities=tmp_path / 'p.tif')
            found[turns, quarter] = read(files['probabilities'])
    turned = {turns: np.rot90(found[turns, 0], 1, (1, 2)) for turns in (1, 8)}
    np.testing.assert_allclose(found[8, 1], turned[8], atol=1e-5)
    assert np.abs(found[1, 1] - turned[1]).max() > 1e-3
    np.testing.assert_allclose(found[8, 0].sum(0), 1, atol=1e-5)


def test_a_scene_of_one_tile_is_one_forward_pass(
    write_scene: Write, model: MapModel, whole: Callable[..., Tensor], tmp_path: Path
) -> None:
    path = write_scene(32, 32)
    files = mapped(path, model, tmp_path, probabilities=tmp_path / 'p.tif')
    np.testing.assert_allclose(read(files['probabilities']), whole(Scene(path), model), atol=1e-5)


@pytest.mark.parametrize(
    'options', [SMALL, MapOptions(overlap=0.3, block=1000), MapOptions(overlap=0, block=33)]
)
def test_blocks_do_not_show_in_the_blend_of_all_tiles(
    write_scene: Write, model: MapModel, tmp_path: Path, options: MapOptions
) -> None:
    path = write_scene()
    files = mapped(path, model, tmp_path, options, probabilities=tmp_path / 'p.tif')
    pixels = torch.from_numpy(read(path).astype(np.float32))
    mean, std = (torch.tensor(model.data[k]).view(-1, 1, 1) for k in ('mean', 'std'))
    grid = TileGrid(100, 132, 32, options.overlap, 10**6)
    sums, total, weights = (
        torch.zeros(3, 100, 132),
        torch.zeros(100, 132),
        torch.from_numpy(blending_weights(32)),
    )
    assert model.function is not None
    for tile in grid.tiles(grid.blocks()[0]):
        place = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
        sums[:, *place] += weights * model.function(((pixels - mean) / std)[None, :, *place])[0]
        total[place] += weights
    np.testing.assert_allclose(read(files['probabilities']), sums / total, atol=1e-5)


def test_the_map_lies_where_the_scene_lies_and_says_what_it_shows(
    write_scene: Write, model: MapModel, tmp_path: Path
) -> None:
    path = write_scene(600, 700)
    files = mapped(
        path, model, tmp_path, MapOptions(overlap=0, batch_size=64), quicklook=tmp_path / 'look.png'
    )
    with rasterio.open(files['map']) as found, rasterio.open(path) as scene:
        assert found.crs == scene.crs and found.transform == scene.transform and found.shape == scene.shape
        assert found.tags(ns='IMAGE_STRUCTURE')['LAYOUT'] == 'COG' and found.overviews(1)
        assert found.dtypes == ('uint8',) and found.nodata == 255
        assert found.colormap(1)[1] == (20, 110, 40, 255)
        assert [found.tags()[f'CLASS_{i}'] for i in range(3)] == ['field', 'forest', 'water']
        assert found.tags()['MODEL_SHA256'] == model.sha256
    assert Image.open(files['quicklook']).width > 800
    assert not list(tmp_path.glob('.*'))


def test_nodata_stays_nodata_and_does_not_spoil_its_neighbours(
    write_scene: Write, model: MapModel, local: MapModel, whole: Callable[..., Tensor], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(1).integers(1, 255, (3, 160, 96)).astype(np.uint8)
    pixels[:, :40] = 0
    pixels[:, 100:, :20] = 0
    path = write_scene(pixels=pixels, nodata=0)
    files = mapped(path, local, tmp_path, probabilities=tmp_path / 'p.tif')
    hole = (pixels == 0).all(0)
    assert np.array_equal(read(files['map'])[0] == 255, hole)
    assert np.array_equal(np.isnan(read(files['probabilities'])), np.broadcast_to(hole, (3, 160, 96)))
    expected = whole(Scene(path), local).argmax(0).numpy()
    assert np.array_equal(read(files['map'])[0][~hole], expected[~hole])
    # A whole model sees the mean of each band there, whatever nodata is.
    first = read(mapped(path, model, tmp_path)['map'])
    pixels[:, hole] = 255
    again = read(mapped(write_scene(pixels=pixels, nodata=255, name='other.tif'), model, tmp_path)['map'])
    assert np.array_equal(first, again)


def test_an_interrupted_map_goes_on_with_the_missing_blocks(
    write_scene: Write, model: MapModel, tmp_path: Path
) -> None:
    path = write_scene()
    expected = read(mapped(path, model, tmp_path)['map'])
    (tmp_path / 'map.tif').unlink()
    counting, calls = counted(model)

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(path, counting, tmp_path, progress=stop)
    before = sum(calls)
    assert not (tmp_path / 'map.tif').exists() and len(list(tmp_path.glob('.map.tif.parts/*.npz'))) == 4
    calls.clear()
    assert np.array_equal(read(mapped(path, counting, tmp_path)['map']), expected)
    grid = TileGrid(100, 132, 32, 0.5, 50)
    assert before + sum(calls) == sum(len(grid.tiles(b)) for b in grid.blocks())
    assert not list(tmp_path.glob('.*'))


def test_a_map_whose_polygons_failed_is_not_computed_again(
    write_scene: Write, model: MapModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, calls = counted(model)

    def full(*args: Any) -> None:
        raise OSError('No space left on device')

    path = write_scene()
    with monkeypatch.context() as patched:
        patched.setattr(run_module, 'polygonize', full)
        with pytest.raises(OSError, match='No space left'):
            mapped(path, counting, tmp_path, vectors=tmp_path / 'v.gpkg')
    assert calls and (tmp_path / 'map.tif').is_file()
    calls.clear()
    mapped(path, counting, tmp_path, vectors=tmp_path / 'v.gpkg')
    assert not calls and (tmp_path / 'v.gpkg').is_file() and not list(tmp_path.glob('.*'))


def test_what_a_mask_inside_the_file_leaves_out_is_not_mapped(
    write_scene: Write, model: MapModel, tmp_path: Path
) -> None:
    path = write_scene()
    mask = np.ones((100, 132), dtype=bool)
    mask[:, :60] = False
    with rasterio.open(path, 'r+') as file:
        file.write_mask(mask)
    found = read(mapped(path, model, tmp_path, quicklook=tmp_path / 'q.png')['map'])[0]
    assert (found[~mask] == 255).all() and (found[mask] != 255).all()


def test_rasters_of_many_bands_have_small_blocks(
    write_scene: Write, build_vit: Callable[..., ViT], tmp_path: Path
) -> None:
    features = open_features(build_vit())
    outputs = Outputs(embeddings=tmp_path / 'e.tif')
    make_map(Scene(write_scene()), features, outputs, MapOptions(statistics='scene'))
    with rasterio.open(tmp_path / 'e.tif') as file:
        assert file.count == 32 and set(file.block_shapes) == {(128, 128)}


def test_parts_of_another_setting_are_not_used(write_scene: Write, model: MapModel, tmp_path: Path) -> None:
    path = write_scene()

    def stop(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mapped(path, model, tmp_path, progress=stop)
    assert model.function is not None
    other = model._replace(function=lambda x: model.function(-x), sha256='other')  # type: ignore[misc]
    found = read(mapped(path, other, tmp_path)['map'])
    os.remove(tmp_path / 'map.tif')
    assert np.array_equal(found, read(mapped(path, other, tmp_path)['map']))


def test_a_full_disk_is_told_and_finished_blocks_are_kept(
    write_scene: Write, model: MapModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scene()
    original = np.savez_compressed
    written: list[int] = []

    def disk_full(file: Any, **arrays: Any) -> None:
        written.append(1)
        if len(written) == 3:
            file.write(b'half')
            raise OSError(28, 'No space left on device')
        original(file, **arrays)

    monkeypatch.setattr(parts_module.np, 'savez_compressed', disk_full)
    with pytest.raises(
        OSError, match=r'no space left to write .*000002\.npz.* Failed at block 3 of 6; finished blocks'
    ):
        mapped(path, model, tmp_path)
    assert len(list(tmp_path.glob('.map.tif.parts/*.npz'))) == 2
    monkeypatch.undo()
    assert read(mapped(path, model, tmp_path)['map']).shape == (1, 100, 132)


def test_several_workers_make_the_same_map(write_scene: Write, model: MapModel, tmp_path: Path) -> None:
    path = write_scene()
    alone = read(mapped(path, model, tmp_path)['map'])
    together = mapped(path, model, tmp_path, MapOptions(overlap=0.5, block=50, batch_size=4, workers=2))
    assert np.array_equal(read(together['map']), alone)


def test_polygons_cover_the_classes_with_their_areas(
    write_scene: Write, local: MapModel, tmp_path: Path
) -> None:
    pixels = np.full((3, 64, 96), 10, dtype=np.uint8)
    pixels[:, 10:30, 20:60] = 250
    path = write_scene(pixels=pixels)
    bright = local._replace(
        function=lambda x: torch.stack([x[:, 0] < 0, x[:, 0] >= 0, x[:, 0] > 99], 1).float()
    )
    for name in ('v.gpkg', 'v.geojson'):
        files = mapped(path, bright, tmp_path, vectors=tmp_path / name, vector_classes=('forest',))
        frame = gpd.read_file(files['vectors'])
        assert list(frame['name']) == ['forest'] and list(frame['class']) == [1]
        # 20 x 40 pixels of 10 m, on UTM whose scale at the central meridian is 0.9996
        assert frame['area_m2'][0] == pytest.approx(80_000 / 0.9996**2, rel=1e-3)
    assert gpd.read_file(tmp_path / 'v.gpkg').total_bounds.tolist() == [500200, 4999700, 500600, 4999900]
    files = mapped(path, bright, tmp_path, vectors=tmp_path / 'v.gpkg', min_area=1e6)
    assert len(gpd.read_file(files['vectors'])) == 0


def test_embeddings_are_the_patch_features_at_their_places(
    write_scene: Write, build_vit: Callable[..., ViT], tmp_path: Path
) -> None:
    path = write_scene(37, 32)
    vit = build_vit()
    model = open_features(vit)
    options = MapOptions(statistics='scene')
    scene = Scene(path)
    files = make_map(scene, model, Outputs(embeddings=tmp_path / 'e.tif'), options)
    statistics = scene.statistics()
    mean, std = (torch.tensor(getattr(statistics, k)).view(-1, 1, 1).float() for k in ('mean', 'std'))
    pixels = torch.from_numpy(read(path)[:, :32].astype(np.float32))
    with torch.no_grad():
        expected = vit.eval()(((pixels - mean) / std)[None]).patches[0, 0].T.unflatten(1, (4, 4))
    with rasterio.open(files['embeddings']) as found:
        assert found.transform.a == 80 and found.shape == (4, 4) and found.count == 32
        np.testing.assert_allclose(found.read(), expected, atol=1e-4)


def test_mistakes_are_refused_before_anything_is_computed(
    write_scene: Write, model: MapModel, build_vit: Callable[..., ViT], tmp_path: Path
) -> None:
    path = write_scene()
    with pytest.raises(ValueError, match=r'cannot write v\.shp: use the extension \.gpkg or'):
        mapped(path, model, tmp_path, vectors=tmp_path / 'v.shp')
    with pytest.raises(ValueError, match="unknown class 'house', expected one of field, forest, water"):
        mapped(path, model, tmp_path, vectors=tmp_path / 'v.gpkg', vector_classes=('house',))
    with pytest.raises(ValueError, match='classes applies only to polygons'):
        mapped(path, model, tmp_path, vector_classes=('water',))
    for name, ending in (('probabilities', 'p.png'), ('quicklook', 'q.jpg'), ('embeddings', 'e.gpkg')):
        with pytest.raises(ValueError, match=f'cannot write {ending}: use the extension'):
            mapped(path, model, tmp_path, **{name: tmp_path / ending})
    with pytest.raises(ValueError, match='smaller than a tile of 32'):
        mapped(write_scene(20, 99, name='small.tif'), model, tmp_path)
    with pytest.raises(ValueError, match='does not contain the mean and standard deviation'):
        mapped(path, model._replace(data={}), tmp_path)
    with pytest.raises(ValueError, match='a backbone without a head'):
        mapped(path, open_features(build_vit()), tmp_path)
    with pytest.raises(ValueError, match='pass out for a map, or embeddings'):
        make_map(Scene(path), model, Outputs())
    with pytest.raises(ValueError, match='statistics must be model or scene'):
        MapOptions(statistics='none')  # type: ignore[arg-type]
    assert not list(tmp_path.glob('.*parts'))


def test_no_output_takes_the_place_of_another_file(
    write_scene: Write, model: MapModel, build_vit: Callable[..., ViT], tmp_path: Path
) -> None:
    path = write_scene(40, 40)
    before = path.read_bytes()
    scene = Scene(path, model.bands)
    with pytest.raises(ValueError, match=r'scene\.tif is the scene itself: use a separate file'):
        make_map(scene, model, Outputs(path))
    for kind in ('probabilities', 'embeddings', 'quicklook'):
        with pytest.raises(ValueError, match=r'map\.tif is another output'):
            mapped(path, model, tmp_path, **{kind: tmp_path / 'x' / '..' / 'map.tif'})
    # Points of embeddings are the only file of that name.
    features = open_features(build_vit())
    options = MapOptions(statistics='scene')
    make_map(scene, features, Outputs(embeddings=path.with_suffix('.parquet')), options)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(('scene', '.scene'))} == {
        'scene.tif',
        'scene.parquet',
    }


def test_a_regressors_map_has_all_its_outputs_where_the_first_block_is_empty(
    write_scene: Write, small_names: None, tmp_path: Path
) -> None:
    task = RegressionTask(model='vit_tiny_patch8_32', tuning='linear', num_outputs=2)
    task.data = {'bands': ['red', 'green', 'blue'], 'mean': [120.0] * 3, 'std': [50.0] * 3}
    save_task(tmp_path / 'model.safetensors', task.eval())
    pixels = np.random.default_rng(0).integers(1, 255, (3, 64, 64)).astype(np.uint8)
    pixels[:, :32, :32] = 0
    path = write_scene(pixels=pixels, nodata=0)
    options = MapOptions(overlap=0, block=32)
    found = read(mapped(path, open_model(tmp_path / 'model.safetensors'), tmp_path, options)['map'])
    assert found.shape == (2, 64, 64)
    assert np.isnan(found[:, :32, :32]).all() and np.isfinite(found[:, 32:]).all()


def test_a_model_of_clipped_images_sees_clipped_ones(
    write_scene: Write, model: MapModel, tmp_path: Path
) -> None:
    seen: list[Tensor] = []

    def function(image: Tensor) -> Tensor:
        seen.append(image)
        return image

    start, length = [60.0, 70.0, 80.0], [100.0, 90.0, 80.0]
    clipped = model._replace(function=function, data={'mean': start, 'std': length, 'clip': True})
    path = write_scene(32, 32)
    mapped(path, clipped, tmp_path)
    pixels = torch.from_numpy(read(path).astype(np.float32))
    position = (pixels - torch.tensor(start).view(-1, 1, 1)) / torch.tensor(length).view(-1, 1, 1)
    assert position.max() > 1 and position.min() < 0
    torch.testing.assert_close(seen[0][0], position.clamp(0, 1))
    seen.clear()
    mapped(path, clipped, tmp_path, MapOptions(statistics='scene'))
    found = Scene(path).statistics()
    mean, std = (torch.tensor(getattr(found, k)).view(-1, 1, 1) for k in ('mean', 'std'))
    torch.testing.assert_close(seen[0][0], ((pixels - mean + 2 * std) / (4 * std)).clamp(0, 1).float())
