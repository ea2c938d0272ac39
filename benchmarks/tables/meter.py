"""Seconds, energy and memory of a piece of work."""

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from .carbon import Energy, EnergyMeter

_LIBRARIES = ('torchgeo', 'lightning', 'timm')
_STATUS = Path('/proc/self/status')


@dataclass
class Meter:
    """Context that measures what happens in it.

    Attributes:
        devices: Indices of the GPUs whose energy counts.
        nodes: Nodes that do the same.
        seconds: Duration, known after it ends.
        peak_memory: Bytes: highest allocation on the GPU, else growth of the process.
        energy: Energy and carbon.
    """

    devices: Sequence[int] = (0,)
    nodes: int = 1
    seconds: float = 0.0
    peak_memory: int = 0
    energy: Energy | None = None
    _start: float = 0.0
    _before: int = 0
    _energy: EnergyMeter = field(init=False)

    def __enter__(self) -> Self:
        """Start."""
        self._energy = EnergyMeter(self.devices, self.nodes)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self._before = _reset_peak()
        self._energy.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Read the clocks."""
        self.seconds = time.perf_counter() - self._start
        self.energy = self._energy.stop(self.seconds)
        cuda = torch.cuda.is_available()
        self.peak_memory = torch.cuda.max_memory_allocated() if cuda else max(0, _peak() - self._before)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, JSON-ready."""
        assert self.energy is not None
        return {
            'seconds': round(self.seconds, 2),
            'peak_memory': self.peak_memory,
            'energy': self.energy._asdict(),
            'machine': describe_machine(),
        }


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
    from explora_geo import __version__

    cuda = torch.cuda.is_available()
    return {
        'hardware': {
            'device': torch.cuda.get_device_name() if cuda else f'CPU, {torch.get_num_threads()} threads',
            'system': f'{platform.system()} {platform.machine()}',
        },
        'versions': {
            'explora_geo': __version__,
            'python': platform.python_version(),
            'torch': torch.__version__,  # with the build for the device
            **{name: metadata.version(name) for name in _LIBRARIES},
        },
    }
