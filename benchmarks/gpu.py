"""A queue for half an hour on a borrowed GPU: self-contained, resumable jobs in order of priority.

The machine accepts files of up to 64 MiB at a time. It has torch, lightning, safetensors and
scikit-learn, but neither TorchGeo nor kornia:

    python -m benchmarks.gpu pack DATA PARCELS                 # here: code and data, in parcels of 60 MB
    python -m benchmarks.gpu unpack PARCEL ROOT                # there, once for each parcel
    python -m benchmarks.gpu run ROOT OUT [--seconds 480]      # there: goes on where it stopped
    python -m benchmarks.gpu run ROOT OUT --tiny               # anywhere: rehearse the queue in seconds

The wheels of `WHEELS` travel in a separate parcel: `pip download --no-deps -d PARCELS/wheels ...`. Start
NVIDIA's MPS before `run`: without it, processes take turns on the GPU, and one that waits blocks all.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from .study.domains import scene_pixels
from .tables import records

#: Packages that the queue imports and the machine lacks.
WHEELS = ('torchgeo', 'kornia', 'kornia_rs', 'lightly', 'timm', 'jsonargparse')
#: Maximum bytes of a parcel.
PARCEL = 60_000_000
KINDS = ('mae', 'dinov2')
DATA = (
    *('EuroSAT_RGB.zip', 'presto_train_test_split.json', 'AID_128.zip', 'tiny_imagenet_202x100.zip'),
    'weights/vit_tiny_patch16_224_natural.safetensors',
)
_ROOT = Path(__file__).parents[1]
# The task needs TorchGeo's readers and so GDAL; the queue uses only parts below the task.
_EMPTY = 'explora_geo/trainers/__init__.py'
_IGNORED = shutil.ignore_patterns('__pycache__', 'results', '*eurosat.safetensors', '*mae*.safetensors')


def queue(root: Path, out: Path, tiny: bool) -> dict[str, tuple[int, list[str]]]:
    """Return the jobs in order of priority: time limit in seconds, and arguments of `python -m`."""
    study = [f'{__package__}.study', str(root / 'data'), str(root / 'cache'), str(out / 'runs.jsonl')]
    processes = ['--processes', '1' if tiny else '8', '--seconds', '1' if tiny else '440']
    this, size = f'{__package__}.gpu', ['--tiny'] if tiny else []
    rows = ['headline', 'forget', 'rivals', 'analysis', 'm-headline', 'm-lengths', 'd-lengths', 'few-images']
    rows += ['capacity', 'beyond', 'bands', 'ratios', 'more']
    return {
        'rows': (480, [*study, *rows, *processes]),
        'long': (480, [*study, 'long', *processes]),
        'harm': (480, [*study, 'harm', 'search', *processes]),
        **{f'trace_{kind}': (120, [this, 'trace', kind, str(out), *size]) for kind in KINDS},
        **{f'steps_{kind}': (300, [this, 'steps', kind, str(out), *size]) for kind in KINDS},
        'lengths': (480, [*study, 'lengths', *processes]),
        'images': (480, [*study, 'images', 'second', *processes]),
    }


def pack(data: Path, parcels: Path) -> None:
    """Write archives of code and data, split into folders of at most `PARCEL` bytes."""
    shutil.rmtree(parcels, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        code, held = Path(folder, 'code'), Path(folder, 'data')
        for name in ('explora_geo', 'benchmarks'):
            shutil.copytree(_ROOT / name, code / name, ignore=_IGNORED)
        (code / _EMPTY).write_text('')
        (held / 'NAIP').mkdir(parents=True)
        for name in DATA:
            shutil.copy(data / name, held)
        for scene in (data / 'NAIP').glob('*.tif'):  # as arrays, since the machine has no GDAL
            (held / 'NAIP' / f'{scene.stem}.npy').write_bytes(scene_pixels(scene).getvalue())
        for part in (code, held):
            packed = Path(shutil.make_archive(str(part), 'zip', part)).read_bytes()
            starts = range(0, len(packed), PARCEL)
            for i, start in enumerate(starts):
                piece = parcels / f'{part.name}{i}' / f'{part.name}.{i:03d}.{len(starts)}'
                piece.parent.mkdir(parents=True)
                piece.write_bytes(packed[start : start + PARCEL])
                print(f'{piece}: {piece.stat().st_size / 1e6:.1f} MB')


def unpack(parcel: Path, root: Path) -> None:
    """Unpack a parcel; parcels may arrive in any order, and the last one completes code and data."""
    pieces = root / 'pieces'
    shutil.copytree(parcel, pieces, dirs_exist_ok=True)
    for name in ('code', 'data'):
        held = sorted(pieces.glob(f'{name}.*'))
        if held and len(held) == int(held[0].suffix[1:]):
            zipfile.ZipFile(io.BytesIO(b''.join(p.read_bytes() for p in held))).extractall(root / name)


def run(root: Path, out: Path, seconds: float, tiny: bool) -> None:
    """Run unfinished jobs until time runs out; a job that fails or times out does not stop the others."""
    done, end = out / 'done.jsonl', time.time() + seconds
    names = {job['name'] for job in records.read(done)}
    out.mkdir(parents=True, exist_ok=True)
    for name, (limit, command) in queue(root, out, tiny).items():
        left, start = end - time.time(), time.time()
        if name in names or left < 10:
            continue
        try:
            called = [sys.executable, '-m', *command]
            code = subprocess.run(called, timeout=min(limit, left), check=False).returncode
            how = f'exit code {code}' if code else 'done'
        except subprocess.TimeoutExpired:
            how = 'timed out'
        print(f'{name}: {how} after {time.time() - start:.0f} s', flush=True)
        if how == 'done':
            records.append(done, {'name': name, 'seconds': round(time.time() - start, 1)})


def _setting(kind: str, tiny: bool) -> Any:
    """Return the setting of a step of ViT-L, or of a tiny model, on random images."""
    from explora_geo.models.heads import HeadConfig

    from .speed.setting import Setting

    if tiny:
        head = HeadConfig(64, 32, 16)
        return Setting('vit_tiny_patch16_224', 2, 64, 32, 2, decoder_depth=1, head=head, images=None)
    work = Setting('vit_large_patch16_224', 128, images=None)
    return work if kind == 'mae' else replace(work, model='vit_large_patch14_dinov2', batch=32, local_size=98)


def trace(kind: str, out: Path, tiny: bool) -> None:
    """Profile a step: the most expensive operations, and host against device time."""
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
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        step()
        wait()
    wall = 1e3 * (time.perf_counter() - start)
    order = 'self_device_time_total' if on_gpu else 'self_cpu_time_total'
    table = found.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=80)
    (out / f'trace_{kind}.txt').write_text(f'{setting}\n{wall:.1f} ms with the profiler\n{table}\n')


def steps(kind: str, out: Path, tiny: bool) -> None:
    """Measure images per second of our steps: plain, compiled, frozen in bfloat16, stochastic depth, full."""
    from .speed.engine import compare_steps

    compare_steps(out, kind, _setting(kind, tiny), 1 if tiny else 20, 'explora_geo', compiled=not tiny)


def main(arguments: list[str] | None = None) -> None:
    """Parse and run a command."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    commands = parser.add_subparsers(required=True)
    places = {pack: 'data parcels', unpack: 'parcel root', run: 'root out', trace: 'out', steps: 'out'}
    for called in places:
        command = commands.add_parser(called.__name__)
        command.set_defaults(called=called)
        if called in (trace, steps):
            command.add_argument('kind', choices=KINDS)
        for place in places[called].split():
            command.add_argument(place, type=Path)
        if called is run:
            command.add_argument('--seconds', type=float, default=480)
        if called in (run, trace, steps):
            command.add_argument('--tiny', action='store_true')
    given = vars(parser.parse_args(arguments))
    given.pop('called')(**given)


if __name__ == '__main__':
    main()
