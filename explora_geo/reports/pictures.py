"""Pictures of a report: features and nearest neighbors of the same tiles in several backbones."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from explora_geo.bands import true_color_bands
from explora_geo.evaluation.features import evaluating, mean_patches
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE

Pixels = NDArray[np.uint8]
#: Function from normalized tiles, shape (N, C, H, W), to pixels, shape (N, H, W, 3).
Display = Callable[[Tensor], Pixels]

#: Fewest patches along a side of a feature picture.
GRID = 14
#: Tiles whose features and reconstructions are shown, and tiles for the mean feature at each position.
FEW, MANY = 8, 40


def display_tiles(
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    bands: Sequence[str],
    high: float | None = 255.0,
) -> Display:
    """Return a function that shows tiles normalized by mean and std, shape (C,), in true color, else gray.

    `high` is the value shown as white, with 0 as black; None stretches each stack of tiles between its 2nd
    and 98th percentiles.
    """
    shown = (3 * true_color_bands(bands))[:3]
    center, scale = (
        torch.as_tensor(x, dtype=torch.float32).flatten()[shown].view(3, 1, 1) for x in (mean, std)
    )

    def show(tiles: Tensor) -> Pixels:
        values = (tiles[:, shown].detach().cpu().float() * scale + center).permute(0, 2, 3, 1).numpy()
        low, top = (0.0, high) if high is not None else np.percentile(values, (2, 98))
        return _bytes((values - low) / max(top - low, 1e-6))

    return show


def compute_pictures(
    models: Mapping[str, ViT],
    images: Tensor,
    display: Display,
    names: Sequence[str] = (),
    shown: int = 12,
    neighbors: int = 5,
) -> dict[str, Any]:
    """Compute feature pictures and nearest neighbors before and after an adaptation.

    Args:
        models: Backbones by kind: `source`, `adapted` and optionally `beside`, another adapted one.
        images: Normalized sample of the archive, shape (M, C, H, W), with M of 2 or more.
        display: Function that shows such tiles; see `display_tiles`.
        names: Names of the tiles.
        shown: Evenly spaced tiles whose neighbors are shown; at most eight of them also show features.
        neighbors: Neighbors per tile.

    Returns:
        `tiles`, uint8 (N, H, W, 3), and `names`; `patches_<kind>`, (N, h, w, D); `gallery`, uint8
        (G, H, W, 3), `gallery_names`, `queries`, (Q,), `neighbors_<kind>`, (Q, k), rows of the gallery.
    """
    if len(images) < 2:
        raise ValueError(f'pictures need at least 2 tiles, got {len(images)}')
    queries = _spaced(len(images), shown)
    few = queries[_spaced(len(queries), FEW)]
    ranked = {k: _nearest(v, images, queries, min(neighbors, len(images) - 1)) for k, v in models.items()}
    used = np.unique(np.concatenate([queries, *(r.ravel() for r in ranked.values())]))
    named = [*names, *([''] * len(images))]
    texts = [named[i] or f'tile {i + 1}' for i in range(len(images))]
    return {
        'tiles': display(images[few]),
        'names': [texts[i] for i in few],
        **{f'patches_{k}': _patches(v, images, few) for k, v in models.items()},
        'gallery': display(images[used]),
        'queries': np.searchsorted(used, queries),
        **{f'neighbors_{k}': np.searchsorted(used, r) for k, r in ranked.items()},
        'gallery_names': [texts[i] for i in used],
    }


def _spaced(count: int, most: int) -> NDArray[np.int64]:
    """Return evenly spaced indices, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def _nearest(vit: ViT, images: Tensor, queries: NDArray[Any], neighbors: int) -> NDArray[np.int64]:
    """Find the nearest other tiles of some tiles by cosine, as in k-NN, shape (Q, k)."""
    found = F.normalize(mean_patches(vit, images, 32), dim=1)
    similarity = found[queries] @ found.T
    similarity[torch.arange(len(queries)), torch.from_numpy(queries)] = -torch.inf
    return similarity.topk(neighbors).indices.numpy()


