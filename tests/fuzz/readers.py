"""Coverage-guided fuzzing of what reads weights, adapter files and tuned models.

    python tests/fuzz/readers.py --seconds 60

Files are damaged at random, guided by which lines of the readers each one reaches (atheris, libFuzzer).
A reader may refuse a file with a ValueError or FileNotFoundError of one line; anything else is a crash, whose
file is kept in the folder of --crashes, and becomes a case of tests/fuzz/test_readers.py.
"""

import argparse
import json
import random
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from safetensors.torch import save

from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_names
from explora_geo.checkpoints import adapter, backbone, convert, facts, files
from explora_geo.models import builders, create_vit
from explora_geo.trainers import ClassificationTask, save_task, tasks

MODEL = 'vit_tiny_patch8_16'
SUFFIXES = ('.safetensors', '.pth')
MODULES = (adapter, backbone, convert, facts, files, tasks)


def small() -> None:
    """Make the named models tiny, so that many files a second are read."""
    builders._SIZES['tiny'] = (8, 2, 2)


def read(path: Path) -> None:
    """Pass a file to everything that reads one."""
    for use in (adapter.read_adapter, backbone.describe_weights, _open, _load, tasks.load_task):
        check(use, path)


def _open(path: Path) -> None:
    backbone.load_backbone(None, path)


def _load(path: Path) -> None:
    backbone.load_weights(create_vit(MODEL), path)


def check(use: Callable[[Path], Any], path: Path) -> None:
    """Use a file; a refusal must be one sentence."""
    try:
        use(path)
    except (ValueError, FileNotFoundError) as error:
        if not str(error) or '\n' in str(error):
            raise AssertionError(f'no sentence: {error!r}') from error


