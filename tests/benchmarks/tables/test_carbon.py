"""Energy is measured where it is reported, else computed, and says which."""

import json
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from benchmarks.tables import carbon
from benchmarks.tables.carbon import EnergyMeter, device_watts, lacoste


def test_the_formula_is_power_times_hours_times_grid() -> None:
    # An A4000 for 320 hours on a grid of 0.5 kg/kWh
    assert lacoste(140, 320, 0.5) == pytest.approx(22.4)


def test_without_counters_the_formula_is_used_and_says_what_it_assumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carbon, '_RAPL', tmp_path / 'none')
    meter = EnergyMeter()
    meter.start()
    energy = meter.stop(3600.0, grid=0.4)
    assert energy.kwh == pytest.approx(10 * torch.get_num_threads() / 1000)
    assert energy.kg == pytest.approx(0.4 * energy.kwh)
    assert energy.method.startswith('formula, 10 W a core (assumed)')


def test_counters_of_the_processor_are_read_where_they_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The core is part of the first package, the whole computer holds both.
    for folder, name in zip('0 1 0:0 2'.split(), 'package-0 package-1 core psys'.split(), strict=True):
        (tmp_path / f'intel-rapl:{folder}').mkdir()
        (tmp_path / f'intel-rapl:{folder}' / 'name').write_text(f'{name}\n')
        (tmp_path / f'intel-rapl:{folder}' / 'max_energy_range_uj').write_text('5000000000')
        (tmp_path / f'intel-rapl:{folder}' / 'energy_uj').write_text('1000000')
    monkeypatch.setattr(carbon, '_RAPL', tmp_path)
    meter = EnergyMeter()
    meter.start()
    for folder in ('0', '0:0', '2'):
        (tmp_path / f'intel-rapl:{folder}' / 'energy_uj').write_text(str(1_000_000 + 3_600_000_000))
    (tmp_path / 'intel-rapl:1' / 'energy_uj').write_text('0')  # it went over its end: 4,999 J
    energy = meter.stop(1.0)
    assert energy.kwh == pytest.approx((3600 + 4999) / 3.6e6)
    assert energy.method == 'measured, RAPL'


def test_a_counter_that_goes_round_more_than_once_is_read_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carbon, '_EVERY', 0.01)
    monkeypatch.setattr(carbon, '_RAPL', tmp_path)
    stands = iter([0, 90, 30, 80, 10])  # of a counter of 100 J: 0, 90, 130, 180, 210
    last = [0]

    def counters() -> dict[str, carbon.Counter]:
        last[0] = next(stands, last[0])
        return {'RAPL intel-rapl:0': carbon.Counter(last[0], 100)}

    monkeypatch.setattr(carbon, '_rapl', counters)
    meter = EnergyMeter()
    meter.start()
    deadline = time.monotonic() + 30
    while last[0] != 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert meter.stop(1.0).kwh == pytest.approx(210 / 3.6e6)


def test_only_the_devices_that_train_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Library:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
            handle._obj.value = 1 + int(uuid[-1:])  # type: ignore[attr-defined]
            return 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, energy: object) -> int:
            energy._obj.value = stands[handle.value - 1]  # type: ignore[attr-defined]
            return 0

    stands = [0, 0, 0, 0]
    monkeypatch.setattr(carbon.ctypes, 'CDLL', lambda name: Library())
    monkeypatch.setattr(carbon, '_RAPL', tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    properties = {i: types.SimpleNamespace(uuid=str(i)) for i in range(4)}
    monkeypatch.setattr(torch.cuda, 'get_device_properties', properties.__getitem__)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA H100 80GB HBM3')
    meter = EnergyMeter([1, 2], nodes=2)
    meter.start()
    stands[:] = [10**9, 3_600_000, 7_200_000, 10**9]
    energy = meter.stop(1.0)
    assert energy.kwh == pytest.approx(2 * 0.003) and energy.method == 'measured, NVML x 2 nodes'
    assert device_watts(2) == (1400.0, "700 W a GPU (its maker's limit) x 2")


def test_the_drivers_counter_is_read_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    millijoules = [5_000_000]

    class Library:
        def nvmlInit_v2(self) -> int:
            return 0

        def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
            return 0 if uuid == b'GPU-abc' else 1

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, energy: object) -> int:
            energy._obj.value = millijoules[0]  # type: ignore[attr-defined]
            return 0

    class NewLibrary(Library):
        def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: object, count: object, them: None) -> int:
            count._obj.value = 4  # type: ignore[attr-defined]
            return 7

    monkeypatch.setattr(carbon.ctypes, 'CDLL', lambda name: Library())
    monkeypatch.setattr(carbon, '_RAPL', tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    properties = types.SimpleNamespace(uuid='abc')
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: properties)
    meter = EnergyMeter()
    meter.start()
    millijoules[0] += 7_200_000_000
    energy = meter.stop(1.0)
    assert energy.kwh == pytest.approx(2.0) and energy.method == 'measured, NVML'
    monkeypatch.setattr(carbon.ctypes, 'CDLL', lambda name: NewLibrary())
    meter.start()
    millijoules[0] += 7_200_000_000
    energy = meter.stop(1.0)
    assert energy.kwh == pytest.approx(0.5)  # side by side, nobody used it all
    assert energy.method == 'measured, NVML, shared evenly by the processes on the GPU'
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA RTX A4000')
    assert device_watts() == (140.0, "140 W a GPU (its maker's limit)")
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Unheard Of')
    assert device_watts() == (300.0, '300 W a GPU (assumed)')


_MEASURED = """
import json, torch
from benchmarks.tables.meter import Meter
with Meter() as meter:
    block = torch.ones(20_000_000)
    block += 1
print(json.dumps(meter.to_dict()))
"""


def test_a_meter_sees_time_and_memory() -> None:
    # In a process of its own, as one that held more before may have memory left to give.
    done = subprocess.run([sys.executable, '-c', _MEASURED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found['seconds'] > 0 and set(found['energy']) == {'kwh', 'kg', 'method'}
    if not torch.cuda.is_available():
        assert found['peak_memory'] > 40_000_000
