"""The queue for a GPU, rehearsed without one."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_what_is_packed_comes_back_whole_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, root = tmp_path / 'data', tmp_path / 'root'
    data.mkdir()
    content = torch.randint(0, 256, (5000,), dtype=torch.uint8).numpy().tobytes()
    for name in ('a.zip', 'b.zip'):
        with zipfile.ZipFile(data / name, 'w') as held:
            held.writestr('pixels', content)
    (data / 'c.json').write_text('{}')
    monkeypatch.setattr(gpu, 'DATA', ('a.zip', 'b.zip', 'c.json'))
    monkeypatch.setattr(gpu, 'PARCEL', 3000)
    gpu.main(['pack', str(data), str(tmp_path / 'parcels')])
    parcels = sorted((tmp_path / 'parcels').iterdir())
    sizes = [sum(p.stat().st_size for p in parcel.iterdir()) for parcel in parcels if parcel.name != 'code']
    assert len(sizes) >= 4 and max(sizes) <= 3000
    for parcel in reversed(parcels):
        gpu.main(['unpack', str(parcel), str(root)])
    for name in gpu.DATA:
        assert (root / 'data' / name).read_bytes() == (data / name).read_bytes()
    assert (root / 'code/benchmarks/gpu.py').is_file() and not (root / 'code' / gpu._EMPTY).read_text()


def test_the_queue_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'x.json').write_text('{}')
    jobs = [
        gpu.Job('good', 60, ('json.tool', str(tmp_path / 'x.json'))),
        gpu.Job('bad', 60, ('json.tool', str(tmp_path / 'missing.json'))),
        gpu.Job('slow', 1, ('timeit', '-n', '1', '-r', '1', '__import__("time").sleep(30)')),
    ]
    monkeypatch.setattr(gpu, 'queue', lambda *unused: jobs)
    for _ in range(2):
        gpu.run(tmp_path, tmp_path / 'out', 300, tiny=True)
    done = [json.loads(line)['name'] for line in (tmp_path / 'out/done.jsonl').read_text().splitlines()]
    told = capsys.readouterr().out
    assert done == ['good'] and told.count('good: done') == 1
    assert told.count('bad: 2') == 2 and told.count('slow: out of time') == 2


def test_every_job_of_the_queue_is_short_and_can_be_called(tmp_path: Path) -> None:
    jobs = gpu.queue(tmp_path, tmp_path, tiny=False)
    assert max(job.seconds for job in jobs) <= 480 and len({job.name for job in jobs}) == len(jobs)


@pytest.mark.parametrize('letter', ['D', 'M'])
def test_a_step_is_traced(letter: str, tmp_path: Path) -> None:
    gpu.main(['trace', letter, str(tmp_path / 'trace.json'), '--tiny'])
    found = json.loads((tmp_path / 'trace.json').read_text())
    assert (
        found['step'] == letter and found['host_ms'] > 0 and any('addmm' in r['name'] for r in found['rows'])
    )


def test_steps_are_timed_side_by_side(tmp_path: Path) -> None:
    gpu.main(['steps', str(tmp_path / 'steps.json'), '--tiny'])
    rows = json.loads((tmp_path / 'steps.json').read_text())
    assert {(r['step'], r['variant']) for r in rows} >= {
        ('D', 'eager'),
        ('M', 'full'),
        ('D', 'frozen in bfloat16'),
    }
