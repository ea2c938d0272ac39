"""Seconds, memory and energy of a piece of work; energy where a meter reports it, else nothing."""

import ctypes
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch

from explora_geo._version import __version__

#: kg CO2 per kWh: the yearly mean of the OECD in 2014, which the calculator of Lacoste et al. (2019) offers.
GRID = 0.432
_RAPL = Path('/sys/class/powercap')
#: Seconds between readings; a package's counter goes round in ten minutes at 400 W.
_EVERY = 60.0
_STATUS = Path('/proc/self/status')


class Meter:
    """Context that measures what happens in it."""

    seconds: float = 0.0  # duration, known after it ends
    peak_memory: int = 0  # bytes: highest allocation on the GPU, else growth of the process
    # `kwh`, `kg` of CO2 and `method`, or None where no meter can be read
    energy: dict[str, Any] | None = None

    def __init__(self, devices: Sequence[int] = (0,), nodes: int = 1) -> None:
        """Initialize a Meter."""
        self.devices, self.nodes = devices, nodes
        self._lock, self._ended = threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        """Start."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._before = 0 if torch.cuda.is_available() else _reset_peak()
        self._last = read_joules(self.devices)
        self._used: dict[str, float] | None = dict.fromkeys(self._last, 0.0)
        threading.Thread(target=self._watch, daemon=True).start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        """Read the clocks."""
        self.seconds = time.perf_counter() - self._start
        cuda = torch.cuda.is_available()
        self.peak_memory = torch.cuda.max_memory_allocated() if cuda else max(0, _peak() - self._before)
        self._ended.set()
        self._read()
        if self._used:
            kwh = self.nodes * sum(self._used.values()) / 3.6e6
            kinds = '+'.join(sorted({key.split()[0] for key in self._used}))
            nodes = f' x {self.nodes} nodes' if self.nodes > 1 else ''
            self.energy = {'kwh': kwh, 'kg': kwh * GRID, 'method': f'measured, {kinds}{nodes}'}

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            self._read()

    def _read(self) -> None:
        """Add what was used since the last reading; a counter that cannot be followed spoils it all."""
        with self._lock:
            now = read_joules(self.devices)
            for key, (before, turn) in self._last.items():
                used = now[key][0] - before if key in now else -1.0
                used += turn if used < 0 and key in now else 0.0  # it went round
                if used < 0 or self._used is None:
                    self._used = None
                    return
                self._used[key] += used
            self._last = now

    def to_dict(self) -> dict[str, Any]:
        """Numbers, JSON-ready."""
        return {
            'seconds': round(self.seconds, 2),
            'peak_memory': self.peak_memory,
            'energy': self.energy,
            'machine': describe_machine(),
        }


def read_joules(devices: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Counters of energy: GPUs by the driver (NVML), else processor packages (RAPL) where they may be read.

    Where there is a GPU, counters of processors alone are not enough: they are the smaller part.
    """
    found: dict[str, tuple[float, float]] = {}
    for folder in sorted(_RAPL.glob('intel-rapl:*')):
        files = [folder / name for name in ('name', 'energy_uj', 'max_energy_range_uj')]
        # Others are parts of a package, or the whole computer with its packages.
        if all(os.access(f, os.R_OK) for f in files) and files[0].read_text().startswith('package'):
            joules, turn = (int(f.read_text()) / 1e6 for f in files[1:])
            found[f'RAPL {folder.name}'] = joules, turn
    if torch.cuda.is_available():
        gpus = dict(_nvml(devices))
        found = {**found, **gpus} if gpus else {}
    return found


def _nvml(devices: Sequence[int]) -> Iterator[tuple[str, tuple[float, float]]]:
    try:
        library: Any = ctypes.CDLL('libnvidia-ml.so.1')
    except OSError:
        return
    if library.nvmlInit_v2() != 0:
        return
    for index in devices:
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        uuid = f'GPU-{torch.cuda.get_device_properties(index).uuid}'.encode()
        if library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0:
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)) == 0:
                yield f'NVML {index}', (energy.value / 1000, 0.0)


def _reset_peak() -> int:
    """Forget the highest memory of the process so far, where the system allows, and return its memory."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        return _peak()
    return _status('VmRSS')


def _peak() -> int:
    if _STATUS.is_file():
        return _status('VmHWM')
    import resource  # other systems of its kind; bytes on macOS

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    """A line of the process's memory, bytes."""
    lines = _STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f'{name}:'))


def describe_machine() -> dict[str, Any]:
    """Device, threads and versions, for records."""
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
