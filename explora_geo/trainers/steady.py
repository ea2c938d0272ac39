"""Runs that can be stopped at any moment and go on as if they had not."""

import random
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from explora_geo._compat import BaseTask
from explora_geo.adaptation.frozen import convert_each_time
from explora_geo.trainers.checkpoint_io import install_checkpoint_io
from explora_geo.trainers.preemption import Preemption
from explora_geo.trainers.reproducer import write_reproducer


@runtime_checkable
class ResumableOrder(Protocol):
    """A loader that can be put at any batch of any epoch, as those of our data modules."""

    def state_dict(self) -> dict[str, Any]:
        """Epoch, its finished batches and the seed of the order."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class SteadyTask(BaseTask):
    """A task whose random state follows from its seed and the number of the batch.

    What is drawn for a batch - crops, masks, dropped paths - depends on neither what ran before, nor the
    number of workers, nor whether the run was stopped in between. Processes draw different numbers.
    """

    _seed: int | None = None
    _drawn = 0
    _validated = 0
    _ordered: int | None = None
    _buffers_before: Mapping[str, Tensor] = MappingProxyType({})

    def configure_callbacks(self) -> list[Callback]:
        """What saves a run that the system stops."""
        return [Preemption()]

    def setup(self, stage: str) -> None:
        """Have checkpoints written in one piece."""
        install_checkpoint_io(self.trainer)
        if isinstance(self.trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            convert_each_time(self)
        # Lightning tells that our hook is the one that counts, as it is meant.
        warnings.filterwarnings('ignore', message='You have overridden `on_before_batch_transfer`')

    def on_fit_start(self) -> None:
        """Settle the seed: the checkpoint's, else that of now."""
        if self._seed is None:
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())

    def on_train_start(self) -> None:
        """Put the loader at the place of the run: Lightning restores it only before the length is known."""
        loop, loader = self.trainer.fit_loop, self.trainer.train_dataloader
        batches = self.trainer.num_training_batches
        fetcher: Any = loop._data_fetcher
        if batches == float('inf') or fetcher is None:
            return  # a stream has no order to go on with
        epoch, done = divmod(loop.total_batch_idx + 1, int(batches))
        if isinstance(loader, ResumableOrder):
            place = {'epoch': epoch, 'batches': done, 'seed': self._seed}
            if loader.state_dict() != place:
                loader.load_state_dict(place)
                iter(fetcher)
        elif isinstance(loader, DataLoader):
            self._ordered = epoch
            self.draw_anew(3, epoch)
            samplers: list[Any] = [loader.sampler, getattr(loader.batch_sampler, 'sampler', None)]
            for sampler in samplers:
                if hasattr(sampler, 'set_epoch'):  # Lightning does so only when the epoch goes on
                    sampler.set_epoch(epoch)
            iter(fetcher)
            for _ in range(done):
                next(fetcher.iterator)

    def on_train_epoch_start(self) -> None:
        """Set the random state from which a loader that is not ours draws the order of an epoch."""
        if self.current_epoch != self._ordered:
            self.draw_anew(3, self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """Every validation draws the same numbers."""
        self._validated = 0

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Set the random state of a batch, before it is augmented."""
        if self.trainer.training:
            self.draw_anew(0, self.trainer.fit_loop.total_batch_idx + 1)
        elif self.trainer.validating or self.trainer.sanity_checking:
            self.draw_anew(1, self._validated)
            self._validated += 1
        return batch

    def draw_anew(self, purpose: int, number: int) -> None:
        """Set all random states.

        Args:
            purpose: What is drawn: 0 changes of training images, 1 validation, 2 a training step, 3 the
                order of an epoch.
            number: Number of the batch, or of the epoch.
        """
        rank = 0 if purpose == 3 else self.global_rank  # processes share one order
        entropy = (self._seed or 0, purpose, rank, number)
        self._drawn = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        seed_all(self._drawn)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the random state of a step, so that it can be repeated from the batch as it is now."""
        self.draw_anew(2, self.trainer.fit_loop.total_batch_idx)
        self._buffers_before = {k: v.clone() for k, v in self.named_buffers()}  # a step moves centres

    @property
    def buffers_before(self) -> dict[str, Tensor]:
        """Entries of the state dict that a step changes as it computes its loss, as they were before."""
        own = self.state_dict()
        return {k: v for k, v in self._buffers_before.items() if k in own}

    def check_finite(self, loss: Tensor, batch: Any) -> None:
        """Stop at a loss that is no number, and leave behind what repeats it.

        Args:
            loss: Loss of the batch, a scalar.
            batch: The batch.

        Raises:
            ValueError: If the loss is not finite.
        """
        if torch.isfinite(loss):
            return
        names, file = write_reproducer(self, batch, self._drawn)
        shown = ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
        raise ValueError(
            f'the loss is {loss.item()} at step {self.global_step} on {shown or "unnamed images"}: lower the '
            'learning rate, clip gradients (trainer.gradient_clip_val) or train in bf16-mixed instead of '
            f'16-mixed; {file} holds the step, repeat it with explora-geo fit --config YOURS --replay {file}'
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed."""
        checkpoint['random_seed'] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of the checkpoint."""
        self._seed = checkpoint.get('random_seed')


def seed_all(seed: int) -> None:
    """Set the random states of Python, NumPy and torch, on all devices.

    Args:
        seed: At least 0, below 2 to the 32.
    """
    random.seed(seed)
    np.random.seed(seed)
    # As torch.manual_seed, which looks for all kinds of devices each time: milliseconds.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
