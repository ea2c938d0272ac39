"""Training loop of `adapt`: progress bar, cost accounting and resumable interruption."""

import copy
import ctypes
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from explora_geo._atomic import write_text
from explora_geo.adaptation import merge_lora
from explora_geo.models.vit import ViT

#: Folder of the CPUs' RAPL energy counters.
RAPL = Path('/sys/class/powercap')


def train(command: Any, watch: 'Watch') -> None:
    """Train a command's task to the end, from the last checkpoint if there is one.

    Ctrl-C saves the run, then raises KeyboardInterrupt.
    """
    log = watch.folder / 'metrics.csv'
    command.trainer.callbacks.append(watch)
    if log.is_file():  # Lightning's logger overwrites it
        log.rename(log.with_name(f'metrics_until_{int(time.time())}.csv'))
    handler, last = signal.getsignal(signal.SIGINT), watch.last if watch.last.is_file() else None
    try:
        command.trainer.fit(command.model, datamodule=command.datamodule, ckpt_path=last)
    finally:
        # Lightning would leave Ctrl-C disabled.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    if watch.asked:
        raise KeyboardInterrupt


class Watch(Callback):
    """Callback that shows progress, scores the run at intervals, saves it, and records each leg's cost.

    Ctrl-C sets `asked`: the run finishes the current step, is saved and stops; a second Ctrl-C stops it at
    once. The score has a log name and a title. If `times` is positive, `prepare` is called when training
    begins and returns the function that scores a backbone: the source first, then the run `times` times.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        title: str,
        prepare: Callable[[], Callable[[ViT], float | None]],
        times: int,
    ) -> None:
        """Initialize a Watch for the run whose checkpoints, log and `legs.json` are in a folder."""
        self.folder, self.last, self.times = folder, folder / 'last.ckpt', times
        self.asked, self.text = False, ''  # latest score, with the source's
        self._name, self._title, self._prepare = name, title, prepare
        self._first: float | None = None
        self._meter: EnergyMeter | None = None
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn('{task.description}'))
        self._bar = Progress(TextColumn('steps'), *columns, transient=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the source's score, for resumed runs."""
        return {'first': self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the source's score."""
        self._first = state_dict['first']

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the source, start the bar and clocks, and handle Ctrl-C until `train` restores it."""
        parts = max(self.times, 0) + 1
        self._due = {round(trainer.max_steps * i / parts) for i in range(1, parts)}
        if self._due:
            self._score = self._prepare()
            self._note(trainer, pl_module)
        self._task = self._bar.add_task('', total=trainer.max_steps, completed=trainer.global_step)
        self._bar.start()
        self._start, self._step, self._meter = time.perf_counter(), trainer.global_step, EnergyMeter()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._stop)

    def _stop(self, *unused: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *unused: Any) -> None:
        """Score if due, update the bar, read the energy meters before they wrap, and stop if asked to."""
        if trainer.global_step in self._due:
            self._due.discard(trainer.global_step)
            self._note(trainer, pl_module)
        known = trainer.callback_metrics
        texts = [f'loss {known["train_loss"]:.3f}'] if 'train_loss' in known else []
        texts += [f'{known["images_per_s"]:.0f} images/s'] if 'images_per_s' in known else []
        texts += [self.text] if self.text else []
        self._bar.update(self._task, completed=trainer.global_step, description=', '.join(texts))
        assert self._meter is not None
        self._meter.read()
        if self.asked:
            trainer.save_checkpoint(self.last)
            trainer.should_stop = True

    def _note(self, trainer: Trainer, task: Any) -> None:
        """Score a copy, which leaves the caches of the training backbone untouched."""
        value = self._score(merge_lora(copy.deepcopy(task.model.final_backbone)).eval())  # type: ignore[arg-type]
        if value is None:
            return
        self._first = value if self._first is None else self._first
        self.text = f'{self._title} {value:.3f} (source {self._first:.3f})'
        if trainer.logger is not None:
            trainer.logger.log_metrics({self._name: value}, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the leg and save a checkpoint, so that interrupted scoring does not repeat training."""
        self._end_leg(trainer)
        if not self.asked:
            trainer.save_checkpoint(self.last)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the terminal, and record an interrupted leg if it had begun."""
        self._bar.stop()
        if not isinstance(exception, OSError):  # a full disk
            self._end_leg(trainer)

    def _end_leg(self, trainer: Trainer) -> None:
        self._bar.stop()
        if self._meter is None or trainer.global_step == self._step:
            return
        steps, datamodule = trainer.global_step - self._step, trainer.datamodule  # type: ignore[attr-defined]
        leg = {
            'steps': steps,
            'images': steps * datamodule.batch_size,
            'seconds': time.perf_counter() - self._start,
            'watt_hours': self._meter.watt_hours,
        }
        write_text(self.folder / 'legs.json', json.dumps([*read_legs(self.folder), leg]))


def read_legs(folder: Path) -> list[dict[str, Any]]:
    """Return the legs that `Watch` recorded, if any."""
    file = folder / 'legs.json'
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else []


class EnergyMeter:
    """Meter of the energy used by the GPU (NVML) and CPUs (RAPL) since its creation, where readable.

    On a machine whose GPU has no meter it measures nothing: the CPUs are the smaller part.

    Attributes:
        kinds: Meters in use, such as `NVML+RAPL`; empty without any.
    """

    def __init__(self) -> None:
        """Initialize an EnergyMeter, and read the meters."""
        found = {'NVML': _nvml_meters(), 'RAPL': _rapl_meters()}
        if torch.cuda.is_available() and not found['NVML']:
            found = {}
        self.kinds = '+'.join(kind for kind, meters in found.items() if meters)
        self._meters = [meter for meters in found.values() for meter in meters]
        self._last, self._joules = [meter() for meter, _ in self._meters], 0.0

    def read(self) -> None:
        """Read the meters; call it more often than RAPL counters wrap, which takes half an hour or more."""
        now = [meter() for meter, _ in self._meters]
        for before, after, (_, size) in zip(self._last, now, self._meters, strict=True):
            self._joules += (after - before) % size if size else after - before
        self._last = now

    @property
    def watt_hours(self) -> float | None:
        """Watt-hours so far; None without a meter."""
        self.read()
        return self._joules / 3600 if self._meters else None


#: Function that reads joules, and the value at which its counter wraps, or 0.
Meter = tuple[Callable[[], float], float]


def _rapl_meters() -> list[Meter]:
    """Return the readable RAPL meters of whole CPU packages; names of sub-domains have two colons."""
    found: list[Meter] = []
    for folder in sorted(RAPL.glob('intel-rapl:[0-9]*')):
        counter = folder / 'energy_uj'
        try:
            size = int((folder / 'max_energy_range_uj').read_text()) / 1e6
            int(counter.read_text())
        except (OSError, ValueError):
            continue
        if folder.name.count(':') == 1:
            found.append((lambda counter=counter: int(counter.read_text()) / 1e6, size))  # type: ignore[misc]
    return found


def _nvml_meters() -> list[Meter]:
    """Return the meter of the current GPU, if it has one."""
    if not torch.cuda.is_available():
        return []
    try:
        library = ctypes.CDLL('libnvidia-ml.so.1')
        device, joules = ctypes.c_void_p(), ctypes.c_ulonglong()
        name = f'GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}'.encode()
    except (OSError, AttributeError):
        return []

    def read() -> float:
        failed = library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(joules))
        return float('nan') if failed else joules.value / 1e3

    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(device)):
        return []
    return [(read, 0.0)] if read() == read() else []
