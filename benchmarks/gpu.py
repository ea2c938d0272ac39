"""A queue for half an hour of somebody else's GPU: self-contained jobs by worth, each resumable.

Such a machine takes files of 64 MiB at a time. It has torch, lightning, safetensors and scikit-learn, but
neither TorchGeo nor kornia:

    python -m benchmarks.gpu pack DATA PARCELS                 # here: code and data, in parcels of 60 MB
    python -m benchmarks.gpu unpack PARCEL ROOT                # there, once for each parcel
    python -m benchmarks.gpu run ROOT OUT [--seconds 480]      # there: goes on where it stopped
    python -m benchmarks.gpu run ROOT OUT --tiny               # anywhere: rehearse the queue in seconds

Wheels of `WHEELS` travel in a parcel of their own: `pip download --no-deps -d PARCELS/wheels ...`. Start
NVIDIA's MPS before `run`: without it processes take turns on the GPU, and a wait of one is a wait of all.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .study.domains import scene_pixels
from .tables import records

#: Packages that the machine lacks and the queue imports.
WHEELS = ('torchgeo', 'kornia', 'kornia_rs', 'lightly', 'timm', 'jsonargparse')
#: Bytes of a parcel.
PARCEL = 60_000_000
DATA = ('EuroSAT_RGB.zip', 'presto_train_test_split.json', 'AID_128.zip', 'tiny_imagenet_202x100.zip')
_ROOT = Path(__file__).parents[1]
# The task needs TorchGeo's readers, which need GDAL; the queue uses parts below the task.
_EMPTY = 'explora_geo/trainers/__init__.py'
_IGNORED = shutil.ignore_patterns('__pycache__', 'results', '*eurosat.safetensors', '*mae*.safetensors')


@dataclass(frozen=True)
class Job:
    """One entry of the queue."""

    name: str  # name of its result
    seconds: int  # how long it may take
    command: tuple[str, ...]  # arguments of this module or another, after `python -m`


def queue(root: Path, out: Path, tiny: bool) -> list[Job]:
    """The jobs in the order of their worth."""
    study = (f'{__package__}.study', str(root / 'data'), str(root / 'cache'), str(out / 'runs.jsonl'))
    processes = ('--processes', '1' if tiny else '8', '--seconds', '1' if tiny else '440')
    this, size = f'{__package__}.gpu', ('--tiny',) if tiny else ()
    return [
        Job('long', 480, (*study, 'long', *processes)),
        Job('harm', 480, (*study, 'harm', 'search', *processes)),
        *(Job(f'trace_{kind}', 120, (this, 'trace', kind, str(out), *size)) for kind in ('dinov2', 'mae')),
        *(Job(f'steps_{kind}', 300, (this, 'steps', kind, str(out), *size)) for kind in ('mae', 'dinov2')),
        Job('lengths', 480, (*study, 'lengths', *processes)),
        Job('images', 480, (*study, 'images', 'second', *processes)),
    ]


def pack(data: Path, parcels: Path) -> None:
    """Write the code, and the data cut into pieces, into folders of at most `PARCEL` bytes."""
    code = parcels / 'code'
    shutil.rmtree(parcels, ignore_errors=True)
    for name in ('explora_geo', 'benchmarks'):
        shutil.copytree(_ROOT / name, code / name, ignore=_IGNORED)
    (code / _EMPTY).write_text('')
    pieces = []
    for path in (data / name for name in DATA):
        held = path.read_bytes()
        starts = range(0, len(held), PARCEL)
        pieces += [(f'{path.name}.{i:02d}', held[at : at + PARCEL]) for i, at in enumerate(starts)]
    # Scenes go as arrays: the machine has no GDAL.
    pieces += [(f'{p.stem}.npy', scene_pixels(p).getvalue()) for p in sorted((data / 'NAIP').glob('*.tif'))]
    room, number = 0, 0
    for name, piece in pieces:
        if len(piece) > room:
            number, room = number + 1, PARCEL
        folder = parcels / f'data{number}'
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(piece)
        room -= len(piece)
    for folder in sorted(parcels.iterdir()):
        print(f'{folder}: {sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6:.1f} MB')


def unpack(parcel: Path, root: Path) -> None:
    """Take a parcel; a file is put together when its last piece comes, in any order."""
    if (parcel / 'explora_geo').is_dir():
        shutil.copytree(parcel, root / 'code', dirs_exist_ok=True)
        return
    pieces, data = root / 'pieces', root / 'data'
    shutil.copytree(parcel, pieces, dirs_exist_ok=True)
    (data / 'NAIP').mkdir(parents=True, exist_ok=True)
    for scene in pieces.glob('*.npy'):
        scene.rename(data / 'NAIP' / scene.name)
    for name in DATA:
        whole = data / f'{name}.part'
        whole.write_bytes(b''.join(p.read_bytes() for p in sorted(pieces.glob(f'{name}.*'))))
        if not name.endswith('.zip') or zipfile.is_zipfile(whole):
            whole.rename(data / name)


def run(root: Path, out: Path, seconds: float, tiny: bool) -> None:
    """Do what was not done, until the time is over; a job that fails or takes too long ends itself alone."""
    done, end = out / 'done.jsonl', time.time() + seconds
    names = {job['name'] for job in records.read(done)}
    out.mkdir(parents=True, exist_ok=True)
    for job in queue(root, out, tiny):
        left, start = end - time.time(), time.time()
        if job.name in names or left < 10:
            continue
        command, limit = [sys.executable, '-m', *job.command], min(job.seconds, left)
        try:
            code = subprocess.run(command, timeout=limit, check=False).returncode
            how = str(code or 'done')
        except subprocess.TimeoutExpired:
            how = 'out of time'
        print(f'{job.name}: {how} after {time.time() - start:.0f} s', flush=True)
        if how == 'done':
            records.append(done, {'name': job.name, 'seconds': round(time.time() - start, 1)})


def _setting(kind: str, tiny: bool) -> Any:
    """The work of a step of ViT-L, or of a tiny model, on random images."""
    from .speed.setting import HeadConfig, Setting

    if tiny:
        head = HeadConfig(64, 32, 16)
        return Setting('vit_tiny_patch16_224', 2, 64, 32, 2, decoder_depth=1, head=head, images=None)
    work = Setting('vit_large_patch16_224', 128, images=None)
    return work if kind == 'mae' else replace(work, model='vit_large_patch14_dinov2', batch=32, local_size=98)


def trace(kind: str, out: Path, tiny: bool) -> None:
    """Where the time of a step goes: the operations that take most, and host against device."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from .speed.engine import wait
    from .speed.others import find

    setting = _setting(kind, tiny)
    step = next(iter(find(kind).values()))(setting)
    for _ in range(3):
        step()
    wait()
    start = time.perf_counter()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        step()
        wait()
    wall = 1e3 * (time.perf_counter() - start)
    rows = sorted(found.key_averages(), key=lambda r: -(r.self_device_time_total or r.self_cpu_time_total))
    table = [
        {
            'name': r.key,
            'calls': r.count,
            'device_ms': r.self_device_time_total / 1e3,
            'host_ms': r.self_cpu_time_total / 1e3,
        }
        for r in rows
    ]
    total = {key: sum(row[key] for row in table) for key in ('device_ms', 'host_ms')}
    told = {'step': kind, 'images': setting.batch, 'wall_ms': wall, **total, 'rows': table[:60]}
    (out / f'trace_{kind}.json').write_text(json.dumps(told, indent=1))


def steps(kind: str, out: Path, tiny: bool) -> None:
    """Images a second of our steps: as they are, compiled, frozen in bfloat16, stochastic depth, full."""
    from .speed.engine import compare_steps

    compare_steps(out, kind, _setting(kind, tiny), 1 if tiny else 20, 'explora_geo', compiled=not tiny)


def main(arguments: list[str] | None = None) -> None:
    """Read the command and do it."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    commands = parser.add_subparsers(required=True)
    for called, places in ((pack, 'data parcels'), (unpack, 'parcel root'), (run, 'root out')):
        command = commands.add_parser(called.__name__)
        command.set_defaults(called=called)
        for place in places.split():
            command.add_argument(place, type=Path)
    command.add_argument('--seconds', type=float, default=480)
    command.add_argument('--tiny', action='store_true')
    for called in (trace, steps):
        command = commands.add_parser(called.__name__)
        command.set_defaults(called=called)
        command.add_argument('kind', choices=('dinov2', 'mae'))
        command.add_argument('out', type=Path)
        command.add_argument('--tiny', action='store_true')
    given = vars(parser.parse_args(arguments))
    given.pop('called')(**given)


if __name__ == '__main__':
    main()
