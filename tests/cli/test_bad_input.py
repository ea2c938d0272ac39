"""What users get wrong ends in one sentence and exit code 2, and finished work is kept."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from explora_geo.maps import outputs as parts
from explora_geo.trainers import SegmentationTask, save_task

Refuse = Callable[..., str]
CONF = Path(__file__).parents[1] / 'conf'
LOCAL = 'LOCAL_CS["paper",UNIT["metre",1]]'


@pytest.fixture
def model(small_names: None, tmp_path: Path) -> Path:
    """A tuned model of red, green and blue that learnt nothing."""
    task = SegmentationTask(model='vit_tiny_patch8_32', tuning='full', num_classes=2, head='linear')
    task.data = {'mean': [100.0] * 3, 'std': [40.0] * 3}
    save_task(tmp_path / 'model.safetensors', task.eval())
    return tmp_path / 'model.safetensors'


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Path]:
    """Write a scene."""

    def write(size: int = 96, **kwargs: Any) -> Path:
        profile = {'count': 3, 'height': size, 'width': size, 'dtype': 'uint8', 'crs': 'EPSG:32631'}
        profile |= {'transform': from_origin(500000, 5000000, 10, 10), **kwargs}
        with rasterio.open(tmp_path / 'scene.tif', 'w', driver='GTiff', **profile) as target:
            target.write(np.full((3, size, size), 9, dtype=np.uint8))
        return tmp_path / 'scene.tif'

    return write


@pytest.fixture
def refuse_map(refuse: Refuse, model: Path, tmp_path: Path) -> Refuse:
    """Map a scene, which must fail."""
    return lambda path, *args: refuse('map', path, '--model', model, '--out', tmp_path / 'map.tif', *args)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_a_scene_without_or_with_a_placeless_crs(
    refuse_map: Refuse, scene: Callable[..., Path], tmp_path: Path
) -> None:
    assert 'has no coordinate reference system' in refuse_map(scene(crs=None))
    sentence = refuse_map(scene(crs=LOCAL), '--vectors', tmp_path / 'v.gpkg')
    assert 'without a location on Earth' in sentence
    assert not list(tmp_path.glob('.map*'))


def test_a_scene_smaller_than_a_tile(refuse_map: Refuse, scene: Callable[..., Path]) -> None:
    assert 'the scene of 20x20 pixels is smaller than a tile of 32 pixels' in refuse_map(scene(20))


def test_other_bands_than_the_models(refuse_map: Refuse, scene: Callable[..., Path]) -> None:
    sentence = refuse_map(scene(), '--file-bands', 'B08,B04,B03')
    assert 'red, green, blue' in sentence and 'B08, B04, B03' in sentence


def test_a_full_disk_keeps_the_finished_blocks(
    refuse_map: Refuse, scene: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = np.savez_compressed
    written: list[int] = []

    def disk_full(file: Any, **arrays: Any) -> None:
        written.append(1)
        if len(written) == 3:
            raise OSError(28, 'No space left on device')
        original(file, **arrays)

    monkeypatch.setattr(parts.np, 'savez_compressed', disk_full)
    sentence = refuse_map(scene(), '--block', 48)
    assert (
        'no space left' in sentence
        and 'Failed at block 3 of 4' in sentence
        and 'repeat the command' in sentence
    )
    assert len(list(tmp_path.glob('.map.tif.parts/*.npz'))) == 2


def test_an_empty_class_and_a_single_one(
    refuse: Refuse, tiles: Path, base_file: Path, tmp_path: Path
) -> None:
    data = tmp_path / 'data'
    for part in ('train', 'test'):
        shutil.copytree(tiles, data / part)
    (data / 'train' / 'Highway').mkdir()
    probe = [
        'probe',
        data,
        '--weights',
        base_file,
        '--model',
        'vit_tiny_patch8_32',
        '--cache',
        tmp_path / 'c',
    ]
    assert f'empty class folders in {data / "train"}: Highway' in refuse(*probe)
    for part in ('train', 'test'):
        for name in ('Forest', 'River', 'Highway'):
            shutil.rmtree(data / part / name, ignore_errors=True)
    assert 'needs at least two classes, but the training images have 1' in refuse(*probe)


@pytest.fixture
def refuse_segmentation(
    refuse: Refuse, base_file: Path, masks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Refuse:
    """Tune on masks with the segmentation example, which must fail."""
    args = [
        f'--config={CONF / "tune_segmentation_masks.yaml"}',
        f'--model.init_args.weights={base_file}',
        '--model.init_args.model=vit_tiny_patch8_32',
        f'--data.init_args.root={masks}',
        '--data.init_args.image_size=32',
        '--data.init_args.strict=true',
        '--trainer.enable_progress_bar=false',
        f'--trainer.default_root_dir={tmp_path / "run"}',
    ]
    return lambda *more: refuse('fit', *args, *more)


def write_mask(path: Path, values: np.ndarray) -> None:
    profile = {'count': 1, 'dtype': 'uint8', 'height': values.shape[0], 'width': values.shape[1]}
    with rasterio.open(path, 'w', driver='GTiff', **profile) as target:
        target.write(values.astype(np.uint8)[None])


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_a_mask_of_another_size(refuse_segmentation: Refuse, masks: Path) -> None:
    for path in (masks / 'masks').iterdir():
        write_mask(path, np.zeros((32, 64)))
    assert 'has 32x64 pixels, but the image has 64x64' in refuse_segmentation()


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_label_values_out_of_range(refuse_segmentation: Refuse, masks: Path) -> None:
    for path in (masks / 'masks').iterdir():
        write_mask(path, np.full((64, 64), 9))
    assert 'masks must be between 0 and 1, got 9 to 9' in refuse_segmentation()


def test_another_number_of_classes_than_the_datas(refuse_segmentation: Refuse) -> None:
    sentence = refuse_segmentation('--model.init_args.num_classes=5')
    assert 'num_classes is 5, but the data has 2 classes (other, vegetation)' in sentence
