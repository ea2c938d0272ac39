"""How long a run is, in the units that schedules are written in."""

from typing import NamedTuple

from lightning.pytorch import Trainer


class RunLength(NamedTuple):
    """Length of a run.

    Attributes:
        total: Optimiser steps.
        epochs: Epochs they make.
        batch: Images per optimiser step: batch size x accumulation x devices.
    """

    total: int
    epochs: int
    batch: int


def run_length(trainer: Trainer) -> RunLength:
    """Length of the run that a trainer is about to start.

    Raises:
        ValueError: If it has none.
    """
    steps = trainer.estimated_stepping_batches
    if not 0 <= steps < float('inf'):
        raise ValueError(
            'warm-up and cosine need the length of the run: give trainer.max_steps, or trainer.max_epochs '
            'with data of known length'
        )
    total = int(steps)
    epochs = trainer.max_epochs or 1
    per_epoch = steps_per_epoch(trainer)
    if trainer.max_steps > 0 and per_epoch:
        epochs = max(1, round(total / per_epoch))
    sources = (trainer.train_dataloader, getattr(trainer, 'datamodule', None))
    # Loaders with a batch sampler (TorchGeo's geo samplers) have no batch size of their own.
    size = next((n for n in (getattr(s, 'batch_size', None) for s in sources) if n), 1)
    return RunLength(total, epochs, size * trainer.accumulate_grad_batches * trainer.world_size)


def steps_per_epoch(trainer: Trainer) -> float:
    """Optimiser steps of an epoch of the run that a trainer is about to start; infinite without a length."""
    if trainer.train_dataloader is None:
        # Lightning asks for the loader later where `max_steps` alone ends the run.
        trainer.fit_loop.setup_data()
    return trainer.num_training_batches / trainer.accumulate_grad_batches
