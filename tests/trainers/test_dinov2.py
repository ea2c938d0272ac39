"""ExPLoRATask with the DINOv2 objective, in plain Lightning trainers."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from explora_geo.adaptation import trainable_names
from explora_geo.checkpoints import load_backbone, read_adapter, read_state
from explora_geo.datamodules import Augment, FolderDataModule
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import MAE, DINOv2, PhaseConfig
from explora_geo.trainers import PRESETS, CropLink, ExPLoRATask
from explora_geo.transforms import ViewsConfig

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]

SMALL: dict[str, Any] = {'phases': PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0)}
HEAD = HeadConfig(prototypes=24, hidden_dim=16, bottleneck_dim=8)


@pytest.fixture
def build_dino(build_task: Task) -> Task:
    """Build an `ExPLoRATask` of 3 blocks and width 32 with a small DINOv2 objective."""

    def build(**kwargs: Any) -> ExPLoRATask:
        return build_task(**{'objective': partial(DINOv2, head=HEAD, **SMALL), **kwargs})

    return build


def test_a_folder_trains_and_is_watched(build_dino: Task, build_data: Data, build_trainer: Run) -> None:
    task, data = build_dino(), build_data()
    trainer = build_trainer(max_epochs=2)
    trainer.fit(task, datamodule=data)
    assert trainer.global_step == 6
    assert {'val_knn', 'val_knn_gain', 'train_teacher_entropy', 'train_loss_ibot'} <= set(
        trainer.callback_metrics
    )
    assert torch.isfinite(trainer.callback_metrics['train_loss'])
    assert task.model.views == ViewsConfig(global_size=32, local_size=16)
    assert data.augment.views is None  # the objective's are its own


def test_views_of_one_run_do_not_stay_for_the_next(
    build_dino: Task, build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    class Keys(Callback):
        def __init__(self) -> None:
            self.seen: list[set[str]] = []

        def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, number: int) -> None:
            self.seen.append(set(batch) & {'image', 'views'})

    data, keys = build_data(), Keys()
    for task in (build_dino(), build_task(), build_dino()):
        build_trainer(fast_dev_run=True, callbacks=[keys]).fit(task, datamodule=data)
    assert keys.seen == [{'image', 'views'}, {'image'}, {'image', 'views'}]
    assert not torch.equal(*(data.train_aug({'image': torch.rand(1, 3, 32, 32)})['image'] for _ in range(2)))


def test_crops_of_crops_are_warned_of(
    build_dino: Task, build_task: Task, build_data: Data, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {'accelerator': 'cpu', 'fast_dev_run': True, 'default_root_dir': tmp_path}
    with pytest.warns(UserWarning, match=r'add CropLink\(\) to the trainer.s callbacks'):
        Trainer(**settings).fit(build_dino(), datamodule=build_data())
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*CropLink')
        Trainer(**settings).fit(build_task(), datamodule=build_data())
        Trainer(**settings, callbacks=[CropLink()]).fit(build_dino(), datamodule=build_data())


def test_the_datamodules_own_views_win(build_dino: Task, build_data: Data, build_trainer: Run) -> None:
    views = ViewsConfig(global_size=24, local_size=8, num_local=1)
    data = build_data(augment=Augment(views=views))
    build_trainer(fast_dev_run=True).fit(build_dino(), datamodule=data)
    assert data.augment.views == views


def test_backbone_and_heads_are_clipped_each_by_its_own_norm(
    build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    norms: list[dict[str, float]] = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Trainer, task: Any, optimizer: Any) -> None:
            parts = {'backbone': task.backbone, 'dino': task.model.dino_head, 'ibot': task.model.ibot_head}
            gradients = {k: [p.grad for p in m.parameters() if p.grad is not None] for k, m in parts.items()}
            if all(gradients.values()):
                norms.append({k: float(torch.nn.utils.get_total_norm(g)) for k, g in gradients.items()})

    objective = partial(DINOv2, head=HEAD, ibot_head=HEAD, **SMALL)
    task = build_task(objective=objective, adaptation='[L]-r4')
    build_trainer(max_epochs=2, gradient_clip_val=1e-3, callbacks=[Norms()]).fit(
        task, datamodule=build_data()
    )
    assert len(norms) > 3
    for row in norms[1:]:
        assert row == pytest.approx(dict.fromkeys(row, 1e-3), rel=0.01)


def test_batches_of_images_alone_are_enough(build_dino: Task, build_trainer: Run) -> None:
    loader = DataLoader([{'image': torch.randn(3, 32, 32)} for _ in range(8)], batch_size=4)
    trainer = build_trainer()
    trainer.fit(build_dino(), loader)
    assert trainer.global_step == 2 and torch.isfinite(trainer.callback_metrics['train_loss'])


def test_a_checkpoint_holds_what_trains_twice_and_nothing_frozen(
    build_dino: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    task = build_dino()
    trainer = build_trainer()
    trainer.fit(task, datamodule=build_data())
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    state = torch.load(tmp_path / 'last.ckpt', weights_only=True)['state_dict']
    trained = [n for n, p in task.model.student.named_parameters() if p.requires_grad]
    assert [k.removeprefix('model.teacher.parts.') for k in state if '.teacher.' in k] == trained
    assert {k for k in state if k.startswith('model.backbone.')} == {
        f'model.backbone.{n}' for n in trainable_names(task.backbone)
    }
    assert {'model.assign_cls.center.center', 'model.assign_patches.center.center'} <= set(state)


def test_the_adapter_is_the_teachers(
    build_dino: Task, build_data: Data, build_trainer: Run, base_file: Path, tmp_path: Path, images: Tensor
) -> None:
    task = build_dino()
    build_trainer(max_epochs=2).fit(task, datamodule=build_data())
    file = tmp_path / 'run' / 'adapter.safetensors'
    _, state = read_adapter(file)
    teacher, student = task.model.final_backbone.state_dict(), task.backbone.state_dict()
    assert all(torch.equal(v, teacher[k]) for k, v in state.items()) and 'mask_token' not in state
    assert not torch.equal(teacher['cls_token'], student['cls_token'])
    vit = load_backbone('vit_tiny_patch8_32', base_file, adapter=file)
    with torch.no_grad():
        torch.testing.assert_close(vit(images).cls, task.model.final_backbone(images).cls, atol=1e-5, rtol=0)


def test_full_training_leaves_the_teacher_and_its_heads_which_a_later_run_takes(
    build_dino: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    task = build_dino(weights=None, adaptation='full')
    build_trainer().fit(task, datamodule=build_data())
    file = tmp_path / 'run' / 'model.safetensors'
    state, _ = read_state(file)
    teacher = task.model.teacher.parts.state_dict()
    assert all(torch.equal(v, teacher[f'backbone.{k}']) for k, v in state.items() if 'head' not in k)
    later = build_dino(weights=str(file))
    assert later.load_report.endswith('43 of 43 tensors matched; dino_head loaded')
    for parts in (later.model.student, later.model.teacher.parts):
        assert torch.equal(parts['dino_head'].mlp[0].weight, teacher['dino_head.mlp.0.weight'])
    assert torch.equal(later.backbone.mask_token, teacher['backbone.mask_token'])
    assert not later.backbone.mask_token.requires_grad  # it was trained with the rest


def test_the_notation_names_the_objective(build_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {'head': HEAD, 'phases': PhaseConfig(freeze_last_layer_steps=7)}
    recipe = replace(PRESETS['paper-released']['D'], objective=small)
    monkeypatch.setitem(PRESETS['paper-released'], 'D', recipe)
    task = build_task(objective=None, adaptation='D-ExPLoRA-[L]-r4', preset='paper-released', optim=None)
    assert isinstance(task.model, DINOv2) and task.model.phases.freeze_last_layer.value == 7
    assert task.optim == recipe.optim and task.config.rank == 4
    rates = {block.drop_path1.drop_prob for block in task.backbone.blocks}
    assert rates == {0.3}
    assert isinstance(build_task(objective=None, adaptation='[L]-r4').model, MAE)


@pytest.mark.parametrize(
    'objective', [DINOv2, partial(DINOv2, head=HEAD), partial(partial(DINOv2), head=HEAD)]
)
def test_the_backbone_is_built_as_the_objective_needs_it(build_task: Task, objective: Any) -> None:
    task = build_task(objective=objective, drop_path_rate=0.2)
    assert task.backbone.mask_token is not None and task.backbone.patch_embed.dynamic_img_size
    assert {block.drop_path2.drop_prob for block in task.backbone.blocks} == {0.2}


def test_a_function_that_hides_its_objective_is_told_what_is_missing(build_task: Task) -> None:
    with pytest.raises(ValueError, match='mask_token=True and dynamic_img_size=True'):
        build_task(objective=lambda vit: DINOv2(vit, head=HEAD))
