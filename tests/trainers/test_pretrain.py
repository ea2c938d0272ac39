"""ExPLoRATask in plain Lightning trainers: what is read, what moves, what is logged, what runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchgeo.datamodules import EuroSATDataModule, NonGeoDataModule
from torchgeo.datasets import EuroSAT

from explora_geo.adaptation import ExPLoRAConfig, trainable_names
from explora_geo.datamodules import FolderDataModule
from explora_geo.objectives import MAE
from explora_geo.trainers import PRESETS, ExPLoRATask, OptimConfig
from explora_geo.trainers.optim import training_length

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]
TILES = Path(__file__).parents[1] / 'data' / 'eurosat_ms'


class TileDataset(Dataset[dict[str, Tensor]]):
    """Labelled images in memory, in TorchGeo's form."""

    def __init__(self, split: str, label: Any, size: int) -> None:
        generator = torch.Generator().manual_seed(len(split))
        self.images = 255 * torch.rand(16, 3, size, size, generator=generator)
        self.label = label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {'image': self.images[index]}
        return sample if self.label is None else {**sample, 'label': self.label}


class TileDataModule(NonGeoDataModule):
    """A data module of a TorchGeo user."""

    def __init__(self, label: Any = None, size: int = 32) -> None:
        super().__init__(TileDataset, batch_size=8, num_workers=0, label=label, size=size)

    def setup(self, stage: str) -> None:
        self.train_dataset = TileDataset('train', **self.kwargs)
        self.val_dataset = TileDataset('val', **self.kwargs)


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    """Real 13-band tiles in the folders in which TorchGeo expects EuroSAT."""
    root = tmp_path / 'eurosat'
    tiles = [p for name in ('Forest', 'River') for p in sorted((TILES / name).glob('*.tif'))[:8]]
    for tile in tiles:
        folder = root / EuroSAT.base_dir / tile.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tile.name).symlink_to(tile)
    for split in ('train', 'val', 'test'):
        (root / f'eurosat-{split}.txt').write_text('\n'.join(p.stem + '.jpg' for p in tiles))
    return root


def weights_of(task: ExPLoRATask) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in task.state_dict().items()}


