"""Data and backbone: bands by name, statistics by what the weights state."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torchgeo.datamodules import EuroSATDataModule as TorchGeoEuroSAT

from explora_geo.checkpoints import load_backbone, write_state
from explora_geo.datamodules import (
    FMoWSentinelDataModule,
    FMoWTemporalDataModule,
    FolderDataModule,
    Statistics,
)
from explora_geo.models import ViT, create_vit
from explora_geo.models.matching import match_data, normalization_of
from explora_geo.models.normalization import Normalization
from explora_geo.trainers import ClassificationTask, ExPLoRATask

STATED = Normalization((100.0, 110.0, 120.0), (50.0, 40.0, 30.0), value_range=(0.0, 255.0))


def build(normalization: Normalization | None = None, **kwargs: Any) -> ViT:
    with torch.device('meta'):
        vit = create_vit('vit_tiny_patch8_32', **kwargs)
    vit.normalization = normalization
    return vit


def batch(module: Any) -> Any:
    return module.aug({'image': torch.stack([module.train_dataset[i]['image'] for i in range(3)])})['image']


def test_batches_hold_the_bands_of_the_model_in_its_order(tiles: Path) -> None:
    module = FolderDataModule(tiles, image_size=32, batch_size=8)
    module.setup('fit')
    plain, training = batch(module), module.train_aug
    mean = module.mean
    match_data(module, build(bands=('B02', 'B04')))
    assert module.bands == ('blue', 'red') and torch.equal(module.mean, mean[[2, 0]])
    assert torch.equal(batch(module), plain[:, [2, 0]])
    image = module.train_dataset[0]['image'][None]
    assert module.train_aug({'image': image})['image'].shape == (1, 2, 32, 32)
    assert module.plot({'image': plain[0, [2, 0]]}) is not None
    match_data(module, build())  # the next model gets all of them again
    assert torch.equal(batch(module), plain) and training is not module.train_aug
    with pytest.raises(ValueError, match=r"bands \['B08'\] are missing: the model expects B08, B04, B03"):
        match_data(module, build(bands=('B08', 'B04', 'B03')))


def test_series_and_clipped_images_are_reordered_too(fmow: Path, fmow_sentinel: Path) -> None:
    series = FMoWTemporalDataModule(fmow, num_frames=2, image_size=16)
    series.setup('fit')
    series.train_dataset = series.val_dataset  # which draws no frames
    plain = batch(series)
    match_data(series, build(bands=('B', 'G', 'R'), tokenizer='temporal'))
    assert_close(batch(series), plain[:, :, [2, 1, 0]])
    clipped = FMoWSentinelDataModule(fmow_sentinel, image_size=24)
    clipped.setup('fit')
    plain = batch(clipped)
    match_data(clipped, build(bands=('red', 'B8A')))
    assert torch.equal(batch(clipped), plain[:, [2, 7]]) and clipped.clip


def test_stated_statistics_are_taken_over(tiles: Path) -> None:
    module = FolderDataModule(tiles, image_size=32, bands=['blue', 'green', 'red'])
    module.setup('fit')
    own = normalization_of(module, RGB)
    match_data(module, build(STATED))
    assert module.mean.tolist() == [100, 110, 120] and module.std.tolist() == [50, 40, 30]
    raw = torch.stack([module.train_dataset[i]['image'] for i in range(3)])[:, [2, 1, 0]]
    expected = (raw - module.mean.view(3, 1, 1)) / module.std.view(3, 1, 1)
    assert_close(batch(module), expected)
    match_data(module, build(STATED), 'data')
    assert own is not None and module.mean.tolist() == pytest.approx(own.mean[::-1])
    match_data(module, build(Normalization((0.0,) * 3, (255.0,) * 3, clip=True)))
    assert batch(module).min() >= 0 and batch(module).max() <= 1


RGB = ('red', 'green', 'blue')


def test_a_contradiction_is_refused_unless_told(tiles: Path) -> None:
    module = FolderDataModule(tiles, image_size=32, statistics=Statistics([0, 0, 0], [255, 255, 255]))
    module.setup('fit')
    with pytest.raises(ValueError, match=r'by red 0 ± 255, .* adapted with red 100 ± 50.*statistics'):
        match_data(module, build(STATED))
    match_data(module, build(STATED), 'data')
    assert module.mean.tolist() == [0, 0, 0]
    match_data(module, build(STATED), 'model')
    assert module.mean.tolist() == [100, 110, 120]
    with pytest.raises(ValueError, match='statistics must be model or data'):
        match_data(module, build(STATED), 'scene')  # type: ignore[arg-type]


def test_other_units_are_refused(tiles: Path) -> None:
    module = FolderDataModule(tiles, image_size=32)
    module.setup('fit')
    assert module.value_range is not None and 0 <= module.value_range[0] < module.value_range[1] <= 255
    tenths = Normalization((0.4, 0.4, 0.4), (0.2, 0.2, 0.2), value_range=(0.0, 1.0))
    with pytest.raises(ValueError, match=r'data has pixel values of .* to .*, .* adapted on 0 to 1: convert'):
        match_data(module, build(tenths))
    match_data(module, build(tenths), 'data')


def test_data_modules_of_torchgeo_are_compared() -> None:
    module = TorchGeoEuroSAT()
    bands = tuple(f'B{i}' for i in range(20, 33))
    found = normalization_of(module, bands)
    assert found is not None and len(found.mean) == 13
    match_data(module, build(found, bands=bands))
    other = Normalization(found.mean, tuple(2 * s for s in found.std))
    with pytest.raises(ValueError, match='set statistics to data to keep'):
        match_data(module, build(other, bands=bands))
    match_data(None, build(other, bands=bands))


@pytest.fixture
def dinov2_file(small_names: None, tmp_path: Path) -> Path:
    """A DINOv2 backbone of the small size as a file, positions of 518 px."""
    write_state(tmp_path / 'd.safetensors', create_vit('vit_small_patch14_dinov2').state_dict(), {})
    return tmp_path / 'd.safetensors'


def test_dinov2_is_built_for_224_pixels_and_crops_are_no_larger_than_the_tiles(
    dinov2_file: Path, tiles: Path
) -> None:
    name = 'vit_small_patch14_dinov2'
    task = ExPLoRATask(name, str(dinov2_file), 'D-[L]-r2')
    assert task.backbone.patch_embed.img_size == 224 and task.model.views is not None
    assert (task.model.views.global_size, task.model.views.local_size) == (224, 98)
    module = FolderDataModule(tiles, image_size=112)
    module.setup('fit')
    assert module.native_side == 64
    assert task.enlarging(module) == ''  # as crops are capped
    assert (task.model.views.global_size, task.model.views.local_size) == (56, 28)
    given = ExPLoRATask(name, str(dinov2_file), 'D-[L]-r2', img_size=112)
    assert given.enlarging(module).startswith('images of 64 px are enlarged to 112 px, 3.1 times the pixels')
    assert given.model.views is not None and given.model.views.global_size == 112
    tuned = ClassificationTask(model=name, weights=str(dinov2_file), num_classes=2)
    assert tuned.hparams['img_size'] == 224
    assert 'enlarged to 224 px' in tuned.enlarging(module)
    assert load_backbone(name, dinov2_file).patch_embed.img_size == 518
    assert load_backbone(name, dinov2_file, largest=64).patch_embed.img_size == 56
