"""Data modules of a scale: opened, cut to size, told apart by what they hold."""

import hashlib
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from explora_geo.datasets.files import evenly_spaced

from ..fitting import labels_of
from .jobs import load_class
from .recipe import plain_value
from .scales import Data


def open_data(data: Data, **changes: Any) -> Any:
    """Build a data module and set up its parts; without a test part, validation is the test.

    Args:
        data: Which.
        **changes: Arguments in place of its own, such as `batch_size`.

    Returns:
        The data module, with `train_dataset`, perhaps `val_dataset`, and `test_dataset`.

    Raises:
        FileNotFoundError: If the images do not exist.
        ValueError: If an argument does not fit.
    """
    module = build_data(data, **changes)
    for stage in ('fit', 'test'):
        module.setup(stage)
    if module.test_dataset is None:
        module.test_dataset, module.val_dataset = module.val_dataset, None
    return module


def build_data(data: Data, **changes: Any) -> Any:
    """Build a data module without reading anything."""
    arguments = {k: plain_value(v) for k, v in {**data.init_args, **changes}.items()}
    try:
        return load_class(data.class_path)(**arguments)
    except TypeError as error:
        raise ValueError(f'{data.class_path} does not take {arguments}: {error}') from error


def cut(
    module: Any, labelled: int | None = None, validated: int | None = None, tested: int | None = None
) -> None:
    """Keep evenly spaced images of each part.

    Args:
        module: Data module that is set up; changed in place.
        labelled: Training images; all of them if None.
        validated: Validation images, likewise.
        tested: Test images, likewise.
    """
    counts = {'train': labelled, 'val': validated, 'test': tested}
    for name, count in counts.items():
        part = f'{name}_dataset'
        dataset = getattr(module, part)
        if count is not None and dataset is not None:
            setattr(module, part, Subset(dataset, evenly_spaced(len(dataset), count)))


def classes_named(module: Any) -> tuple[str, ...]:
    """Classes that the data set names; none if it names none."""
    dataset = module.train_dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return tuple(getattr(dataset, 'classes', None) or ())


def classes_of(module: Any, data: Data) -> int:
    """Number of classes: those the data set names, else those that are stated."""
    return len(classes_named(module)) or data.classes or 0


def describe_data(data: Data, module: Any) -> dict[str, Any]:
    """What a data set is, so that the outcome of a stage belongs to it.

    Files are told apart by name and size, wherever they lie; how fast they are read does not count.
    """
    ignored = ('root', 'test_root', 'val_root', 'split_file', 'num_workers', 'cache', 'batch_size')
    return {
        'class_path': data.class_path,
        'init_args': {k: plain_value(v) for k, v in data.init_args.items() if k not in ignored},
        'parts': {
            part: _fingerprint(dataset)
            for part in ('train', 'val', 'test')
            if (dataset := getattr(module, f'{part}_dataset', None)) is not None
        },
    }


def _fingerprint(dataset: Any) -> str:
    digest = hashlib.sha256()
    if isinstance(dataset, Subset):
        digest.update(f'{_fingerprint(dataset.dataset)}{list(dataset.indices)}'.encode())
        return digest.hexdigest()
    files = getattr(dataset, 'files', None)
    if files is None and 'path' in getattr(dataset, 'table', ()):
        files = dataset.table['path'].to_list()
    for file in files or ():
        path = Path(file) if isinstance(file, str | Path) else None
        size = path.stat().st_size if path is not None and path.is_file() else ''
        digest.update(f'{path.parent.name}/{path.name}|{size}\n'.encode() if path else f'{file}\n'.encode())
    labels = labels_of(dataset)
    digest.update(f'{len(dataset)}{None if labels is None else labels.tolist()}'.encode())
    return digest.hexdigest()
