"""Labeled images of several domains, held in memory as bytes.

DIR holds `EuroSAT_RGB.zip`, `presto_train_test_split.json`, `AID_128.zip`, `tiny_imagenet_202x100.zip` and
`NAIP/*.tif`; each is read once and cached as one `.npz` per domain in CACHE.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

#: Labeled images per class to fit probes, and to choose their settings.
PROBE = {'eurosat': (100, 50), 'aid': (60, 40), 'natural': (40, 10)}
LABELED = tuple(PROBE)


@dataclass(frozen=True)
class Domain:
    """Images of one domain and their splits."""

    name: str  # one of `LABELED`, or `naip`
    image: Tensor  # bytes, shape (N, 3, H, W)
    label: Tensor  # class of each image, shape (N,)
    archive: Tensor  # indices of the images to adapt to, without labels
    train: Tensor  # labeled images to fit probes
    val: Tensor  # labeled images to choose settings; like `train`, from the archive
    test: Tensor  # images to score, used for nothing else

    def to(self, device: torch.device | str) -> 'Domain':
        """Return a copy on a device."""
        parts: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **parts)


def load(name: str, folder: Path, cache: Path) -> Domain:
    """Load a domain, from the cache if available."""
    file = cache / f'{name}.npz'
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        images, labels, tested = _READERS[name](folder)
        part = file.with_suffix('.part.npz')
        np.savez(part, image=images, label=labels, tested=tested)
        part.rename(file)
    with np.load(file) as held:
        image, label, split = (torch.from_numpy(held[k]) for k in ('image', 'label', 'tested'))
    pool, test = ((split == part).nonzero().flatten() for part in (0, 1))
    if name == 'naip':  # one date to fit, one to choose settings, one to test
        return Domain(name, image, label, torch.arange(len(label)), pool, (split == 2).nonzero()[:, 0], test)
    generator, (fit, choose) = torch.Generator().manual_seed(0), PROBE[name]
    rows = []
    for wanted in label.unique():
        of_class = pool[label[pool] == wanted]
        rows.append(of_class[torch.randperm(len(of_class), generator=generator)[: fit + choose]])
    train, val = torch.cat([r[:fit] for r in rows]), torch.cat([r[fit:] for r in rows])
    return Domain(name, image, label, pool, train, val, test)


def take(order: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Take the next *size* of an order of *count* images, reshuffled when it ends; return both parts."""
    while len(order) < size:
        order = torch.cat([order, torch.randperm(count)])
    return order[:size], order[size:]


Read = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]


def _unpack(archive: Path, side: int) -> tuple[list[str], NDArray[np.uint8], NDArray[np.int64]]:
    """Return names, pixels, shape (N, 3, side, side), and classes of an archive's JPEG files, by name."""
    with zipfile.ZipFile(archive) as held:
        names = sorted(n for n in held.namelist() if n.lower().endswith(('.jpg', '.jpeg')))
        packed = [held.read(n) for n in names]

    def pixels(data: bytes) -> NDArray[np.uint8]:
        image = Image.open(io.BytesIO(data)).convert('RGB')
        image = image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(pixels, packed)))
    folders = [PurePosixPath(n).parent.name for n in names]
    return names, images, np.unique(folders, return_inverse=True)[1]


def _eurosat(folder: Path) -> Read:
    split = json.loads((folder / 'presto_train_test_split.json').read_text())
    test = {PurePosixPath(n).stem for n in split['test']}
    names, images, labels = _unpack(folder / 'EuroSAT_RGB.zip', 64)
    return images, labels, np.array([int(PurePosixPath(n).stem in test) for n in names])


def _halved(archive: Path, side: int) -> Read:
    """Hold out half of each class for testing, by the SHA-256 of the name."""
    names, images, labels = _unpack(archive, side)
    tested = np.zeros(len(names), np.int64)
    rank = np.array([int(hashlib.sha256(PurePosixPath(n).stem.encode()).hexdigest()[:15], 16) for n in names])
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        tested[of_class[np.argsort(rank[of_class])][: len(of_class) // 2]] = 1
    return images, labels, tested


def _naip(folder: Path) -> Read:
    """Read 64 px tiles of one scene at three dates; the class is the location."""
    images, labels, tested = [], [], []
    scenes: Sequence[Any] = sorted((folder / 'NAIP').glob('*.npy'))
    scenes = scenes or [scene_pixels(path) for path in sorted((folder / 'NAIP').glob('*.tif'))]
    for date, path in enumerate(scenes):
        scene = np.load(path)
        down, across = scene.shape[1] // 64, scene.shape[2] // 64
        for i in range(min(down, 11) * min(across, 14)):
            top, left = 64 * (i // 14), 64 * (i % 14)
            images.append(scene[:, top : top + 64, left : left + 64])
            labels.append(i)
            tested.append((0, 2, 1)[date])
    return np.stack(images), np.array(labels), np.array(tested)


def scene_pixels(path: Path) -> io.BytesIO:
    """Return red, green and blue of a scene as an in-memory `.npy` file, shape (3, H, W)."""
    import rasterio

    data = io.BytesIO()
    with rasterio.open(path) as scene:
        np.save(data, scene.read((1, 2, 3)))
    data.seek(0)
    return data


_READERS = {
    'eurosat': _eurosat,
    'aid': lambda folder: _halved(folder / 'AID_128.zip', 128),
    'natural': lambda folder: _halved(folder / 'tiny_imagenet_202x100.zip', 64),
    'naip': _naip,
}
