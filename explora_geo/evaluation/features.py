"""Frozen features of images, and their disk cache, keyed by weights, images and transform."""

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from explora_geo.checkpoints import read_state, state_sha256, write_state
from explora_geo.evaluation.probes import hold_out
from explora_geo.models.matching import match_data
from explora_geo.models.readout import check_turns, turn
from explora_geo.models.vit import ViT

#: Images per cache file: the most work an interruption can lose.
SHARD = 2048
# Incremented when the content or the key of cache files changes.
_VERSION = 2
# Images hashed to identify the transform.
_FIRST = 8


class FeatureTable(NamedTuple):
    """Features of a data set, in half precision if cached.

    Attributes:
        cls: Class tokens of the last blocks, last block last, shape (N, blocks, D).
        avg: Mean patch tokens of the same blocks, over slots and patches, shape (N, blocks, D).
        label: Classes, shape (N,).
        skipped: Images that could not be read, `<path>: <reason>`.
    """

    cls: Tensor
    avg: Tensor
    label: Tensor
    skipped: tuple[str, ...] = ()

    def take(self, index: Tensor) -> Self:
        """Select rows."""
        return self._replace(cls=self.cls[index], avg=self.avg[index], label=self.label[index])

    def stacked(self, blocks: int) -> Tensor:
        """Return one vector per image, shape (N, (1 + blocks)·D); each sweep variant is a slice of it.

        The mean patch token of the last block comes first, then class tokens from the last block backwards.
        """
        return torch.cat([self.avg[:, -1], self.cls[:, -blocks:].flip(1).flatten(1)], dim=1)

    def arrays(self, last_blocks: int = 1) -> dict[str, NDArray[np.float32]]:
        """Return feature sets by name, each of shape (N, F), for methods without a sweep over blocks.

        Class and mean patch token of the last block, or the concatenated class tokens of several blocks.
        """
        if last_blocks == 1:
            return {kind: getattr(self, kind)[:, -1].float().numpy() for kind in ('cls', 'avg')}
        return {f'cls of {last_blocks} blocks': self.cls[:, -last_blocks:].flatten(1).float().numpy()}

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several tables."""
        tokens, means, labels, skipped = zip(*parts, strict=True)
        return cls(torch.cat(tokens), torch.cat(means), torch.cat(labels), tuple(itertools.chain(*skipped)))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """Put a model in evaluation mode without gradients, yield its device, and restore its mode."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def tokens_of(
    vit: ViT, batch: Mapping[str, Any], blocks: Sequence[int], orientation: int = 0
) -> tuple[Tensor, Tensor]:
    """Compute class and mean patch tokens of a batch in one orientation, each of shape (B, blocks, D)."""
    device, times = vit.cls_token.device, batch.get('timestamps')
    times = None if times is None else times.to(device)
    found = vit.intermediate(turn(batch['image'].to(device), orientation), blocks, timestamps=times)
    patches = [f.patches.flatten(1, 2).mean(1) for f in found]
    return torch.stack([f.cls for f in found], 1).float(), torch.stack(patches, 1).float()


def mean_patches(vit: ViT, images: Tensor, batch_size: int = 64) -> Tensor:
    """Compute the last block's mean patch tokens, shape (N, D), of normalized images, (N, C, H, W)."""
    with evaluating(vit) as device:
        parts = [vit(b.to(device)).patches.flatten(1, 2).mean(1).cpu() for b in images.split(batch_size)]
    return torch.cat(parts).float()


