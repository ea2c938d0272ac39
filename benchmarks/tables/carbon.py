"""Energy and carbon: measured where the device reports it, else by the formula of Lacoste et al. (2019)."""

import ctypes
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: kg CO2 per kWh: the yearly mean of the OECD in 2014, which the calculator of Lacoste et al. offers.
GRID = 0.432
#: Watts by a part of the device's name: what its maker states as the highest for long.
WATTS = {
    'H200': 700,
    'H100 PCIe': 350,
    'H100': 700,
    'A100': 400,
    'V100': 300,
    'RTX 6000 Ada': 300,
    'A4000': 140,
    'L40S': 350,
    'L4': 72,
    'T4': 70,
    'RTX 4090': 450,
    'RTX 3090': 350,
}
#: Watts of a processor core that is busy, where nothing better is known.
CORE_WATTS = 10.0
_RAPL = Path('/sys/class/powercap')
#: Seconds between readings; a package's counter goes round in ten minutes at 400 W.
_EVERY = 60.0


class Energy(NamedTuple):
    """Energy of a piece of work.

    Attributes:
        kwh: Kilowatt hours.
        kg: Kilograms of CO2 by the grid's carbon.
        method: How the energy is known.
    """

    kwh: float
    kg: float
    method: str


class Counter(NamedTuple):
    """Where a counter of energy stands.

    Attributes:
        joules: Its value.
        range: Joules after which it starts from zero; 0 if it does not.
    """

    joules: float
    range: float = 0.0


def lacoste(watts: float, hours: float, grid: float = GRID) -> float:
    """Carbon by power x hours x carbon of the grid.

    Args:
        watts: Power of the device.
        hours: Device hours.
        grid: kg CO2 per kWh.

    Returns:
        kg CO2.
    """
    return watts / 1000 * hours * grid


def device_watts(devices: int = 1) -> tuple[float, str]:
    """Power that the formula takes for what trains here, and in words where it comes from.

    Args:
        devices: GPUs that train, or processes on the CPU.
    """
    times = f' x {devices}' if devices > 1 else ''
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found = next((w for part, w in WATTS.items() if part in name), None)
        watts = 300.0 if found is None else float(found)
        source = "its maker's limit" if found else 'assumed'
        return watts * devices, f'{watts:.0f} W a GPU ({source}){times}'
    threads = torch.get_num_threads()
    return CORE_WATTS * threads * devices, f'{CORE_WATTS:.0f} W a core (assumed) x {threads}{times}'


class EnergyMeter:
    """Reads counters of energy at the start, every minute, and at the end: a processor's go round."""

    def __init__(self, devices: Sequence[int] = (0,), nodes: int = 1) -> None:
        """Initialize an EnergyMeter; nothing is read yet.

        Args:
            devices: Indices of the GPUs that train on a node.
            nodes: Nodes that train; the others are taken to use as much as this one.
        """
        self.devices, self.nodes = devices, nodes
        self._last: dict[str, Counter] = {}
        self._used: dict[str, float] = {}
        self._sharing: dict[str, int] = {}
        self._lock, self._ended = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Note where the counters stand, and how many processes use them."""
        self._last, self._sharing = self._counters(), _sharing(self.devices)
        self._used = dict.fromkeys(self._last, 0.0)
        self._ended = threading.Event()
        if any(counter.range for counter in self._last.values()):
            threading.Thread(target=self._watch, args=(self._ended,), daemon=True).start()

    def stop(self, seconds: float, grid: float = GRID) -> Energy:
        """Energy since the start.

        Args:
            seconds: Time since then, for the formula.
            grid: kg CO2 per kWh.
        """
        self._ended.set()
        self._read()
        nodes = f' x {self.nodes} nodes' if self.nodes > 1 else ''
        # A GPU's energy without that of its host is the larger part; a counter of processors alone is not.
        kind = 'NVML' if torch.cuda.is_available() else 'RAPL'
        if any(key.startswith(kind) for key in self._used):
            method = f'measured, {"+".join(sorted({k.split()[0] for k in self._used}))}{nodes}'
            # A counter is that of the whole device; who took how much of it is not known.
            now = _sharing(self.devices)
            sharing = {k: max(1, self._sharing.get(k, 1), now.get(k, 1)) for k in self._used}
            if max(sharing.values()) > 1:
                method += ', shared evenly by the processes on the GPU'
            kwh = self.nodes * sum(joules / sharing[k] for k, joules in self._used.items()) / 3.6e6
            return Energy(kwh, kwh * grid, method)
        watts, words = device_watts(len(self.devices))
        kg = self.nodes * lacoste(watts, seconds / 3600, grid)
        return Energy(kg / grid, kg, f'formula, {words}{nodes}')

    def _counters(self) -> dict[str, Counter]:
        return {**_rapl(), **(_nvml(self.devices) if torch.cuda.is_available() else {})}

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_EVERY):
            self._read()

    def _read(self) -> None:
        """Add what was used since the last reading; a counter that cannot be followed is left out."""
        with self._lock:
            now = self._counters()
            for key in list(self._used):
                if key not in now:
                    del self._used[key]
                    continue
                used = now[key].joules - self._last[key].joules
                used += now[key].range if used < 0 else 0
                if used < 0:
                    del self._used[key]
                else:
                    self._used[key] += used
            self._last = now


def _rapl() -> dict[str, Counter]:
    """Counters of the processor packages, where the system lets them be read."""
    found = {}
    for folder in sorted(_RAPL.glob('intel-rapl:*')) if _RAPL.is_dir() else []:
        files = [folder / name for name in ('name', 'energy_uj', 'max_energy_range_uj')]
        # Others are parts of a package, or the whole computer with its packages.
        if all(os.access(f, os.R_OK) for f in files) and files[0].read_text().startswith('package'):
            joules, full = (int(f.read_text()) / 1e6 for f in files[1:])
            found[f'RAPL {folder.name}'] = Counter(joules, full)
    return found


def _nvml(devices: Sequence[int]) -> dict[str, Counter]:
    """Counters of GPUs, by the driver's library."""
    found = {}
    for index, library, handle in _gpus(devices):
        energy = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)) == 0:
            found[f'NVML {index}'] = Counter(energy.value / 1000)
    return found


def _sharing(devices: Sequence[int]) -> dict[str, int]:
    """Processes that compute on each of the GPUs; without those where that is not known."""
    found = {}
    for index, library, handle in _gpus(devices) if torch.cuda.is_available() else ():
        count = ctypes.c_uint(0)
        # Asked for none of them, it says how many there are, and that they did not fit. Old drivers lack it.
        if ask := getattr(library, 'nvmlDeviceGetComputeRunningProcesses_v3', None):
            ask(handle, ctypes.byref(count), None)
            found[f'NVML {index}'] = count.value
    return found


def _gpus(devices: Sequence[int]) -> Iterator[tuple[int, Any, ctypes.c_void_p]]:
    """Index of each GPU, NVML and its handle; none without the library."""
    try:
        library: Any = ctypes.CDLL('libnvidia-ml.so.1')
    except OSError:
        return
    if library.nvmlInit_v2() != 0:
        return
    for index in devices:
        handle = ctypes.c_void_p()
        uuid = f'GPU-{torch.cuda.get_device_properties(index).uuid}'.encode()
        if library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0:
            yield index, library, handle
