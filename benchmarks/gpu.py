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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .study.domains import scene_pixels

#: Packages that the machine lacks and the queue imports.
WHEELS = ('torchgeo', 'kornia', 'kornia_rs', 'lightly', 'timm', 'jsonargparse')
#: Bytes of a parcel.
PARCEL = 60_000_000
DATA = ('EuroSAT_RGB.zip', 'presto_train_test_split.json', 'AID_128.zip', 'tiny_imagenet_202x100.zip')
_ROOT = Path(__file__).parents[1]
# The task needs TorchGeo's readers, which need GDAL; the queue uses parts below the task.
_EMPTY = 'explora_geo/trainers/__init__.py'


@dataclass(frozen=True)
class Job:
    """One entry of the queue.

    Attributes:
        name: Name of its result.
        seconds: How long it may take.
        command: Arguments of this module or another, after `python -m`.
    """

    name: str
    seconds: int
    command: tuple[str, ...]


def queue(root: Path, out: Path, tiny: bool) -> list[Job]:
    """The jobs in the order of their worth."""
    study = (f'{__package__}.study', str(root / 'data'), str(root / 'cache'), str(out / 'runs.jsonl'))
    processes = ('--processes', '1' if tiny else '8', '--seconds', '1' if tiny else '440')
    size = ('--tiny',) if tiny else ()
    this = f'{__package__}.gpu'
    return [
        Job('long', 480, (*study, 'long', *processes)),
        Job('harm', 480, (*study, 'harm', 'search', *processes)),
        Job('trace_d', 120, (this, 'trace', 'D', str(out / 'trace_d.json'), *size)),
        Job('trace_m', 120, (this, 'trace', 'M', str(out / 'trace_m.json'), *size)),
        Job('steps', 300, (this, 'steps', str(out / 'steps.json'), *size)),
        Job('lengths', 480, (*study, 'lengths', *processes)),
        Job('images', 480, (*study, 'images', 'second', *processes)),
    ]


def pack(data: Path, parcels: Path) -> None:
    """Write the code, and the data cut into pieces, into folders of at most `PARCEL` bytes."""
    code = parcels / 'code'
    shutil.rmtree(parcels, ignore_errors=True)
    for name in ('explora_geo', 'benchmarks'):
        ignored = shutil.ignore_patterns(
            '__pycache__', 'results', '*eurosat.safetensors', '*mae*.safetensors'
        )
        shutil.copytree(_ROOT / name, code / name, ignore=ignored)
    (code / _EMPTY).write_text('')
    pieces = []
    for path in (data / name for name in DATA):
        held = path.read_bytes()
        pieces += [
            (f'{path.name}.{i:02d}', held[at : at + PARCEL])
            for i, at in enumerate(range(0, len(held), PARCEL))
        ]
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
        held = b''.join(p.read_bytes() for p in sorted(pieces.glob(f'{name}.*')))
        whole = data / f'{name}.part'
        whole.write_bytes(held)
        if not name.endswith('.zip') or zipfile.is_zipfile(whole):
            whole.rename(data / name)


