"""The queue for a GPU, rehearsed without one."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.tables import records


def test_what_is_packed_comes_back_whole_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root = tmp_path / 'data', tmp_path / 'root'
    data.mkdir()
    content = torch.randint(0, 256, (5000,), dtype=torch.uint8).numpy().tobytes()
    for name in ('a.zip', 'b.zip'):
        with zipfile.ZipFile(data / name, 'w') as held:
            held.writestr('pixels', content)
    (data / 'weights').mkdir()
    (data / 'weights/c.json').write_text('{}')
    monkeypatch.setattr(gpu, 'DATA', ('a.zip', 'b.zip', 'weights/c.json'))
    monkeypatch.setattr(gpu, 'PARCEL', 1_000_000)
    gpu.main(['pack', str(data), str(tmp_path / 'parcels')])
    parcels = sorted((tmp_path / 'parcels').iterdir())
    sizes = [sum(p.stat().st_size for p in parcel.iterdir()) for parcel in parcels]
    assert len(sizes) >= 4 and max(sizes) <= 1_000_000
    for parcel in reversed(parcels):
        gpu.main(['unpack', str(parcel), str(root)])
    for name in gpu.DATA:
        assert (root / 'data' / Path(name).name).read_bytes() == (data / name).read_bytes()
    assert (root / 'code/benchmarks/gpu.py').is_file() and not (root / 'code' / gpu._EMPTY).read_text()


def test_the_queue_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'x.json').write_text('{}')
    jobs = {
        'good': (60, ['json.tool', str(tmp_path / 'x.json')]),
        'bad': (60, ['json.tool', str(tmp_path / 'missing.json')]),
        'slow': (1, ['timeit', '-n', '1', '-r', '1', '__import__("time").sleep(30)']),
    }
    monkeypatch.setattr(gpu, 'queue', lambda *unused: jobs)
    for _ in range(2):
        gpu.run(tmp_path, tmp_path / 'out', 300, tiny=True)
    done = [json.loads(line)['name'] for line in (tmp_path / 'out/done.jsonl').read_text().splitlines()]
    told = capsys.readouterr().out
    assert done == ['good'] and told.count('good: done') == 1
    assert told.count('bad: exit code 2') == 2 and told.count('slow: timed out') == 2


def test_every_job_of_the_queue_is_short_and_can_be_called(tmp_path: Path) -> None:
    jobs = gpu.queue(tmp_path, tmp_path, tiny=False)
    assert max(seconds for seconds, _ in jobs.values()) <= 480


@pytest.mark.group(name='long')
@pytest.mark.parametrize('kind', ['dinov2', 'mae'])
def test_a_step_is_traced_and_variants_are_timed(kind: str, tmp_path: Path) -> None:
    gpu.main(['trace', kind, str(tmp_path), '--tiny'])
    found = (tmp_path / f'trace_{kind}.txt').read_text()
    assert 'ms with the profiler' in found and 'addmm' in found
    gpu.main(['steps', kind, str(tmp_path), '--tiny'])
    (row,) = records.read(tmp_path / 'speed' / 'speed.jsonl')
    ends = {name.partition('-r32')[2] or name for name in row['columns']['images/s']}
    assert ends >= {', stochastic depth 0.3', 'explora_geo, all weights'} and row['setting']['batch'] == 2


_THERE = """
import importlib, sys, types

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('rasterio', 'geopandas', 'pyproj', 'typer'):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import explora_geo
emptied = types.ModuleType('explora_geo.trainers')
emptied.__path__ = [f'{explora_geo.__path__[0]}/trainers']
sys.modules['explora_geo.trainers'] = emptied
for name in ('gpu', 'study.running', 'speed.engine'):
    importlib.import_module(f'benchmarks.{name}')
"""


def test_the_queue_needs_no_reader_of_rasters() -> None:
    subprocess.run([sys.executable, '-c', _THERE], check=True, timeout=120)