def seeds() -> Iterator[tuple[str, bytes]]:
    """Sound files of each kind: name ending and content."""
    torch.manual_seed(0)
    vit = create_vit(MODEL)
    state = {k: v.clone() for k, v in vit.state_dict().items()}
    meta = {'backbone': MODEL, 'bands': '["red", "green", "blue"]', 'tokenizer': '{"kind": "patch"}'}
    yield '.safetensors', save(state, meta)
    mae = {'decoder_pred.weight': torch.randn(192, 8), 'decoder_embed.weight': torch.randn(8, 8)}
    groups = {'channel_embed': torch.randn(1, 2, 4), 'channel_cls_embed': torch.randn(1, 1, 4)}
    split = {f'blocks.0.attn.{part}_proj.weight': torch.randn(8, 8) for part in 'qkv'}
    for more in (mae, groups, split, {'mask_token': torch.randn(1, 8)}):
        yield '.safetensors', save({**state, **more})
        yield '.safetensors', save({f'model.{k}': v for k, v in {**state, **more}.items()})
    config = ExPLoRAConfig.parse('[L]-r2')
    explora(vit, config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'adapter.safetensors'
        adapter.save_adapter(path, vit, MODEL, config)
        yield '.safetensors', path.read_bytes()
        assert trainable_names(vit)
        for nest in (state, {'model': state, 'epoch': 3}):
            torch.save(nest, path)
            yield '.pth', path.read_bytes()
        torch.save(state, path, _use_new_zipfile_serialization=False)
        yield '.pth', path.read_bytes()
        task = ClassificationTask(model=MODEL, weights=None, num_classes=2, tuning='linear')
        task.data = {
            'bands': ['red', 'green', 'blue'],
            'mean': [0.0] * 3,
            'std': [1.0] * 3,
            'classes': ['a', 'b'],
        }
        save_task(path, task)
        yield '.safetensors', path.read_bytes()


def header_of(content: bytes) -> dict[str, Any] | None:
    """The JSON header of a safetensors file, if it has one."""
    try:
        (length,) = struct.unpack('<Q', content[:8])
        found = json.loads(content[8 : 8 + length])
    except (struct.error, ValueError, OverflowError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


VALUES = (None, True, -1, 0, 1, 3, 1 << 40, 1.5, '', 'patch', 'temporal', [], [1], {}, {'kind': 'temporal'})
OTHERS = ('mask_token', 'channel_embed', 'cls_token', 'decoder_pred.weight')


def mutate_header(content: bytes, seed: int) -> bytes:
    """Change a file where it says what it holds: names, shapes, and what is stated of the model.

    Bytes turned over at random hardly ever leave a header that can be read.
    """
    header = header_of(content)
    if header is None:
        return content
    chance = random.Random(seed)
    (length,) = struct.unpack('<Q', content[:8])
    body = content[8 + length :]
    stated = header.get('__metadata__')
    if isinstance(stated, dict) and stated and chance.random() < 0.6:
        key = chance.choice(list(stated))
        try:
            inner = json.loads(stated[key])
        except (ValueError, TypeError, RecursionError):
            inner = None
        if isinstance(inner, dict) and inner and chance.random() < 0.8:
            within = [v for v in inner.values() if isinstance(v, dict)]
            place = chance.choice(within) if within and chance.random() < 0.6 else inner
            place[chance.choice(list(place) or ['rank'])] = chance.choice(VALUES)
            stated[key] = json.dumps(inner)
        else:
            stated[key] = json.dumps(chance.choice(VALUES))
    else:
        names = [k for k in header if k != '__metadata__' and isinstance(header[k], dict)]
        if not names:
            return content
        name = chance.choice(names)
        action = chance.randrange(4)
        if action == 0:  # one tensor under the name of another
            header[chance.choice([*names, *OTHERS])] = header.pop(name)
        elif action == 1:  # the same numbers in another shape
            shape = header[name].get('shape')
            count = 1
            for side in shape if isinstance(shape, list) else ():
                count *= side if isinstance(side, int) else 1
            header[name]['shape'] = chance.choice([[count], [1, count], [1, 1, count], [count, 1, 1, 1]])
        elif action == 2:  # another type of the same size
            header[name]['dtype'] = chance.choice(['I32', 'U32', 'F32'])
        else:  # a tensor without numbers
            header[f'x.{name}'] = {'dtype': 'F32', 'shape': [0], 'data_offsets': [len(body), len(body)]}
    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + body


def one(folder: Path, data: bytes) -> None:
    """Read what a fuzzer made: the first byte chooses the kind of file."""
    if not data:
        return
    path = folder / f'fuzzed{SUFFIXES[data[0] % 2]}'
    path.write_bytes(data[1:])
    read(path)


def main() -> None:
    """Fuzz for some time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=int, default=60)
    parser.add_argument('--crashes', type=Path, default=Path('runs/fuzz'))
    parser.add_argument('--seed', type=int, default=1)
    arguments = parser.parse_args()
    try:
        import atheris
    except ImportError:
        sys.exit('atheris is not installed: pip install "explora_geo[tests]" on Linux')
    small()
    warnings.simplefilter('ignore')
    for module in MODULES:
        for value in list(vars(module).values()):
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                atheris.instrument_func(value)  # in place, wherever it was imported
    corpus = Path(tempfile.mkdtemp(prefix='fuzz-'))
    for number, (suffix, content) in enumerate(seeds()):
        (corpus / f'seed{number}').write_bytes(bytes([SUFFIXES.index(suffix)]) + content)
    arguments.crashes.mkdir(parents=True, exist_ok=True)

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        if seed % 4 and data[:1] == b'\0':
            return (data[:1] + mutate_header(data[1:], seed))[:size]
        return bytes(atheris.Mutate(data, size))

    options = [f'-max_total_time={arguments.seconds}', f'-seed={arguments.seed}', '-max_len=40000']
    options += ['-timeout=20', '-rss_limit_mb=4096', f'-artifact_prefix={arguments.crashes}/']
    folder = Path(tempfile.mkdtemp(prefix='fuzzed-'))
    names = [sys.argv[0], *options, '-print_final_stats=1', str(corpus)]
    atheris.Setup(names, lambda data: one(folder, data), custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == '__main__':
    main()
