"""What the downstream tasks share: weights, what trains, frozen tensors, checkpoints, files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_backbone, load_weights, merge_adapter, save_adapter, write_state
from explora_geo.configured import run
from explora_geo.datamodules import FolderDataModule
from explora_geo.models import create_vit
from explora_geo.trainers import ClassificationTask, OptimConfig, Regularization, load_task, save_task

MODEL = 'vit_tiny_patch8_32'
Build = Callable[..., Any]
OPTIM = OptimConfig(base_lr=0.01, lr_scaling='none', warmup_steps=0)


@pytest.fixture
def build(base_file: Path) -> Build:
    """Build a small classification task with three classes."""

    def call(**kwargs: Any) -> ClassificationTask:
        defaults: dict[str, Any] = {
            'model': MODEL,
            'weights': str(base_file),
            'num_classes': 3,
            'optim': OPTIM,
            'regularization': Regularization(drop_path=0),
        }
        return ClassificationTask(**{**defaults, **kwargs})

    return call


@pytest.mark.parametrize(
    ('tuning', 'trained'),
    [
        ('linear', set()),
        ('lora', {f'blocks.{i}.attn.qkv.lora_{m}.{s}' for i in range(3) for m in 'ab' for s in 'qv'}),
        ('full', None),
    ],
)
def test_exactly_what_the_mode_names_changes(
    build: Build,
    build_data: Callable[..., FolderDataModule],
    build_trainer: Callable[..., Trainer],
    tuning: str,
    trained: set[str] | None,
) -> None:
    task = build(tuning=tuning)
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    build_trainer().fit(task, datamodule=build_data())
    after = task.model.state_dict()
    changed = {k for k, v in before.items() if not torch.equal(after[k], v)}
    backbone = {k.removeprefix('backbone.') for k in changed if k.startswith('backbone.')}
    names = {n for n, _ in create_vit(MODEL).named_parameters()}
    assert {'head.weight', 'head.bias'} <= changed
    # The patch norm's bias of keys has no effect on attention; everything else moves.
    assert backbone == (names if trained is None else trained)


def test_layer_decay_slows_early_blocks(build: Build, build_trainer: Callable[..., Trainer]) -> None:
    from explora_geo.trainers.optim import build_optimizer

    task = build(tuning='full', optim=OptimConfig(base_lr=1.0, lr_scaling='none', layer_decay=0.5))
    optimizer = build_optimizer(task.model, task.optim, 8)
    rates = {id(p): g['lr'] for g in optimizer.param_groups for p in g['params']}
    vit = task.model.backbone
    found = [rates[id(p)] for p in (vit.pos_embed, *(b.norm1.weight for b in vit.blocks), vit.norm.weight)]  # type: ignore[union-attr]
    assert found == [0.5**4, 0.5**3, 0.5**2, 0.5, 1.0]
    assert rates[id(task.model.head.weight)] == 1.0


def test_plain_merged_and_base_with_adapter_start_from_the_same_features(
    build: Build, base_file: Path, tmp_path: Path, images: Tensor
) -> None:
    config = ExPLoRAConfig.parse('[L]-r4')
    vit = create_vit(MODEL)
    load_weights(vit, base_file)
    explora(vit, config)
    vit.blocks[0].attn.qkv.lora_b['v'].data += 0.5  # type: ignore[union-attr, operator, index]
    adapter, merged = tmp_path / 'a.safetensors', tmp_path / 'm.safetensors'
    save_adapter(adapter, vit, MODEL, config)
    merge_adapter(adapter, base_file, merged)
    expected = load_backbone(MODEL, base_file, adapter)(images).cls
    with torch.no_grad():
        for task in (build(adapter=str(adapter)), build(weights=str(merged), model=None)):
            assert task.hparams['model'] == MODEL
            assert_close(task.eval().model.backbone(images).cls, expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(build().eval().model.backbone(images).cls, expected, atol=1e-2)


@pytest.mark.parametrize('kind', ['group-channel', 'temporal'])
def test_any_tokenizer_is_tuned(small_names: None, tmp_path: Path, kind: Any) -> None:
    options: dict[str, Any] = {
        'group-channel': {'channel_groups': [['B02', 'B03', 'B04'], ['B8A']]},
        'temporal': {'num_frames': 2},
    }[kind]
    vit = create_vit(MODEL, tokenizer=kind, tokenizer_options=options)
    write_state(tmp_path / 'w.safetensors', vit.state_dict(), {})
    task = ClassificationTask(
        model=MODEL,
        weights=str(tmp_path / 'w.safetensors'),
        num_classes=2,
        tokenizer=kind,
        tokenizer_options=options,
        slots='concat',
    )
    image = torch.randn(2, 4, 32, 32) if kind == 'group-channel' else torch.randn(2, 2, 3, 32, 32)
    times = torch.tensor([[[12.0, 3, 9], [13, 4, 10]]]).expand(2, -1, -1) if kind == 'temporal' else None
    assert task(image, times).shape == (2, 2)
    save_task(tmp_path / 't.safetensors', task.eval())
    with torch.no_grad():
        assert_close(load_task(tmp_path / 't.safetensors')(image, times), task(image, times))


@pytest.fixture
def trained(
    build: Build, build_data: Callable[..., FolderDataModule], build_trainer: Callable[..., Trainer]
) -> ClassificationTask:
    task: ClassificationTask = build(
        regularization=Regularization(drop_path=0.1, label_smoothing=0.1, mixup=0.5, erasing=0.5)
    )
    trainer = build_trainer(enable_checkpointing=True, max_epochs=2)
    data = build_data()
    trainer.fit(task, datamodule=data)
    data.test_dataset = data.val_dataset
    trainer.test(task, dataloaders=data.val_dataloader(), verbose=False)
    return task.eval()


def test_a_run_leaves_report_model_and_pictures(trained: ClassificationTask, tmp_path: Path) -> None:
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['trainable'] == {'LoRA': 3 * 4 * 32 * 8, 'head': 32 * 3 + 3}
    assert report['steps'] == 6 and len(report['history']) == 2
    assert {
        'val_OverallAccuracy',
        'val_AverageAccuracy',
        'val_JaccardIndex',
        'val_F1Score',
        'val_loss',
    } <= set(report['history'][-1])
    assert 'test_OverallAccuracy' in report['test']
    assert Image.open(next((tmp_path / 'run' / 'pictures').glob('*.png'))).width > 100


def test_model_file_and_checkpoint_predict_alike_and_need_no_other_weights(
    trained: ClassificationTask, tmp_path: Path, images: Tensor
) -> None:
    file = tmp_path / 'run' / 'model.safetensors'
    checkpoint = next((tmp_path / 'run').rglob('*.ckpt'))
    with torch.no_grad():
        expected = trained.predict(trained(images))
        for path in (file, checkpoint):
            loaded = load_task(path)
            assert_close(loaded.predict(loaded(images)), expected, atol=1e-5, rtol=1e-4)
            assert loaded.data['classes'] == ['Forest', 'River', 'SeaLake']
            assert loaded.data['bands'] == ['red', 'green', 'blue'] and len(loaded.data['mean']) == 3
            assert not loaded.training


def test_a_checkpoint_resumes_without_the_starting_weights(
    trained: ClassificationTask,
    build: Build,
    tmp_path: Path,
    build_data: Callable[..., FolderDataModule],
    build_trainer: Callable[..., Trainer],
) -> None:
    checkpoint = next((tmp_path / 'run').rglob('*.ckpt'))
    task = build(weights=None)
    trainer = build_trainer(max_epochs=3)
    trainer.fit(task, datamodule=build_data(), ckpt_path=checkpoint, weights_only=True)
    assert trainer.global_step == 9


@pytest.mark.parametrize('yaml', [False, True])
def test_the_old_spelling_of_regularization_works(build: Build, tmp_path: Path, yaml: bool) -> None:
    with pytest.warns(FutureWarning, match='regularisation is deprecated, use regularization'):
        if yaml:
            (file := tmp_path / 'run.yaml').write_text(
                f'trainer: {{accelerator: cpu, logger: false, default_root_dir: {tmp_path}}}\n'
                f'model: {{class_path: explora_geo.trainers.ClassificationTask, init_args: {{model: {MODEL}, '
                'tuning: full, num_classes: 2, regularisation: {drop_path: 0.3}}}\n'
                'data: {class_path: explora_geo.datamodules.FolderDataModule, init_args: {root: tiles}}\n'
            )
            task = run(['fit', '--config', str(file)], start=False).model
        else:
            task = build(regularization=None, regularisation={'drop_path': 0.3})
    assert task.regularization == Regularization(drop_path=0.3)
    assert task.hparams['regularization']['drop_path'] == 0.3 and 'regularisation' not in task.hparams


def test_mistakes_are_named(
    build: Build,
    build_data: Callable[..., FolderDataModule],
    build_trainer: Callable[..., Trainer],
    base_file: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match='tuning must be one of linear, lora, full, explora'):
        build(tuning='half')
    with pytest.raises(ValueError, match='pass weights, or model to load a checkpoint'):
        build(weights=None, model=None)
    with pytest.raises(ValueError, match=r'adapter a\.safetensors needs the weights'):
        build(weights=None, adapter='a.safetensors')
    with pytest.raises(ValueError, match='tuning needs a pre-trained backbone'):
        build_trainer().fit(build(weights=None), datamodule=build_data())
    with pytest.raises(ValueError, match=r'not a tuned model, format explora_geo\.task is missing'):
        write_state(tmp_path / 'plain.safetensors', {'x': torch.zeros(1)}, {})
        load_task(tmp_path / 'plain.safetensors')
    with pytest.raises(FileNotFoundError, match='checkpoint not found'):
        load_task(tmp_path / 'missing.ckpt')
    (tmp_path / 'torn.ckpt').write_bytes(b'PK torn')
    with pytest.raises(ValueError, match=r'torn.*cannot be loaded safely'):
        load_task(tmp_path / 'torn.ckpt')
    with pytest.raises(ValueError, match="needs 'label' in every batch, got keys image"):
        build().validation_step({'image': torch.zeros(1, 3, 32, 32)}, 0)
