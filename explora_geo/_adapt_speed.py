"""Settings that `adapt` chooses by measurement: precision, batch size, data-loading workers, steps."""

import itertools
import math
import os
import statistics
import time
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from explora_geo._adapt_settings import Length
from explora_geo.configured import run as lightning
from explora_geo.datamodules.archive import Archive
from explora_geo.devices import faster_precision

#: Batch sizes to try on a GPU, upward while the previous one gained; the first is the recipes' default.
BATCHES = (64, 128, 256)
#: Largest share of the run, and largest number of seconds, for the steps of each further trial.
SHARE, MOST = 0.02, 20.0
# Speed-up in images per second that justifies a larger batch, or workers.
_GAIN = 1.1
# Share of time spent waiting for images above which workers are tried.
_WAIT = 0.05
#: Timed steps, after an untimed first one that allocates memory.
TIMED = 3
# Fewest batches per epoch: with fewer, shuffling has little effect.
_BATCHES_OF_EPOCH = 4


class Trial(NamedTuple):
    """Timing of some real steps of a discarded model."""

    batch_size: int
    workers: int  # data-loading processes
    seconds: float  # median per step
    waited: float  # share of the time spent waiting for images, in [0, 1]
    memory: float = 0.0  # peak share of GPU memory; 0 without a GPU

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.batch_size / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {**self._asdict(), 'images_per_second': self.rate}


def settle(
    settings: dict[str, Any], stated: Mapping[str, Any], found: Archive, length: Length
) -> tuple[dict[str, Any], list[Trial]]:
    """Measure settings that are not stated; return all settings, and the trials with the chosen one first.

    On a GPU the batch grows while images per second rise by a tenth and memory, archive and time allow.
    Workers are tried if training waits for images. Runs too short for trials keep the recipe's values.
    """
    trainer = {'precision': faster_precision(), **settings['trainer']}
    settings = {**settings, 'trainer': trainer}
    given = (stated.get('data') or {}).get('init_args') or {}

    def steps_of(trial: Trial) -> int:
        return trainer.get('max_steps') or length.steps(found.images, trial.batch_size, trial.seconds)

    best = _first_that_fits(settings, 'batch_size' in given)
    trials, allowed = [best], min(MOST, SHARE * steps_of(best) * best.seconds)
    if 'batch_size' not in given and torch.cuda.is_available():
        for larger in (b for b in BATCHES if b > best.batch_size):
            times = larger / best.batch_size
            late = (TIMED + 1) * best.seconds * times > allowed
            if late or found.images < _BATCHES_OF_EPOCH * larger or best.memory * times > 0.5:
                break
            try:
                trials.append(try_steps(settings, larger, best.workers))
            except torch.OutOfMemoryError:
                break
            if trials[-1].rate < _GAIN * best.rate:
                break
            best = trials[-1]
    readers = min(8, (os.cpu_count() or 1) // 2)
    timed = 2 * readers + TIMED  # more than the batches prefetched before the first step
    waits = 'num_workers' not in given and best.waited > _WAIT
    if waits and readers and (timed + 1) * best.seconds <= allowed:
        trials.append(try_steps(settings, best.batch_size, readers, timed))
        best = trials[-1] if trials[-1].rate > _GAIN * best.rate else best
    steps = steps_of(best)
    for callback in trainer['callbacks']:
        if callback['class_path'].endswith('ModelCheckpoint'):  # about every minute, to lose little work
            every = max(1, min(steps // 4, int(60 / best.seconds)))
            callback['init_args'].setdefault('every_n_train_steps', every)
    trainer |= {'max_steps': steps, 'log_every_n_steps': max(1, min(50, steps // 40))}
    chosen = _with_data(settings, best.batch_size, best.workers)
    return chosen, [best, *(t for t in trials if t is not best)]


def _with_data(settings: dict[str, Any], batch_size: int, workers: int) -> dict[str, Any]:
    """Return settings with a batch size and a number of workers."""
    init = {**settings['data']['init_args'], 'batch_size': batch_size, 'num_workers': workers}
    return {**settings, 'data': {**settings['data'], 'init_args': init}}


def _first_that_fits(settings: dict[str, Any], stated: bool) -> Trial:
    """Run the first trial with the recipe's batch size, halved until it fits in memory."""
    init = settings['data']['init_args']
    batch = init.get('batch_size', 1)
    while True:
        try:
            return try_steps(settings, batch, init.get('num_workers', 0))
        except torch.OutOfMemoryError as error:
            if stated or batch == 1:
                raise ValueError(
                    f'a batch of {batch} images of {settings["model"]["init_args"]["img_size"]} px does not '
                    'fit in memory: lower data.init_args.batch_size, or use weights of a smaller model'
                ) from error
        torch.cuda.empty_cache()
        batch = math.ceil(batch / 2)


class _StepTimes(Callback):
    """Callback that records when steps end, and the cumulative wait for images."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *unused: Any) -> None:
        """Record the time once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.waits.append(pl_module.clock.waited)  # type: ignore[union-attr, arg-type]


def try_steps(settings: dict[str, Any], batch_size: int, workers: int, steps: int = TIMED) -> Trial:
    """Time real steps of a discarded model; of more than `TIMED` steps only the second half counts."""
    cuda = torch.cuda.is_available()
    with TemporaryDirectory() as scratch:
        trainer = {**settings['trainer'], 'logger': False, 'default_root_dir': scratch, 'callbacks': []}
        trainer |= {'max_steps': steps + 1, 'enable_checkpointing': False}
        command = prepare(_with_data({**settings, 'trainer': trainer}, batch_size, workers))
        clock = _StepTimes()
        command.trainer.callbacks.append(clock)
        command.trainer.fast_dev_run = True  # suppresses the reports of a trial
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        command.trainer.fit(command.model, datamodule=command.datamodule)
    memory = torch.cuda.max_memory_allocated() / torch.cuda.mem_get_info()[1] if cuda else 0.0
    first = 0 if steps <= TIMED else steps // 2
    ends, waits = clock.ends[first:], clock.waits[first:]
    seconds = statistics.median(b - a for a, b in itertools.pairwise(ends))
    waited = min(1.0, (waits[-1] - waits[0]) / max(ends[-1] - ends[0], 1e-9))
    return Trial(batch_size, workers, seconds, waited, memory)


def prepare(settings: dict[str, Any]) -> Any:
    """Make trainer, task and data module from settings as `explora-geo fit` does, but silently."""
    trainer = {**settings['trainer'], 'enable_progress_bar': False, 'enable_model_summary': False}
    # The run folder already has a configuration.
    options = {'subcommand': 'fit', 'fit': {**settings, 'trainer': trainer}}
    return lightning(options, start=False, save_config_callback=None)