def extract_features(
    vit: ViT, batches: Iterable[Mapping[str, Any]], blocks: int = 4, turns: int = 1
) -> FeatureTable:
    """Extract class and mean patch tokens of the last blocks, in float32.

    Args:
        vit: Backbone, on the device to use.
        batches: Sample dicts with normalized `image`, shape (B, C, H, W) or the tokenizer's, `label`, shape
            (B,), and `timestamps` for temporal tokenizers; without `image` only `skipped` is read.
        blocks: Number of last blocks.
        turns: Orientations of each image that features are averaged over: 1, 4 or 8.

    Raises:
        ValueError: If there is no image, an image has no single class, or `turns` is another number.
    """
    check_turns(turns)
    skipped: list[str] = []
    parts: list[FeatureTable] = []
    with evaluating(vit):
        for batch in batches:
            skipped.extend(batch.get('skipped', ()))
            if 'image' not in batch:
                continue
            label = batch.get('label')
            if not isinstance(label, Tensor) or label.ndim != 1:
                shape = tuple(label.shape) if isinstance(label, Tensor) else None
                raise ValueError(
                    f'a probe needs one class per image, got labels of shape {shape}: use images in class '
                    'folders, or a data module whose batches contain label of shape (B,)'
                )
            seen = [torch.stack(tokens_of(vit, batch, range(-blocks, 0), n)) for n in range(turns)]
            cls, avg = torch.stack(seen).mean(0).cpu()
            parts.append(FeatureTable(cls, avg, label.cpu()))
    if not parts:
        reason = f'none of {len(skipped)} images can be used, first {skipped[0]}' if skipped else ''
        raise ValueError(reason or 'no images to extract features from')
    return FeatureTable.joined(parts)._replace(skipped=tuple(skipped))


def dataset_sha256(dataset: Dataset[Any]) -> str | None:
    """Hash a data set by the names, sizes and modification times of its files, and its labels.

    `Subset` and `ConcatDataset` are unwrapped. Return None if a data set lists no files, in `files` or
    `samples`, or draws its images at random.
    """
    if isinstance(dataset, Subset):
        whole = dataset_sha256(dataset.dataset)
        return whole and _sha256(f'{whole}{list(dataset.indices)}')
    if isinstance(dataset, ConcatDataset):
        parts = [dataset_sha256(part) for part in dataset.datasets]
        return None if None in parts else _sha256(str(parts))
    lists = (getattr(dataset, name, None) for name in ('files', 'samples'))  # the latter are torchvision's
    entries = next((e for e in lists if isinstance(e, Sequence) and e), ())
    paths = (entry[0] if isinstance(entry, tuple) else entry for entry in entries)
    files = [Path(path) for path in paths if isinstance(path, str | Path)]
    if not files or getattr(dataset, 'random_frames', False):
        return None
    root = Path(getattr(dataset, 'root', '/'))
    if (root / 'pack.json').is_file():
        files += sorted(root.iterdir())
    lines = []
    for path in files:
        version = 'missing'
        with suppress(OSError):  # a missing file is skipped when read; a pack has its own files
            version = f'{path.stat().st_size}|{path.stat().st_mtime_ns}'
        lines.append(f'{path.relative_to(root) if path.is_relative_to(root) else path}|{version}\n')
    return _sha256(''.join(lines) + f'{getattr(dataset, "classes", "")}{getattr(dataset, "labels", "")}')


