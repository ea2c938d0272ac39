"""Features on disk: extracted once for the same weights, images and transform."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from explora_geo.checkpoints import read_state, state_sha256, write_state
from explora_geo.evaluation.budgets import hold_out
from explora_geo.evaluation.features import FeatureTable, extract_features
from explora_geo.models.matching import match_data
from explora_geo.models.turns import check_turns
from explora_geo.models.vit import ViT

Transform = Callable[[dict[str, Any]], dict[str, Any]]
Collate = Callable[[list[Any]], dict[str, Any]]

#: Images per file of the cache: what an interruption can cost.
SHARD = 2048
# Raised when what a file holds, or what identifies it, changes.
_VERSION = 2
# Images that show what a data set and a transform make of files.
_FIRST = 8


def dataset_sha256(dataset: Dataset[Any]) -> str | None:
    """Hash of the images of a data set: their files by name, size and time of change, and their labels.

    Args:
        dataset: Any data set; `Subset` and `ConcatDataset` are looked into.

    Returns:
        Hexadecimal SHA-256; None if the data set lists no files or draws its images at random.
    """
    digest = hashlib.sha256()
    if isinstance(dataset, Subset):
        whole = dataset_sha256(dataset.dataset)
        digest.update(f'{whole}{list(dataset.indices)}'.encode())
        return whole and digest.hexdigest()
    if isinstance(dataset, ConcatDataset):
        parts = [dataset_sha256(part) for part in dataset.datasets]
        digest.update(str(parts).encode())
        return None if None in parts else digest.hexdigest()
    files = list(_files(dataset))
    if not files or getattr(dataset, 'random_frames', False):
        return None
    root = Path(getattr(dataset, 'root', '/'))
    for path in files:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        try:
            status = path.stat()
            version = f'{status.st_size}|{status.st_mtime_ns}'
        except OSError:  # skipped when it is read, or of a pack, which has files of its own
            version = 'missing'
        digest.update(f'{name}|{version}\n'.encode())
    if (root / 'pack.json').is_file():
        for path in sorted(root.iterdir()):
            status = path.stat()
            digest.update(f'{path.name}|{status.st_size}|{status.st_mtime_ns}\n'.encode())
    digest.update(f'{getattr(dataset, "classes", "")}{getattr(dataset, "labels", "")}'.encode())
    return digest.hexdigest()


def _files(dataset: Dataset[Any]) -> Iterator[Path]:
    """The image files of a data set of ours or of torchvision's and TorchGeo's folder kind."""
    for name in ('files', 'samples', 'imgs'):
        entries = getattr(dataset, name, None)
        if isinstance(entries, Sequence) and entries and not isinstance(entries, str):
            for entry in entries:
                path = entry[0] if isinstance(entry, tuple) else entry
                if isinstance(path, str | Path):
                    yield Path(path)
            return


def _batch_sha256(batch: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key in sorted(batch):
        value = batch[key]
        content = value.numpy(force=True).tobytes() if isinstance(value, Tensor) else str(value).encode()
        digest.update(key.encode() + content)
    return digest.hexdigest()


def cached_features(
    folder: str | Path | None,
    vit: ViT,
    dataset: Dataset[Any],
    *,
    transform: Transform | None = None,
    collate: Collate = default_collate,
    blocks: int = 4,
    turns: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    shard: int = SHARD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureTable:
    """Features of a data set, from the cache where it has them.

    A cache entry belongs to one hash of weights, files and transform (of what data set and transform make of
    the first few images), whatever the batch size. Each of its files appears in one piece, so an interrupted
    extraction goes on with the first file that is missing. Nothing is kept, with a warning, of data that list
    no files or draw images at random.

    Args:
        folder: Folder of the cache; None keeps nothing.
        vit: Plain or merged backbone, on the device to use.
        dataset: Samples with `image`, `label` and, for temporal tokenizers, `timestamps`.
        transform: Normalization of a batch, on the device.
        collate: Makes a batch of samples.
        blocks: How many of the last blocks; all of a shallower backbone.
        turns: Orientations of each image that features are averaged over: 1, 4 or 8.
        batch_size: Images per forward pass.
        num_workers: Processes that read images.
        shard: Images per file.
        progress: Told the images done and their number.

    Returns:
        The features, in the order of the data set.

    Raises:
        ValueError: If there is no image, images carry no class each, or `turns` is another number.
    """
    total = len(dataset)  # type: ignore[arg-type]
    blocks = min(blocks, vit.depth)
    collate_usable = partial(_collate_usable, collate)
    device = vit.cls_token.device

    def batches(start: int, stop: int, size: int, workers: int = 0) -> Iterator[dict[str, Any]]:
        part = Subset(dataset, range(start, stop))
        for batch in DataLoader(part, size, num_workers=workers, collate_fn=collate_usable):
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            yield moved if transform is None or 'image' not in moved else transform(moved)

    check_turns(turns)
    entry = None
    if folder is not None and total:
        data = dataset_sha256(dataset)
        first, again = (_batch_sha256(next(batches(0, min(_FIRST, total), _FIRST))) for _ in range(2))
        if data is None or first != again:
            warnings.warn(
                'Features are not cached: the data set lists no files, or draws images at random '
                '(random_frames).',
                stacklevel=2,
            )
        else:
            described = {
                'version': _VERSION,
                'weights': state_sha256(vit.state_dict()),
                'data': data,
                'transform': first,
                'blocks': blocks,
                'turns': turns,
                'shard': shard,
            }
            key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
            entry = Path(folder) / key[:20]
    parts = []
    for number, start in enumerate(range(0, total, shard)):
        stop = min(start + shard, total)
        file = None if entry is None else entry / f'features_{number:05d}.safetensors'
        if file is not None and file.is_file():
            parts.append(_read(file))
        else:
            parts.append(_extract(vit, batches(start, stop, batch_size, num_workers), blocks, turns))
            if file is not None:
                state = {'cls': parts[-1].cls, 'avg': parts[-1].avg, 'label': parts[-1].label}
                write_state(file, state, {'skipped': json.dumps(parts[-1].skipped)})
        progress(stop, total)
    if not parts:
        raise ValueError('there are no images to extract features from')
    return FeatureTable.join(parts)


def _collate_usable(collate: Collate, samples: list[Any]) -> dict[str, Any]:
    """A batch, or the names of its images where none of them can be used."""
    if all(isinstance(sample, dict) and 'skipped' in sample for sample in samples):
        return {'skipped': [sample['skipped'] for sample in samples]}
    return collate(samples)


def _extract(vit: ViT, batches: Iterator[dict[str, Any]], blocks: int, turns: int) -> FeatureTable:
    skipped: list[str] = []
    seen: list[int] = []

    def labeled() -> Iterator[dict[str, Any]]:
        for batch in batches:
            skipped.extend(batch.get('skipped', ()))
            if 'image' not in batch:
                continue
            label = batch.get('label')
            if not isinstance(label, Tensor) or label.ndim != 1:
                shape = tuple(label.shape) if isinstance(label, Tensor) else None
                raise ValueError(
                    f'a probe needs one class per image, got labels of shape {shape}: use images in class '
                    'folders, or a data module whose batches carry label of shape (B,)'
                )
            seen.append(len(label))
            yield batch
        if not seen:
            raise ValueError(f'none of {len(skipped)} images can be used, first {skipped[0]}')

    features, labels = extract_features(vit, labeled(), blocks, turns)
    halves = {k: torch.from_numpy(v).half() for k, v in features.items()}
    return FeatureTable(halves['cls'], halves['avg'], torch.from_numpy(labels), tuple(skipped))


def _read(file: Path) -> FeatureTable:
    state, metadata = read_state(file)
    return FeatureTable(state['cls'], state['avg'], state['label'], tuple(json.loads(metadata['skipped'])))


def extract_parts(
    vit: ViT,
    datamodule: Any,
    cache: Path | None,
    progress: Callable[[str], None] = lambda text: None,
    statistics: Literal['model', 'data'] | None = None,
    **kwargs: Any,
) -> dict[str, FeatureTable]:
    """Cached features of the training, validation and test part of a data module.

    Without a validation part a tenth of the training images is held out, evenly spaced within each class.

    Args:
        vit: Backbone.
        datamodule: Data module of ours or of TorchGeo.
        cache: Folder of the cache.
        progress: Told what is done next.
        statistics: Whose mean and standard deviation normalize; see `match_data`.
        **kwargs: Further arguments of `cached_features`.

    Returns:
        Feature tables of `train`, `val` and `test`.

    Raises:
        ValueError: If there is no test part, or the data do not fit the backbone.
    """
    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    match_data(datamodule, vit, statistics)
    tables = {}
    for part in ('train', 'val', 'test'):
        dataset = getattr(datamodule, f'{part}_dataset', None)
        if dataset is None and part != 'val':
            raise ValueError(
                f'the data module has no {part} images: a probe trains on one part and tests on another'
            )
        if dataset is None:
            continue

        def report(done: int, total: int, part: str = part) -> None:
            progress(f'features of {part} images: {done:,} of {total:,}')

        report(0, len(dataset))
        collate = getattr(datamodule, 'collate_fn', None)
        options = {**kwargs, **({'collate': collate} if collate else {})}
        tables[part] = cached_features(
            cache, vit, dataset, transform=datamodule.aug, progress=report, **options
        )
    if 'val' not in tables:
        whole = tables['train']
        tables['train'], tables['val'] = (whole.take(part) for part in hold_out(whole.label))
    return tables