def test_a_folder_trains_and_only_what_trains_moves(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task = build_task()
    before = weights_of(task)
    trainer = build_trainer(max_epochs=2)
    trainer.fit(task, datamodule=build_data())
    assert trainer.global_step == 6
    names = set(trainable_names(task))
    still = {k for k, v in weights_of(task).items() if torch.equal(v, before[k])}
    assert still == set(before) - names
    assert torch.isfinite(trainer.callback_metrics['train_loss'])


def test_torchgeos_eurosat_trains_without_change(build_task: Task, build_trainer: Run, eurosat: Path) -> None:
    data = EuroSATDataModule(root=eurosat, bands=EuroSAT.rgb_bands, batch_size=8)
    task = build_task(img_size=64)
    trainer = build_trainer()
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 2
    assert {'val_loss', 'val_knn', 'val_knn_gain'} <= set(trainer.callback_metrics)
    assert 'resampled from 4x4 to 8x8' in task.load_report


def test_multi_band_images_train_a_new_patch_embedding(
    build_task: Task, build_trainer: Run, eurosat: Path
) -> None:
    data = EuroSATDataModule(root=eurosat, batch_size=8)
    adaptation = ExPLoRAConfig(rank=4, extra=('patch_embed',))
    task = build_task(img_size=64, bands=EuroSAT.all_band_names, adaptation=adaptation)
    before = weights_of(task)
    build_trainer().fit(task, datamodule=data)
    changed = {k for k, v in weights_of(task).items() if not torch.equal(v, before[k])}
    assert {'model.backbone.patch_embed.proj.weight', 'model.decoder.pred.weight'} <= changed


def test_labels_are_not_read_in_training(build_task: Task, build_trainer: Run) -> None:
    trained = []
    for label in (None, 3, torch.full((2, 2), torch.nan), 'poison'):
        seed_everything(1)
        task = build_task(monitor_features='none')
        build_trainer().fit(task, datamodule=TileDataModule(label))
        trained.append(weights_of(task))
    for other in trained[1:]:
        assert all(torch.equal(v, trained[0][k]) for k, v in other.items())


def test_the_monitor_compares_with_the_starting_weights(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    class Scores(Callback):
        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    scores = Scores()
    task = build_task()
    build_trainer(max_epochs=2, callbacks=[scores]).fit(task, datamodule=build_data())
    start = task.features.starting
    assert start is not None and 0 < start <= 1
    for row in scores.rows[1:]:
        assert row['val_knn'] - row['val_knn_gain'] == pytest.approx(start, abs=1e-6)
    assert 'val_knn' not in scores.rows[0]  # the check before training only sets the start
    without = build_task()
    build_trainer(max_epochs=2, num_sanity_val_steps=0).fit(without, datamodule=build_data())
    assert without.features.starting is None
    part = build_task()  # Lightning's own check of two batches says nothing of all of them
    build_trainer(num_sanity_val_steps=2).fit(part, datamodule=build_data())
    assert part.features.starting is None and part.features.latest is not None
    whole = build_task()
    build_trainer(num_sanity_val_steps=2).fit(whole, datamodule=build_data(batch_size=12))
    assert whole.features.starting is not None


def test_the_starting_score_is_that_of_the_starting_weights(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task = build_task()
    build_trainer(max_epochs=2).fit(task, datamodule=build_data())
    fresh = build_task()
    trainer = build_trainer()
    trainer.validate(fresh, datamodule=build_data(), verbose=False)
    assert trainer.callback_metrics['val_knn'] == pytest.approx(task.features.starting)


@pytest.mark.parametrize(
    'settings',
    [
        {'precision': 'bf16-mixed'},
        {'accumulate_grad_batches': 2},
        {'gradient_clip_val': 0.1},
        {'max_epochs': -1, 'max_steps': 4},
        {'fast_dev_run': True},
        {'limit_val_batches': 0},
    ],
    ids=str,
)
def test_trainer_settings_work_together_with_the_task(
    build_task: Task, build_data: Data, build_trainer: Run, settings: dict[str, Any]
) -> None:
    task = build_task()
    before = weights_of(task)
    trainer = build_trainer(**settings)
    trainer.fit(task, datamodule=build_data())
    after = weights_of(task)
    assert all(torch.isfinite(v).all() for v in after.values())
    assert not torch.equal(after['model.backbone.cls_token'], before['model.backbone.cls_token'])


def test_accumulation_counts_into_the_effective_batch_and_the_learning_rate(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task = build_task(optim=OptimConfig(base_lr=0.256, lr_scaling='linear', warmup_steps=0))
    trainer = build_trainer(accumulate_grad_batches=3, max_epochs=5)
    trainer.fit(task, datamodule=build_data())
    assert training_length(trainer).batch == 24 and trainer.global_step == 5
    assert trainer.optimizers[0].defaults['lr'] == pytest.approx(0.256 * 24 / 256)


def test_loaders_work_without_a_datamodule(build_task: Task, build_trainer: Run) -> None:
    task = build_task()
    loader = DataLoader(TileDataset('train', None, 32), batch_size=4)
    trainer = build_trainer()
    trainer.fit(task, loader)
    assert trainer.global_step == 4 and training_length(trainer).batch == 4


def test_gradient_checkpointing_trains_the_same_weights(build_task: Task, build_trainer: Run) -> None:
    trained = []
    for checkpointing in (False, True):
        seed_everything(1)
        task = build_task(grad_checkpointing=checkpointing)
        build_trainer().fit(task, datamodule=TileDataModule())
        trained.append(weights_of(task))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.group(name='long')
def test_a_compiled_backbone_trains_the_same_weights(
    build_task: Task, build_trainer: Run, build_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    # Graphs and gradients are what can go wrong here; kernels for them take minutes.
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager'))
    states = []
    for compiled in (False, True):
        seed_everything(0)
        task = build_task(compile_backbone=compiled)
        build_trainer(max_steps=2).fit(task, datamodule=build_data())
        states.append(task.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0


def test_the_optimizer_of_the_task_holds_exactly_what_trains(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task = build_task()
    trainer = build_trainer()
    trainer.fit(task, datamodule=build_data())
    held = {id(p) for g in trainer.optimizers[0].param_groups for p in g['params']}
    assert held == {id(p) for p in task.parameters() if p.requires_grad}


def test_full_pre_training_starts_from_random_weights(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task = build_task(weights=None, adaptation='full', objective=MAE, learned_position=False)
    assert 'random weights' in task.load_report and task.trainable_share > 0.9
    build_trainer(fast_dev_run=True).fit(task, datamodule=build_data())


def test_what_is_not_given_comes_from_the_preset(build_task: Task) -> None:
    for name in PRESETS:
        recipe = PRESETS[name]['M']
        task = build_task(preset=name, adaptation=None, optim=None)
        assert task.config == recipe.adaptation and task.optim == recipe.optim


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'weights': None}, 'an adaptation needs pre-trained weights'),
        ({'model': 'resnet18'}, 'unknown backbone'),
        ({'adaptation': '[9]'}, 'block 9 does not exist: .* 1 to L = 3'),
        ({'adaptation': 'D-ExPLoRA-[0]'}, 'cannot parse notation'),
        ({'model': 'vit_small_patch8_32'}, 'does not match a ViT of width 32 and 2 blocks'),
        ({'img_size': 36}, 'img_size=36, patch_size=8'),
        ({'patch_size': 16}, r'\(32, 3, 8, 8\), but the model expects \(32, 3, 16, 16\)'),
        ({'bands': ['red', 'nir']}, r'\(32, 3, 8, 8\), but the model expects \(32, 2, 8, 8\)'),
        ({'preset': 'mine'}, 'no preset'),
        ({'adapter_dtype': 'int8'}, "adapter_dtype must be float32 or bfloat16, got 'int8'"),
        ({'frozen_dtype': 'int8'}, "frozen_dtype must be float32 or bfloat16, got 'int8'"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_in_one_sentence(
    build_task: Task, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        build_task(**change)
    assert '\n' not in str(caught.value)


def test_images_of_another_size_are_refused_by_name(build_task: Task, build_trainer: Run) -> None:
    with pytest.raises(ValueError, match='built for 32x32 images, got 40x40'):
        build_trainer().fit(build_task(), datamodule=TileDataModule(size=40))


def test_two_runs_of_one_seed_are_equal(build_task: Task, build_data: Data, build_trainer: Run) -> None:
    trained = []
    for _ in range(2):
        seed_everything(5)
        task = build_task()
        build_trainer().fit(task, datamodule=build_data())
        trained.append(weights_of(task))
    assert all(torch.equal(v, trained[1][k]) for k, v in trained[0].items())


def test_prediction_gives_the_features_of_images(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task, data = build_task(), build_data()
    found = torch.cat(build_trainer().predict(task, datamodule=data))  # type: ignore[arg-type]
    data.setup('predict')
    images = torch.stack([data.predict_dataset[i]['image'] for i in range(3)])
    batch = (data.predict_aug or data.aug)({'image': images})
    with torch.no_grad():
        expected = task.backbone.eval()(batch['image']).patches.flatten(1, 2).mean(1)
    assert found.shape == (24, task.backbone.embed_dim)
    torch.testing.assert_close(found[:3], expected)


def test_bands_of_the_data_are_put_into_the_models_order(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    losses = []
    for bands in (['red', 'green', 'blue'], ['blue', 'red', 'green']):
        torch.manual_seed(0)
        task, data = build_task(), build_data(bands=bands)
        trainer = build_trainer()
        trainer.fit(task, datamodule=data)
        assert data.bands == ('red', 'green', 'blue') == task.backbone.patch_embed.bands
        losses.append(float(trainer.callback_metrics['val_loss']))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    with pytest.raises(ValueError, match=r"bands \['red'\] are missing: the model expects red, green, blue"):
        build_trainer().fit(build_task(), datamodule=build_data(bands=['green', 'blue']))