def cached_features(
    folder: str | Path | None,
    vit: ViT,
    dataset: Dataset[Any],
    *,
    transform: Callable[[dict[str, Any]], dict[str, Any]] = lambda batch: batch,
    collate: Callable[[list[Any]], dict[str, Any]] = default_collate,
    blocks: int = 4,
    turns: int = 1,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FeatureTable:
    """Extract features of a data set, or read them from the cache.

    A cache entry is keyed by weights, files and transform (by its output for the first few images), not by
    batch size. Its files are written atomically, so an interrupted extraction resumes at the first missing
    file. Data that list no files or draw images at random are not cached, with a warning.

    Args:
        folder: Cache folder; None disables the cache.
        vit: Plain or merged backbone, on the device to use.
        dataset: Samples with `image`, `label` and, for temporal tokenizers, `timestamps`.
        transform: Normalization of a batch, on the device.
        collate: Function that makes a batch of samples.
        blocks: Number of last blocks; all of a shallower backbone.
        turns: Orientations of each image that features are averaged over: 1, 4 or 8.
        batch_size: Images per forward pass.
        num_workers: Data-loading processes.
        progress: Called with the number of images done and the total.

    Returns:
        Features in the order of the data set, in half precision; errors are those of `extract_features`.
    """
    total: int = len(dataset)  # type: ignore[arg-type]
    if not total:
        raise ValueError('no images to extract features from')
    blocks, device = min(blocks, vit.depth), vit.cls_token.device

    def batches(start: int, stop: int, size: int, workers: int = 0) -> Iterator[dict[str, Any]]:
        part = Subset(dataset, range(start, stop))
        for batch in DataLoader(part, size, num_workers=workers, collate_fn=collate):
            moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            yield transform(moved) if 'image' in moved else moved

    entry = None
    if folder is not None:
        data = dataset_sha256(dataset)
        first, again = (_batch_sha256(next(batches(0, min(_FIRST, total), _FIRST))) for _ in range(2))
        described = {'version': _VERSION, 'weights': state_sha256(vit.state_dict()), 'data': data}
        described |= {'transform': first, 'blocks': blocks, 'turns': turns, 'shard': SHARD}
        if data is not None and first == again:
            entry = Path(folder) / _sha256(json.dumps(described, sort_keys=True))[:20]
        else:
            text = 'Features are not cached: the data set lists no files, or draws images at random '
            warnings.warn(f'{text}(random_frames).', stacklevel=2)
    parts = []
    for number, start in enumerate(range(0, total, SHARD)):
        stop = min(start + SHARD, total)
        file = None if entry is None else entry / f'features_{number:05d}.safetensors'
        if file is not None and file.is_file():
            state, metadata = read_state(file)
            part = FeatureTable(**state, skipped=tuple(json.loads(metadata['skipped'])))
        else:
            found = extract_features(vit, batches(start, stop, batch_size, num_workers), blocks, turns)
            part = found._replace(cls=found.cls.half(), avg=found.avg.half())
            if file is not None:
                state = {'cls': part.cls, 'avg': part.avg, 'label': part.label}
                write_state(file, state, {'skipped': json.dumps(part.skipped)})
        parts.append(part)
        progress(stop, total)
    return FeatureTable.joined(parts)


def _batch_sha256(batch: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(batch.items()):
        content = value.numpy(force=True).tobytes() if isinstance(value, Tensor) else str(value).encode()
        digest.update(key.encode() + content)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def extract_parts(
    vit: ViT,
    datamodule: Any,
    cache: Path | None,
    progress: Callable[[str], None] = lambda text: None,
    statistics: Literal['model', 'data'] | None = None,
    **options: Any,
) -> dict[str, FeatureTable]:
    """Extract cached features of a data module's `train`, `val` and `test`; arguments are those of `probe`.

    Without a validation split, hold out a tenth of the training images, evenly spaced within each class.
    """
    for stage in ('fit', 'test'):
        datamodule.setup(stage)
    match_data(datamodule, vit, statistics)
    options['collate'] = getattr(datamodule, 'collate_fn', default_collate)
    datasets = {part: getattr(datamodule, f'{part}_dataset', None) for part in ('train', 'val', 'test')}
    if missing := [part for part in ('train', 'test') if datasets[part] is None]:
        raise ValueError(
            f'the data module has no {missing[0]} images: a probe needs both train and test images'
        )
    tables = {}
    for part, dataset in datasets.items():

        def report(done: int, total: int, part: str = part) -> None:
            progress(f'features of {part} images: {done:,} of {total:,}')

        if dataset is not None:
            report(0, len(dataset))
            options |= {'transform': datamodule.aug, 'progress': report}
            tables[part] = cached_features(cache, vit, dataset, **options)
        else:
            kept, held = hold_out(tables['train'].label)
            tables |= {'val': tables['train'].take(held), 'train': tables['train'].take(kept)}
    return tables
