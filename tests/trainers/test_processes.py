"""Two processes learn what one learns from a batch twice as large, and say so when one of them dies."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import RandomSampler

from explora_geo.datamodules import FolderDataModule, Statistics
from explora_geo.datamodules.loader import EpochSampler, ResumableLoader
from explora_geo.models.heads import HeadConfig
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, DINOv2, PhaseConfig, TeacherConfig, dinov2
from explora_geo.trainers import ExPLoRATask, optim
from explora_geo.transforms import ViewsConfig
from tests.trainers import steady_run
from tests.trainers.ranks import run
from tests.trainers.steady_run import build

Sample = dict[str, Tensor]
STEPS = 4
ROOT = Path(__file__).parents[2]


class FixedMAE(MAE):
    """Masked autoencoding whose masks follow from the images."""

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        noise = self.backbone.patch_embed.patchify(batch['image']).sum(-1).flatten(1)
        out = self.reconstruct(batch['image'], noise)
        return {'loss_mae': self.loss(batch['image'], out.pred, out.mask)}


class HalvedKoLeo(torch.nn.Module):
    """KoLeo of each process: every other image."""

    def __init__(self, koleo: torch.nn.Module, world: int) -> None:
        super().__init__()
        self.koleo, self.world = koleo, world

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.koleo(x[i :: self.world]) for i in range(self.world)]).mean()


class Fixed(DINOv2):
    """Self-distillation whose crops and masks follow from the images, with KoLeo of parts of a batch."""

    def __init__(self, backbone: ViT, parts: int, **kwargs: Any) -> None:
        super().__init__(backbone, **kwargs)
        self.koleo = HalvedKoLeo(self.koleo, parts)

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        image = batch['image']
        views = [torch.cat([image, image.flip(-1)]), image[..., :8, :8]]

        def masks(*args: Any, **kwargs: Any) -> Tensor:
            # One crop of eight has masked tokens, as many as its image says: often a process has none.
            pixels = self.backbone.patch_embed.patchify(views[0]).sum(-1)
            marked = (batch['number'] % 8 == 1).repeat(2)[:, None, None]
            return (pixels > pixels.mean(-1, keepdim=True)) & marked

        with patch.object(dinov2, 'block_masks', masks):
            return super().forward({'views': views}, step)


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs['loss']))


def sgd(model: torch.nn.Module, *args: Any) -> torch.optim.Optimizer:
    """Unlike AdamW it does not make steps of full length out of rounding errors."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def images() -> list[Sample]:
    """Thirty-two images of 16 px."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(32, 3, 16, 16, generator=generator).cumsum(-1) / 3
    return [{'image': image, 'number': torch.tensor(i)} for i, image in enumerate(drawn)]


def objective(kind: str, parts: int) -> Any:
    """An objective; KoLeo of so many parts of a batch."""
    if kind == 'mae':
        return partial(FixedMAE, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    head = HeadConfig(12, 8, 4)
    return partial(
        Fixed,
        parts=parts,
        head=head,
        ibot_head=head if 'heads' in kind else None,
        teacher=TeacherConfig(momentum=0.9, centering='sinkhorn' if 'sinkhorn' in kind else 'centering'),
        views=ViewsConfig(global_size=16, local_size=8, num_local=1),
        phases=PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0),
    )


def learn(kind: str, folder: str, batch: int, parts: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and return losses and weights."""
    seed_everything(3, verbose=False)
    task = build(kind, objective=objective(kind, parts), drop_path_rate=0.0)
    losses = Losses()
    options: dict[str, Any] = {
        'accelerator': 'cpu',
        'max_steps': STEPS,
        'logger': False,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
        'default_root_dir': folder,
        'callbacks': [losses],
        'gradient_clip_val': 1.0,
    }
    before = {k: v.clone() for k, v in task.state_dict().items()}
    with patch.object(optim, 'build_optimizer', sgd):
        trainer = Trainer(**{**options, **settings})
        sampler = EpochSampler(RandomSampler(images()), 3, trainer.world_size, trainer.global_rank)
        trainer.fit(task, ResumableLoader(images(), batch_size=batch, sampler=sampler))
    state = {k: whole(v) for k, v in task.state_dict().items()}
    moved = max(float((v - before[k]).abs().max()) for k, v in state.items())
    return {'losses': losses.values, 'weights': state, 'moved': moved}


