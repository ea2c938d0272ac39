"""Energy and carbon: measured where the device reports it, else by the formula of Lacoste et al. (2019)."""

import ctypes
import os
from collections.abc import Iterator
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


def device_watts() -> tuple[float, str]:
    """Power that the formula takes for what trains here, and in words where it comes from."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found = next((w for part, w in WATTS.items() if part in name), None)
        watts = 300.0 if found is None else float(found)
        source = "its maker's limit" if found else 'assumed'
        return watts * torch.cuda.device_count(), f'{watts:.0f} W a GPU ({source})'
    threads = torch.get_num_threads()
    return CORE_WATTS * threads, f'{CORE_WATTS:.0f} W a core (assumed) x {threads}'


class EnergyMeter:
    """Reads counters of energy at the start and the end."""

    def __init__(self) -> None:
        """Initialize an EnergyMeter; nothing is read yet."""
        self._start: dict[str, float] = {}
        self._sharing = 1

    def start(self) -> None:
        """Note where the counters stand, and how many processes use them."""
        self._start, self._sharing = _counters(), _sharing()

    def stop(self, seconds: float, grid: float = GRID) -> Energy:
        """Energy since the start.

        Args:
            seconds: Time since then, for the formula.
            grid: kg CO2 per kWh.
        """
        now = _counters()
        used = {k: now[k] - v for k, v in self._start.items() if k in now and now[k] >= v}
        # A GPU's energy without that of its host is the larger part; a counter of processors alone is not.
        measured = [k for k in used if k.startswith('NVML' if torch.cuda.is_available() else 'RAPL')]
        if measured:
            kwh = sum(used[k] for k in used) / 3.6e6
            method = f'measured, {"+".join(sorted({k.split()[0] for k in used}))}'
            # A counter is that of the whole device; who took how much of it is not known.
            if (sharing := max(self._sharing, _sharing())) > 1:
                kwh, method = kwh / sharing, f'{method}, shared evenly by the processes on the GPU'
            return Energy(kwh, kwh * grid, method)
        watts, words = device_watts()
        kg = lacoste(watts, seconds / 3600, grid)
        return Energy(kg / grid, kg, f'formula, {words}')


def _counters() -> dict[str, float]:
    """Joules by counter."""
    return {**_rapl(), **(_nvml() if torch.cuda.is_available() else {})}


def _rapl() -> dict[str, float]:
    """Joules of the processor packages, where the system lets them be read."""
    found = {}
    for folder in sorted(_RAPL.glob('intel-rapl:*')) if _RAPL.is_dir() else []:
        counter = folder / 'energy_uj'
        if folder.name.count(':') == 1 and os.access(counter, os.R_OK):
            found[f'RAPL {folder.name}'] = int(counter.read_text()) / 1e6
    return found


def _nvml() -> dict[str, float]:
    """Joules of the GPUs that this process sees, by the driver's library."""
    found = {}
    for index, (library, handle) in enumerate(_gpus()):
        energy = ctypes.c_ulonglong()
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)) == 0:
            found[f'NVML {index}'] = energy.value / 1000
    return found


def _sharing() -> int:
    """Processes that compute on the busiest of the GPUs that this process sees; 1 where that is not known."""
    found = [1]
    for library, handle in _gpus() if torch.cuda.is_available() else ():
        count = ctypes.c_uint(0)
        # Asked for none of them, it says how many there are, and that they did not fit. Old drivers lack it.
        if ask := getattr(library, 'nvmlDeviceGetComputeRunningProcesses_v3', None):
            ask(handle, ctypes.byref(count), None)
        found.append(count.value)
    return max(found)


def _gpus() -> Iterator[tuple[Any, ctypes.c_void_p]]:
    """NVML and its handle of each GPU that this process sees; none without the library."""
    try:
        library: Any = ctypes.CDLL('libnvidia-ml.so.1')
    except OSError:
        return
    if library.nvmlInit_v2() != 0:
        return
    for index in range(torch.cuda.device_count()):
        handle = ctypes.c_void_p()
        uuid = f'GPU-{torch.cuda.get_device_properties(index).uuid}'.encode()
        if library.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)) == 0:
            yield library, handle
