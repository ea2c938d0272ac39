"""What `adapt` does while it trains: shows where it is, adds up what it costs, stops so that it can go on."""

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

#: RAPL counters of processors, whole packages.
RAPL = Path('/sys/class/powercap')


def train(command: Any, watch: 'Watch') -> None:
    """Train trainer, task and data module of a command from the last checkpoint, if there is one, to the end.

    Ctrl-C is a KeyboardInterrupt once the run is saved.
    """
    log = watch.folder / 'metrics.csv'
    command.trainer.callbacks.append(watch)
    if log.is_file():  # Lightning's logger starts it anew
        log.rename(log.with_name(f'metrics_until_{int(time.time())}.csv'))
    handler, last = signal.getsignal(signal.SIGINT), watch.last if watch.last.is_file() else None
    try:
        command.trainer.fit(command.model, datamodule=command.datamodule, ckpt_path=last)
    finally:
        # Lightning would leave Ctrl-C without effect.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    if watch.asked:
        raise KeyboardInterrupt


class Watch(Callback):
    """Shows where a run is, scores it on the way, saves it, and adds up what each leg of it costs.

    Ctrl-C, which sets `asked`, ends the run behind the step that is under way and saves it; a second one ends
    it at once. A score has a name in the log and a title; `prepare` is called once when training begins and
    returns what scores a backbone: the source, and the run as many `times`, if any.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        title: str,
        prepare: Callable[[], Callable[[ViT], float | None]],
        times: int,
    ) -> None:
        """Initialize a Watch of the run whose checkpoints, log and `legs.json` are in a folder."""
        self.folder, self.last, self.times = folder, folder / 'last.ckpt', times
        self.asked, self.text = False, ''  # the score so far beside that of the source
        self._name, self._title, self._prepare = name, title, prepare
        self._first: float | None = None
        self._meter: EnergyMeter | None = None
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn('{task.description}'))
        self._bar = Progress(TextColumn('steps'), *columns, transient=True)

    def state_dict(self) -> dict[str, Any]:
        """What the source scored, for a run that goes on."""
        return {'first': self._first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read it back."""
        self._first = state_dict['first']

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the source, start bar and clocks, and take Ctrl-C over; who trains gives it back."""
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
        """Score, show the step, read the meters before their counters start anew, and stop if asked to."""
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
        """Score a copy, so that caches of the backbone that trains stay as they are."""
        value = self._score(merge_lora(copy.deepcopy(task.model.final_backbone)).eval())  # type: ignore[arg-type]
        if value is None:
            return
        self._first = value if self._first is None else self._first
        self.text = f'{self._title} {value:.3f} (at first {self._first:.3f})'
        if trainer.logger is not None:
            trainer.logger.log_metrics({self._name: value}, step=trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the leg, and save what is done, so that nothing trains again if scoring is stopped."""
        self._end_leg(trainer)
        if not self.asked:
            trainer.save_checkpoint(self.last)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was, and note a leg that was cut off, if it had begun."""
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
    """What `Watch` has noted; nothing if it has not."""
    file = folder / 'legs.json'
    return json.loads(file.read_text(encoding='utf-8')) if file.is_file() else []


class EnergyMeter:
    """Energy since it was made, of the GPU (NVML) and the processors (RAPL), as far as meters can be read.

    Where the GPU has no meter there is none: processors are the smaller part.

    Attributes:
        kinds: Which meters are read, such as `NVML+RAPL`; empty without any.
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
        """Read the meters, more often than a counter of RAPL starts anew: after half an hour and more."""
        now = [meter() for meter, _ in self._meters]
        for before, after, (_, size) in zip(self._last, now, self._meters, strict=True):
            self._joules += (after - before) % size if size else after - before
        self._last = now

    @property
    def watt_hours(self) -> float | None:
        """Watt-hours so far; None without a meter."""
        self.read()
        return self._joules / 3600 if self._meters else None


#: Function that reads joules, and the joules after which it starts anew, or 0.
Meter = tuple[Callable[[], float], float]


def _rapl_meters() -> list[Meter]:
    """Meters of the processors' packages that this user may read; parts of packages have two colons."""
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
    """The meter of the GPU in use, if it has one."""
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