def whole(value: Tensor) -> Tensor:
    """A tensor that may be spread over processes, in one piece."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def assert_same(found: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    assert 1e-2 < expected['moved'] < 1
    together = torch.tensor([one['losses'] for one in found]).mean(0)
    torch.testing.assert_close(together, torch.tensor(expected['losses']), atol=1e-5, rtol=1e-5)
    for one in found:
        assert set(one['weights']) == set(expected['weights'])
        for name, value in expected['weights'].items():
            torch.testing.assert_close(one['weights'][name], value, atol=1e-5, rtol=1e-5, msg=name)


KINDS = ['mae', 'dinov2', 'dinov2 sinkhorn', 'dinov2 heads']


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_learn_what_one_learns_of_twice_the_batch(tmp_path: Path, kind: str) -> None:
    two = {'devices': 2, 'strategy': 'ddp'}
    found = run(learn, tmp_path, kind, str(tmp_path), 4, 1, two)
    assert_same(found, learn(kind, str(tmp_path), 8, 2, {'devices': 1}))


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    options = {'devices': 1, 'accumulate_grad_batches': 2}
    found = learn('mae', str(tmp_path), 4, 1, options)
    pairs = torch.tensor(found['losses']).unflatten(0, (-1, 2)).sum(1)  # each is divided by two already
    expected = learn('mae', str(tmp_path), 8, 1, {'devices': 1})
    assert_same([{**found, 'losses': pairs.tolist()}], expected)


class Poison(Callback):
    """Makes the third batch of the second process infinite."""

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, number: int) -> None:
        if trainer.global_rank == 1 and number == 2:
            batch['image'][0] = float('inf')


def stop(folder: str) -> str:
    """Train until the loss is not finite, and return what is said of it."""
    settings = {'devices': 2, 'strategy': 'ddp', 'callbacks': [Poison()]}
    with pytest.raises(ValueError, match='not finite') as caught:
        learn('mae', folder, 4, 1, settings)
    return str(caught.value)


@pytest.mark.slow
def test_all_processes_stop_at_the_loss_of_one_that_is_not_finite(tmp_path: Path) -> None:
    first, second = run(stop, tmp_path, str(tmp_path))
    assert first.startswith('the loss is not finite in another process at step 2')
    assert second.startswith('the loss is not finite at step 2 on')
    assert (tmp_path / 'batch_000002_rank_1.pt').is_file() and not (
        tmp_path / 'batch_000002_rank_0.pt'
    ).exists()
    assert torch.load(tmp_path / 'last_good.ckpt', weights_only=True)['global_step'] == 2


def evaluate(folder: str, settings: dict[str, Any]) -> dict[str, float]:
    """Validate the starting weights, and return the metrics."""
    seed_everything(3, verbose=False)
    task = build('mae', objective=objective('mae', 1), monitor_features='knn')
    statistics = Statistics('imagenet', 'imagenet')
    tiles = {'root': f'{folder}/tiles', 'val_root': f'{folder}/tiles', 'statistics': statistics}
    data = FolderDataModule(**tiles, image_size=16, batch_size=4)  # type: ignore[arg-type]
    quiet = {'logger': False, 'enable_progress_bar': False, 'enable_checkpointing': False}
    trainer = Trainer(accelerator='cpu', default_root_dir=folder, **quiet, **settings)
    trainer.validate(task, data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize('odd', [False, True])
def test_validation_is_that_of_all_processes(steady_folder: Path, odd: bool) -> None:
    if odd:  # one process is given an image twice, which must not be its own neighbor
        next((steady_folder / 'tiles' / 'Forest').iterdir()).unlink()
    found = run(evaluate, steady_folder, str(steady_folder), {'devices': 2, 'strategy': 'ddp'})
    expected = evaluate(str(steady_folder), {'devices': 1})
    assert 0.5 < expected['val_knn'] and expected['val_loss'] > 0
    for metrics in found:
        assert metrics['val_knn'] == expected['val_knn']
        if not odd:
            assert metrics['val_loss'] == pytest.approx(expected['val_loss'], rel=1e-5)


class Sharded(ExPLoRATask):
    """A task whose blocks and the rest of which are sharded over the processes by `fully_shard`."""

    def configure_model(self) -> None:
        mesh = self.device_mesh['data_parallel']
        for block in (*self.backbone.blocks, *self.model.decoder.blocks):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def configure_callbacks(self) -> list[Callback]:
        """None: the files of a run's end are made of whole tensors."""
        return []


def learn_sharded(folder: str) -> dict[str, Any]:
    """Train with sharded parameters, and return losses and whole weights."""
    with patch.object(steady_run, 'ExPLoRATask', Sharded):
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        found = learn('mae', folder, 4, 1, {'devices': 2, 'strategy': strategy, 'gradient_clip_val': None})
    return found


@pytest.mark.slow
def test_sharded_parameters_learn_the_same(tmp_path: Path) -> None:
    found = run(learn_sharded, tmp_path, str(tmp_path))
    assert_same(found, learn('mae', str(tmp_path), 8, 1, {'devices': 1, 'gradient_clip_val': None}))


@pytest.mark.group(name='long')
def test_two_hosts_of_torchrun_train_together(tiles: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    launch = [sys.executable, '-m', 'torch.distributed.run', '--nnodes=2', '--nproc-per-node=1']
    meet = ['--rdzv-backend=c10d', f'--rdzv-endpoint=127.0.0.1:{port}', '--rdzv-id=1']
    local = ['--local-addr=127.0.0.1', '-m', 'explora_geo', 'fit']
    config = ['--config=tests/conf/pretrain_mae_folder.yaml', f'--data.root={tiles}', '--data.batch_size=4']
    few = [f'--data.val_root={tiles}', '--trainer.limit_val_batches=0', '--trainer.enable_progress_bar=false']
    hosts = ['--trainer.accelerator=cpu', '--trainer.devices=1', '--trainer.num_nodes=2']
    where = ['--trainer.strategy=ddp', '--trainer.logger=false', f'--trainer.default_root_dir={tmp_path}']
    command = [*launch, *meet, *local, *config, *few, *hosts, *where]
    settings = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    both = [subprocess.Popen(command, cwd=ROOT, env=settings, stderr=subprocess.PIPE) for _ in range(2)]
    said = [host.communicate(timeout=240)[1].decode() for host in both]
    assert [host.returncode for host in both] == [0, 0], said
    assert any('GLOBAL_RANK: 1, MEMBER: 2/2' in text for text in said)
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['steps'] == 3  # twenty-four tiles, two processes, four tiles a step
