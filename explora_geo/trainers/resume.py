"""Runs that can be interrupted at any time and resume as if they had not been."""

import logging
import random
import signal
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from explora_geo._atomic import atomic_path
from explora_geo._compat import BaseTask, BatchNorm, data_fetcher, many_graphs, slurm_requeue_signal
from explora_geo.adaptation.frozen import convert_each_time
from explora_geo.trainers.artifacts import Artifacts, AtomicCheckpointIO, run_folder
from explora_geo.trainers.guard import StepClock

logger = logging.getLogger(__name__)


class Stream(IntEnum):
    """Independent random-number streams, one per purpose."""

    AUGMENTATION = 0
    VALIDATION = 1
    STEP = 2
    ORDER = 3


class RunScope(Callback):
    """Callback that saves a run when it is told to stop, and restores global process state at its end.

    Lightning stops a run at the end of the step in which SIGTERM arrived; this callback saves it. When Slurm
    signals the end of a job, Lightning would save at once, in mid-step, a state that no run can resume; here
    the save waits until all processes have completed the step. Random states, warning filters and the limits
    of `torch.compile` are restored when the run ends.
    """

    def __init__(self) -> None:
        """Save the random states; a task creates this callback when its run begins."""
        self._changes = ExitStack()
        self._changes.enter_context(isolate_rng(include_cuda=torch.cuda.is_initialized()))
        self._requeue: Any = None
        self._pending: tuple[Any, ...] | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Enter the contexts that end with the run, before the task sets its own filters."""
        self._changes.enter_context(warnings.catch_warnings())
        if pl_module.hparams.get('compile_backbone'):
            self._changes.enter_context(many_graphs())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the requeue signal if Slurm sends one."""
        number = slurm_requeue_signal(trainer)
        if number is not None:
            self._requeue, self._step = signal.getsignal(number), trainer.global_step
            signal.signal(number, self._note)

    def _note(self, *received: Any) -> None:
        self._pending = received

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Handle the requeue signal once all processes know of it and a step is complete."""
        if self._requeue is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self._pending is not None, all=False):
            received, self._pending = self._pending or (None, None), None
            self._requeue(*received)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo all changes."""
        self._changes.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save a terminated run beside its checkpoints, or else in its folder.

        Lightning tears nothing down after an error, so changes are undone here, too.
        """
        with self._changes:
            if isinstance(exception, SIGTERMException) and trainer.global_step:
                keeper = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoint)), None)
                file = f'{getattr(keeper, "dirpath", None) or run_folder(trainer)}/last.ckpt'
                trainer.save_checkpoint(file)
                told = 'the run was interrupted and saved at step %d: resume with --ckpt_path %s'
                logger.warning(told, trainer.global_step, file)


class ReproducibleTask(BaseTask):
    """Task whose random state depends only on its seed and the batch number.

    Random draws for a batch (crops, masks, dropped paths) do not depend on what ran before, the number of
    workers, or whether the run was interrupted. Processes draw different numbers.

    Attributes:
        clock: Timer for steps and loader waits.
        skipped: Reasons by path for tiles that the loader could not read.
    """

    _seed: int | None = None
    _validated = 0
    _ordered: int | None = None
    #: Batch, flags of a non-finite loss here and in any process, shape (2,), and the event of their copy.
    _check: tuple[Any, Tensor, torch.cuda.Event | None] | None = None
    _averages: tuple[Tensor, ...] = ()
    _kept_averages: tuple[Tensor, ...] = ()

    def __init__(self) -> None:
        """Initialize a ReproducibleTask."""
        self.clock, self.skipped = StepClock(), dict[str, str]()
        super().__init__()

    def configure_callbacks(self) -> list[Callback]:
        """Return callbacks that save an interrupted run, restore the process, and write the outputs."""
        return [RunScope(), Artifacts()]

    def setup(self, stage: str) -> None:
        """Make checkpoint writes atomic."""
        strategy = self.trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # keeps any other that was given
            strategy.checkpoint_io = AtomicCheckpointIO()
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
            convert_each_time(self)
        # Lightning warns that our hook takes precedence, as intended.
        warnings.filterwarnings('ignore', message='You have overridden `on_before_batch_transfer`')

    def on_fit_start(self) -> None:
        """Set the seed (the checkpoint's, else the current one) and collect batch-norm running averages."""
        if self._seed is None:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())
        norms = [module for module in self.modules() if isinstance(module, BatchNorm)]
        running = [average for norm in norms for average in (norm.running_mean, norm.running_var)]
        self._averages = tuple(average for average in running if average is not None)
        self._kept_averages = tuple(average.clone() for average in self._averages)

    def on_train_start(self) -> None:
        """Move the loader to the run's position; Lightning restores it only before the length is known."""
        loader: Any = self.trainer.train_dataloader
        batches, fetcher = self.trainer.num_training_batches, data_fetcher(self.trainer)
        if batches == float('inf') or fetcher is None:
            return  # a stream has no order to resume
        epoch, done = divmod(self.trainer.fit_loop.total_batch_idx + 1, int(batches))
        if hasattr(loader, 'load_state_dict'):  # as the loaders of our data modules do
            place = {'epoch': epoch, 'batches': done, 'seed': self._seed}
            if loader.state_dict() != place:
                loader.load_state_dict(place)
                iter(fetcher)
        elif isinstance(loader, DataLoader):
            self._ordered = epoch
            self.reseed(Stream.ORDER, epoch)
            samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
            for sampler in samplers:
                if hasattr(sampler, 'set_epoch'):  # Lightning does so only when the epoch advances
                    sampler.set_epoch(epoch)
            iter(fetcher)
            for _ in range(done):
                next(fetcher.iterator)

    def on_train_epoch_start(self) -> None:
        """Set the random state from which third-party loaders draw the epoch's order."""
        self.clock.pause()  # time between epochs does not count as a slow step
        if self.current_epoch != self._ordered:
            self.reseed(Stream.ORDER, self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Reset the batch count, so that every validation draws the same numbers."""
        self._validated = 0
        self.clock.pause()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Seed a batch before augmentation, and record the tiles that it lacks."""
        for entry in batch.get('skipped', ()) if isinstance(batch, Mapping) else ():
            path, _, reason = entry.partition(': ')
            self.skipped.setdefault(path, reason)
        if self.trainer.training:
            self.clock.go_on()
            self.reseed(Stream.AUGMENTATION, self.trainer.fit_loop.total_batch_idx + 1)
        elif self.trainer.validating or self.trainer.sanity_checking:
            self.reseed(Stream.VALIDATION, self._validated)
            self._validated += 1
        return batch

    def reseed(self, stream: Stream, number: int) -> None:
        """Seed all generators for a batch number or, with `Stream.ORDER`, for an epoch number."""
        rank = 0 if stream is Stream.ORDER else self.global_rank  # processes share one order
        entropy = (self._seed or 0, int(stream), rank, number)
        seed_all(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed a step, and copy the running averages that its forward pass updates in place."""
        self.reseed(Stream.STEP, self.trainer.fit_loop.total_batch_idx)
        for average, kept in zip(self._averages, self._kept_averages, strict=True):
            kept.copy_(average)

    def on_train_batch_end(self, *args: Any) -> None:
        """Start timing the wait for the loader."""
        self.clock.wait()

    def log_step(
        self, loss: Tensor, batch: Mapping[str, Any], parts: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Tensor:
        """Log a loss and its parts, the learning rate and the speed; check the loss and return it."""
        self.check_finite(loss, batch)
        size = len(batch['image'])
        self.log('train_loss', loss.detach(), batch_size=size, prog_bar=True)
        self.log_dict({f'train_{k}': v.detach() for k, v in parts.items()}, batch_size=size)
        self.log('lr', self.trainer.optimizers[0].param_groups[0]['lr'], batch_size=size)
        for name, value in self.clock.lap(size * self.trainer.world_size).items():
            mean = name == 'data_wait'
            self.log(name, value, batch_size=size, prog_bar=not mean, on_step=not mean, on_epoch=mean)
        return loss

    def check_finite(self, loss: Tensor, batch: Any) -> None:
        """Start a check of the loss, which `on_after_backward` completes before the optimizer step.

        The result is copied while the device computes gradients, so that nothing waits for the device.
        """
        bad = (~torch.isfinite(loss.detach())).float().repeat(2)
        if self.trainer.world_size > 1 and dist.is_initialized():
            dist.all_reduce(bad[1], dist.ReduceOp.MAX)  # all processes stop together
        there = None
        if bad.is_cuda:
            bad = bad.to('cpu', non_blocking=True)
            there = torch.cuda.Event()
            there.record()
        self._check = batch, bad, there

    def on_after_backward(self) -> None:
        """Raise `ValueError` at a non-finite loss, after saving the batch and a checkpoint from before it."""
        if self._check is None:
            return
        (batch, bad, there), self._check = self._check, None
        if there is not None:
            there.synchronize()  # already done: the gradient kernels are queued behind it
        own, anyone = bad.bool().tolist()
        if anyone:
            raise ValueError(self._save_evidence(batch, own))

    def _save_evidence(self, batch: Any, own: bool) -> str:
        """Save the batch and the state before it; return a sentence that says so."""
        for average, kept in zip(self._averages, self._kept_averages, strict=True):
            average.copy_(kept)
        folder, step = run_folder(self.trainer), self.global_step
        said = f'the loss is not finite in another process at step {step}: see its message'
        if own:
            loader: Any = self.trainer.train_dataloader
            names = list(loader.names()) if hasattr(loader, 'names') else []
            file = folder / f'batch_{step:06d}_rank_{self.global_rank}.pt'
            # Other entries could not be read back without running code.
            plain = {k: v for k, v in batch.items() if isinstance(v, Tensor | list)}
            with atomic_path(file) as temporary:
                content = {'step': step, 'files': names, 'batch': move_data_to_device(plain, 'cpu')}
                torch.save(content, temporary)
            shown = ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
            said = (
                f'the loss is not finite at step {step} on {shown or "unnamed images"}: lower the learning '
                'rate, clip gradients (trainer.gradient_clip_val) or train in bf16-mixed instead of '
                f'16-mixed; the batch is saved to {file}'
            )
        if not self.trainer.strategy.reduce_boolean_decision(_all_finite(self), all=True):
            return f'{said}; the weights are not finite either{self._advice()}'
        # A resumed run repeats the abandoned step: its batches count as not started.
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        half_done = progress.current.completed % self.trainer.accumulate_grad_batches
        for counts in (progress.total, progress.current):
            done = counts.completed - half_done
            counts.ready = counts.started = counts.processed = counts.completed = done
        progress.is_last_batch = False
        self.trainer.save_checkpoint(folder / 'last_good.ckpt')
        return f'{said}; the run before this step is saved to {folder / "last_good.ckpt"}'

    def _advice(self) -> str:
        """Name the latest checkpoint, which holds finite weights, if there is one."""
        files = [
            Path(path)
            for keeper in self.trainer.checkpoint_callbacks
            for name in ('last_model_path', 'best_model_path')
            if (path := getattr(keeper, name, '')) and Path(path).exists()
        ]
        newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
        return f'; resume from {newest}' if newest else ''

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the seed.

        Raises:
            ValueError: If weights are not finite; the previous checkpoint then remains the last one.
        """
        if not _all_finite(self):
            raise ValueError(
                f'the weights are not finite at step {self.global_step} and were not saved: lower the '
                f'learning rate or clip gradients (trainer.gradient_clip_val){self._advice()}'
            )
        checkpoint['random_seed'] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the seed from the checkpoint."""
        self._seed = checkpoint.get('random_seed')


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, on all devices, with a seed below 2 to the 32."""
    random.seed(seed)
    np.random.seed(seed)
    # Like torch.manual_seed, which spends milliseconds looking for devices each time.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def _all_finite(task: LightningModule) -> bool:
    """Return whether all values of a task are finite, in one read from the device; shards count locally."""
    tensors = [
        value.to_local() if isinstance(value, DTensor) else value for value in task.state_dict().values()
    ]
    found = [torch.isfinite(value).all() for value in tensors if isinstance(value, Tensor) and value.numel()]
    return not found or bool(torch.stack([flag.to(found[0].device) for flag in found]).all())
