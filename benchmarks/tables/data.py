"""Data modules of a scale: open, subsample and fingerprint them."""

import hashlib
import importlib
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from explora_geo.datamodules import Augment, Statistics
from explora_geo.datasets.files import evenly_spaced
from explora_geo.evaluation import Budget

from .recipe import plain_value
from .scales import Data

_GROUPS: dict[str, type] = {'augment': Augment, 'statistics': Statistics}


def load_class(path: str) -> Any:
    """Import a class by its dotted path; raise ValueError if there is none."""
    module, _, name = path.rpartition('.')
    if module.startswith('explora_bench.'):  # this package, under the name it was imported by
        module = f'{__name__.partition(".")[0]}.{module.partition(".")[2]}'
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f'unknown class {path!r}: use the full path of a data module or task') from error


def build_data(data: Data, **changes: Any) -> Any:
    """Build a data module without reading any data; *changes* override its arguments."""
    arguments = {k: plain_value(v) for k, v in {**data.init_args, **changes}.items()}
    arguments |= {k: kind(**arguments[k]) for k, kind in _GROUPS.items() if k in arguments}
    try:
        return load_class(data.class_path)(**arguments)
    except TypeError as error:
        raise ValueError(f'{data.class_path} does not accept {arguments}: {error}') from error


def open_data(data: Data, **changes: Any) -> Any:
    """Build a data module and set up its splits; without a test split, validation serves as the test."""
    module = build_data(data, **changes)
    for stage in ('fit', 'test'):
        module.setup(stage)
    if module.test_dataset is None:
        module.test_dataset, module.val_dataset = module.val_dataset, None
    return module


def cut(module: Any, labeled: int | None, validated: int | None, tested: int | None) -> None:
    """Keep this many evenly spaced images of the training, validation and test splits; None keeps all."""
    for name, count in (('train', labeled), ('val', validated), ('test', tested)):
        dataset = getattr(module, f'{name}_dataset')
        if count is not None and dataset is not None:
            setattr(module, f'{name}_dataset', Subset(dataset, evenly_spaced(len(dataset), count)))


def classes_named(module: Any) -> tuple[str, ...]:
    """Return the data set's class names, or an empty tuple."""
    dataset = module.train_dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return tuple(getattr(dataset, 'classes', None) or ())


def labels_of(dataset: Any) -> torch.Tensor | None:
    """Return the labels, shape (N,), of a data set that knows them without reading images, else None."""
    if isinstance(dataset, Subset):
        found = labels_of(dataset.dataset)
        return None if found is None else found[torch.tensor(list(dataset.indices), dtype=torch.long)]
    labels = getattr(dataset, 'labels', None)
    return None if labels is None else torch.as_tensor(labels)


def draw_training_labels(module: Any, labels: str, seed: int) -> int:
    """Reduce the training images to one draw of a label budget; return how many remain."""
    dataset, budget = module.train_dataset, Budget.parse(labels)
    if not budget.full:
        known = labels_of(dataset)
        if known is None:
            raise ValueError(f'{type(dataset).__name__} does not list its labels: use the label budget all')
        module.train_dataset = Subset(dataset, budget.draw(known, seed).tolist())
    return len(module.train_dataset)


def describe_data(data: Data, module: Any) -> dict[str, Any]:
    """Describe a data set for the content hash of a stage.

    Files are identified by name and size, wherever they are; loading options do not count.
    """
    ignored = ('root', 'test_root', 'val_root', 'split_file', 'num_workers', 'cache', 'batch_size')
    # Groups count by their members, as in the names of the committed stages.
    arguments = {k: v for k, v in data.init_args.items() if k not in _GROUPS}
    for group in _GROUPS:
        arguments |= data.init_args.get(group, {})
    parts = {part: getattr(module, f'{part}_dataset', None) for part in ('train', 'val', 'test')}
    return {
        'class_path': data.class_path,
        'init_args': {k: plain_value(v) for k, v in arguments.items() if k not in ignored},
        'parts': {part: _fingerprint(dataset) for part, dataset in parts.items() if dataset is not None},
    }


def _fingerprint(dataset: Any) -> str:
    digest = hashlib.sha256()
    if isinstance(dataset, Subset):
        digest.update(f'{_fingerprint(dataset.dataset)}{list(dataset.indices)}'.encode())
        return digest.hexdigest()
    for file in getattr(dataset, 'files', None) or ():
        path = Path(file)
        size = path.stat().st_size if path.is_file() else ''
        digest.update(f'{path.parent.name}/{path.name}|{size}\n'.encode())
    labels = labels_of(dataset)
    digest.update(f'{len(dataset)}{None if labels is None else labels.tolist()}'.encode())
    return digest.hexdigest()