def _patches(vit: ViT, images: Tensor, few: NDArray[Any]) -> NDArray[np.float32]:
    """Compute patch features of some tiles minus the mean at each position, which encodes the position."""
    many = np.union1d(few, _spaced(len(images), MANY))
    maps = patch_maps(vit, images[many])
    if len(many) >= MANY // 2:  # a mean of fewer tiles would mostly reflect their content
        maps = maps - maps.mean(0)
    return maps[np.searchsorted(many, few)]


def patch_maps(vit: ViT, images: Tensor, grid: int = GRID) -> NDArray[np.float32]:
    """Compute slot-averaged patch features, shape (N, h, w, D), of normalized tiles, shape (N, C, H, W).

    Tiles are enlarged until the shorter side has at least `grid` patches.
    """
    tokenizer = vit.patch_embed
    size = tokenizer.patch_size
    scale = max(grid * size / min(images.shape[-2:]), 1)
    height, width = (max(round(side * scale / size), 1) * size for side in images.shape[-2:])
    if (height, width) != tuple(images.shape[-2:]):
        images = F.interpolate(images, (height, width), mode='bicubic', align_corners=False)
    before, tokenizer.dynamic_img_size = tokenizer.dynamic_img_size, True
    try:
        with evaluating(vit) as device:
            parts = [vit(b.to(device)).patches.mean(1).float().cpu() for b in images.split(4)]
    finally:
        tokenizer.dynamic_img_size = before
    return torch.cat(parts).unflatten(1, (height // size, width // size)).numpy()


def reconstruct(objective: MAE, images: Tensor, display: Display) -> dict[str, Pixels]:
    """Reconstruct masked normalized tiles, shape (N, C, H, W), by a masked autoencoder for the page."""
    images = images[:FEW]
    with torch.random.fork_rng(), evaluating(objective) as device:
        torch.manual_seed(0)
        found = objective.pictures(images.to(device))
    return {
        'tile': display(images),
        'masked': display(found['masked']),
        'reconstructed': display(found['reconstruction']),
    }


def feature_colors(source: NDArray[Any], *adapted: NDArray[Any]) -> tuple[Pixels, ...]:
    """Show the first three principal components of patch features, shape (N, h, w, D), as RGB.

    Each set is centered and scaled on its own, then one PCA is fitted to all, so that equal colors mean equal
    directions; color limits are shared, too. Sets of different shapes raise ValueError.
    """
    for other in adapted:
        if source.shape != other.shape or source.ndim != 4:
            raise ValueError(
                f'patch features must all have shape (N, h, w, D), got {source.shape} and {other.shape}'
            )
    sets = [x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (source, *adapted)]
    sets = [(x - x.mean(0)) / max(float(x.std()), 1e-12) for x in sets]
    flat = np.concatenate(sets)
    with np.errstate(invalid='ignore'):  # constant features have zero variance
        scores = PCA(min(3, flat.shape[1]), svd_solver='covariance_eigh').fit_transform(flat)
    scores = np.pad(scores, ((0, 0), (0, 3 - scores.shape[1])))
    low, high = np.percentile(scores, (2, 98), axis=0)
    colors = _bytes((scores - low) / np.maximum(high - low, 1e-9))
    return tuple(colors.reshape(len(sets), *source.shape[:3], 3))


def _bytes(values: NDArray[Any]) -> Pixels:
    """Convert values in [0, 1] to bytes."""
    return (255 * np.clip(np.nan_to_num(values), 0, 1)).round().astype(np.uint8)


def data_uri(pixels: NDArray[Any], side: int | None = None, quality: int | None = None) -> str:
    """Encode pixels, shape (H, W, 3), scaled down to `side`: JPEG with a quality (1 to 95), else PNG."""
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    if side is not None:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file, kind = io.BytesIO(), 'png' if quality is None else 'jpeg'
    picture.save(file, kind, optimize=True, **({} if quality is None else {'quality': quality}))
    return f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
