"""What `adapt` chooses by measurement: precision, images in a batch, processes that read, number of steps."""

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

#: Batches that are tried on a GPU, upward as long as the step before gained; the first is the recipes' own.
BATCHES = (64, 128, 256)
#: Share of the run, and seconds, that the steps of each further trial may take.
SHARE, MOST = 0.02, 20.0
# Gain in images per second that is worth a larger batch, or processes that read.
_GAIN = 1.1
# Share of the time spent waiting for images that processes that read could win back.
_WAIT = 0.05
#: Steps that are timed, after one that is not: the first allocates.
TIMED = 3
# Batches that make an epoch, at least: in fewer, an order says little.
_BATCHES_OF_EPOCH = 4


class Trial(NamedTuple):
    """Some real steps of a model that is thrown away."""

    batch_size: int
    workers: int  # processes that read images
    seconds: float  # median of a step
    waited: float  # share of them spent waiting for images, in [0, 1]
    memory: float = 0.0  # share of the GPU's memory that was taken at most; 0 without a GPU

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.batch_size / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON-ready values."""
        return {**self._asdict(), 'images_per_second': self.rate}


def settle(
    settings: dict[str, Any], stated: Mapping[str, Any], found: Archive, length: Length
) -> tuple[dict[str, Any], list[Trial]]:
    """Choose by measurement what is not stated; returns all settings, and trials, the chosen one first.

    On a GPU a batch grows while that gains a tenth in images per second, as long as memory, the archive and
    the time allow. Processes that read are tried where training waits for images. Runs that are too short for
    that keep the recipe's.
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
    timed = 2 * readers + TIMED  # beyond the batches that were read before the first step
    waits = 'num_workers' not in given and best.waited > _WAIT
    if waits and readers and (timed + 1) * best.seconds <= allowed:
        trials.append(try_steps(settings, best.batch_size, readers, timed))
        best = trials[-1] if trials[-1].rate > _GAIN * best.rate else best
    steps = steps_of(best)
    for callback in trainer['callbacks']:
        if callback['class_path'].endswith('ModelCheckpoint'):  # about every minute, so that little is lost
            every = max(1, min(steps // 4, int(60 / best.seconds)))
            callback['init_args'].setdefault('every_n_train_steps', every)
    trainer |= {'max_steps': steps, 'log_every_n_steps': max(1, min(50, steps // 40))}
    chosen = _with_data(settings, best.batch_size, best.workers)
    return chosen, [best, *(t for t in trials if t is not best)]


def _with_data(settings: dict[str, Any], batch_size: int, workers: int) -> dict[str, Any]:
    """Settings with a batch and a number of processes that read."""
    init = {**settings['data']['init_args'], 'batch_size': batch_size, 'num_workers': workers}
    return {**settings, 'data': {**settings['data'], 'init_args': init}}


def _first_that_fits(settings: dict[str, Any], stated: bool) -> Trial:
    """The first trial: of the recipe's batch, or half of it as often as memory wants."""
    init = settings['data']['init_args']
    batch = init.get('batch_size', 1)
    while True:
        try:
            return try_steps(settings, batch, init.get('num_workers', 0))
        except torch.OutOfMemoryError as error:
            if stated or batch == 1:
                raise ValueError(
                    f'a batch of {batch} images of {settings["model"]["init_args"]["img_size"]} px does not '
                    'fit into the memory: give a smaller data.init_args.batch_size, or weights of a smaller '
                    'model'
                ) from error
        torch.cuda.empty_cache()
        batch = math.ceil(batch / 2)


class _StepTimes(Callback):
    """When steps end, and how long all of them waited for images."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.waits: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *unused: Any) -> None:
        """Note the time, once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        self.waits.append(pl_module.clock.waited)  # type: ignore[union-attr, arg-type]


def try_steps(settings: dict[str, Any], batch_size: int, workers: int, steps: int = TIMED) -> Trial:
    """Time so many real steps, of many the second half, of a model that is thrown away."""
    cuda = torch.cuda.is_available()
    with TemporaryDirectory() as scratch:
        trainer = {**settings['trainer'], 'logger': False, 'default_root_dir': scratch, 'callbacks': []}
        trainer |= {'max_steps': steps + 1, 'enable_checkpointing': False}
        command = prepare(_with_data({**settings, 'trainer': trainer}, batch_size, workers))
        clock = _StepTimes()
        command.trainer.callbacks.append(clock)
        command.trainer.fast_dev_run = True  # reports of a trial are not wanted
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
    """Trainer, task and data module of settings, as `explora-geo fit` makes them, but silent."""
    trainer = {**settings['trainer'], 'enable_progress_bar': False, 'enable_model_summary': False}
    # The folder of the run has a configuration already.
    options = {'subcommand': 'fit', 'fit': {**settings, 'trainer': trainer}}
    return lightning(options, start=False, save_config_callback=None)