def run(root: Path, out: Path, seconds: float, tiny: bool) -> None:
    """Do what was not done, until the time is over; a job that fails or takes too long ends itself alone."""
    out.mkdir(parents=True, exist_ok=True)
    done, end = out / 'done.jsonl', time.time() + seconds
    names = {json.loads(line)['name'] for line in done.read_text().splitlines()} if done.is_file() else set()
    for job in queue(root, out, tiny):
        left = end - time.time()
        if job.name in names or left < 10:
            continue
        start = time.time()
        try:
            code = subprocess.run(
                [sys.executable, '-m', *job.command], timeout=min(job.seconds, left), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        how = 'out of time' if code is None else code or 'done'
        print(f'{job.name}: {how} after {time.time() - start:.0f} s', flush=True)
        if code == 0:
            with done.open('a') as lines:
                lines.write(json.dumps({'name': job.name, 'seconds': round(time.time() - start, 1)}) + '\n')


def _step(letter: str, tiny: bool, **choices: Any) -> tuple[Callable[[], None], int]:
    """A training step of ViT-L (or a tiny one) by D or M on random images, and its number of images."""
    from explora_geo.adaptation import ExPLoRAConfig, explora, hold_frozen
    from explora_geo.models import create_vit
    from explora_geo.objectives import MAE, DINOv2
    from explora_geo.trainers.kernels import compile_blocks

    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(0)
    kind, batch = (DINOv2, 32) if letter == 'D' else (MAE, 128)
    name = {'D': 'vit_large_patch14_dinov2', 'M': 'vit_large_patch16_224'}[letter]
    name, batch, size = ('vit_tiny_patch16_224', 2, 64) if tiny else (name, batch, 224)
    vit = create_vit(
        name, img_size=size, drop_path_rate=choices.get('drop_path', 0.0), **kind.backbone_options
    )
    explora(vit, ExPLoRAConfig.parse('full' if choices.get('full') else '[L]-r32'))
    objective = kind(vit).to(device).train()
    objective.set_schedule(1000, 100)
    if choices.get('frozen'):
        hold_frozen(objective, torch.bfloat16)
    if choices.get('compiled'):
        torch._dynamo.config.automatic_dynamic_shapes = False  # crops come in two sizes, each with its graph
        torch._dynamo.config.cache_size_limit = 128
        compile_blocks(objective)
    optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-5, fused=True)
    image, done = torch.randn(batch, 3, size, size, device=device), iter(range(10**6))

    def step() -> None:
        number = next(done)
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.stack([x.float() for x in objective({'image': image}, number).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        objective.before_step(number)
        optimizer.step()
        objective.after_step(number + 1)

    return step, batch


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def trace(letter: str, out: Path, tiny: bool) -> None:
    """Where the time of a step goes: the operations that take most, and host against device."""
    from torch.profiler import ProfilerActivity, profile

    step, images = _step(letter, tiny)
    for _ in range(3):
        step()
    _wait()
    start = time.perf_counter()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as found:
        step()
        _wait()
    wall = time.perf_counter() - start
    rows = sorted(found.key_averages(), key=lambda r: -(r.self_device_time_total or r.self_cpu_time_total))
    table = [
        {
            'name': r.key,
            'calls': r.count,
            'device_ms': r.self_device_time_total / 1e3,
            'host_ms': r.self_cpu_time_total / 1e3,
        }
        for r in rows[:60]
    ]
    total = {
        k: sum(getattr(r, v) for r in rows) / 1e3
        for k, v in (('device_ms', 'self_device_time_total'), ('host_ms', 'self_cpu_time_total'))
    }
    out.write_text(
        json.dumps(
            {'step': letter, 'images': images, 'wall_ms': 1e3 * wall, **total, 'rows': table}, indent=1
        )
    )


def steps(out: Path, tiny: bool) -> None:
    """Images a second of D and M: eager, compiled, frozen in bfloat16, stochastic depth, full training."""
    variants: dict[str, dict[str, Any]] = {
        'eager': {},
        'compiled': {'compiled': True},
        'frozen in bfloat16': {'frozen': True},
        'stochastic depth': {'drop_path': 0.3},
        'full': {'full': True},
        'full, compiled': {'full': True, 'compiled': True},
    }
    rows = []
    for letter in ('M', 'D'):
        for name, choices in variants.items():
            if tiny and choices.get('compiled'):
                continue
            step, images = _step(letter, tiny, **choices)
            for _ in range(1 if tiny else 8):
                step()
            _wait()
            start, count = time.perf_counter(), 1 if tiny else 20
            for _ in range(count):
                step()
            _wait()
            seconds = (time.perf_counter() - start) / count
            rows.append(
                {'step': letter, 'variant': name, 'seconds': seconds, 'images_per_second': images / seconds}
            )
            print(rows[-1], flush=True)
            out.write_text(json.dumps(rows, indent=1))
            torch.cuda.empty_cache()


def main(arguments: list[str] | None = None) -> None:
    """Read the command and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest='command', required=True)
    for name, places in (
        ('pack', ('data', 'parcels')),
        ('unpack', ('parcel', 'root')),
        ('run', ('root', 'out')),
    ):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place, type=Path)
    command.add_argument('--seconds', type=float, default=480)
    command.add_argument('--tiny', action='store_true')
    traced = commands.add_parser('trace')
    traced.add_argument('letter', choices=('D', 'M'))
    for timed in (traced, commands.add_parser('steps')):
        timed.add_argument('out', type=Path)
        timed.add_argument('--tiny', action='store_true')
    given = vars(parser.parse_args(arguments))
    called: dict[str, Callable[..., None]] = {
        'pack': pack,
        'unpack': unpack,
        'run': run,
        'trace': trace,
        'steps': steps,
    }
    called[given.pop('command')](**given)


if __name__ == '__main__':
    main()
