"""Time, memory and energy of a piece of work; energy only where a meter reports it."""

import platform
import resource
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch

from explora_geo._adapt_progress import EnergyMeter
from explora_geo._version import __version__

#: kg CO2 per kWh: the OECD's yearly mean of 2014, offered by the calculator of Lacoste et al. (2019).
GRID = 0.432
#: Seconds between readings; a package's counter wraps around in ten minutes at 400 W.
_EVERY = 60.0
_STATUS = Path('/proc/self/status')


class Meter:
    """Context manager that measures one device and assumes that the others use as much."""

    seconds: float = 0.0  # duration, known on exit
    peak_memory: int = 0  # bytes: peak allocation on the GPU, else growth of the process
    energy: dict[str, Any] | None = None  # `kwh`, `kg` of CO2 and `method`, or None without a meter

    def __init__(self, devices: int = 1) -> None:
        """Initialize a Meter."""
        self.devices, self._ended = devices, threading.Event()

    def __enter__(self) -> Self:
        """Start measuring."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._before = 0 if torch.cuda.is_available() else _reset_peak()
        self._meter = EnergyMeter()
        self._watch = threading.Thread(target=self._read, daemon=True)
        self._watch.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop measuring."""
        self.seconds = time.perf_counter() - self._start
        cuda = torch.cuda.is_available()
        self.peak_memory = torch.cuda.max_memory_allocated() if cuda else max(0, _peak() - self._before)
        self._ended.set()
        self._watch.join()
        found = self._meter.watt_hours
        if found is not None:
            kwh, many = self.devices * found / 1000, f' x {self.devices}' if self.devices > 1 else ''
            self.energy = {'kwh': kwh, 'kg': kwh * GRID, 'method': f'measured, {self._meter.kinds}{many}'}

    def _read(self) -> None:
        while not self._ended.wait(_EVERY):
            self._meter.read()

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements, JSON-ready."""
        return {
            'seconds': round(self.seconds, 2),
            'peak_memory': self.peak_memory,
            'energy': self.energy,
            'machine': describe_machine(),
        }


def _reset_peak() -> int:
    """Reset the process's peak memory, where the system allows, and return its current memory."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return _peak()
    return _status('VmRSS')


def _peak() -> int:
    if _STATUS.is_file():
        return _status('VmHWM')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _status(name: str) -> int:
    """Return one line of the process's memory status, bytes."""
    lines = _STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f'{name}:'))


def describe_machine() -> dict[str, Any]:
    """Return device, threads and versions for records."""
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f'CPU, {torch.get_num_threads()} threads'
    versions = {
        'explora_geo': __version__,
        'python': platform.python_version(),
        'torch': torch.__version__,  # with the build for the device
        **{name: metadata.version(name) for name in ('torchgeo', 'lightning', 'timm')},
    }
    system = f'{platform.system()} {platform.machine()}'
    return {'hardware': {'device': device, 'system': system}, 'versions': versions}
