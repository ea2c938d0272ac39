"""Initialize patch embeddings of spectral bands from those of red, green and blue."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from explora_geo.models.tokenizers import GroupChannelTokenizer, Tokenizer

#: Central wavelengths, nm: nominal colors, and Sentinel-2A's bands (Sentinel-2 user handbook).
WAVELENGTHS: dict[str, float] = {
    'blue': 470, 'green': 550, 'red': 650, 'nir': 840, 'swir1': 1610, 'swir2': 2190,
    'B01': 442.7, 'B02': 492.4, 'B03': 559.8, 'B04': 664.6, 'B05': 704.1, 'B06': 740.5, 'B07': 782.8,
    'B08': 832.8, 'B8A': 864.7, 'B09': 945.1, 'B10': 1373.5, 'B11': 1613.7, 'B12': 2202.4,
}  # fmt: skip


def patch_embed_by_wavelength(
    state: Mapping[str, Tensor], source_bands: Sequence[str], tokenizer: Tokenizer
) -> dict[str, Tensor]:
    """Initialize the filters of each band from those of the bands nearest in wavelength (not in the paper).

    Between two source bands, filters are interpolated by wavelength; outside their range, those of the
    nearest band are used. Filters are scaled by the number of source bands over the number of summed bands,
    so that the tokens keep their magnitude, and resampled to the patch size.

    Args:
        state: Source tensors with `patch_embed.proj.weight`, shape (D, C, P, P), and its bias.
        source_bands: Names of the source bands.
        tokenizer: Tokenizer to fill; its tensors are returned, with the prefix `patch_embed.`.

    Raises:
        ValueError: If a band has no known wavelength, or the source is not a plain patch embedding.
    """
    weight, bias = (state.get(f'patch_embed.proj.{k}') for k in ('weight', 'bias'))
    if weight is None or bias is None or weight.shape[1] != len(source_bands):
        raise ValueError(
            'patch_embed_init wavelength requires weights with a single patch embedding for bands '
            f'{", ".join(source_bands)}'
        )
    unknown = [band for band in (*source_bands, *tokenizer.bands) if band not in WAVELENGTHS]
    if unknown:
        raise ValueError(
            f'unknown wavelength for bands {", ".join(unknown)}: use names from {", ".join(WAVELENGTHS)}, or '
            'set patch_embed_init to random'
        )
    size = [tokenizer.patch_size, tokenizer.patch_size]
    weight = resample_patch_embed(weight.float(), size)
    parts = {'patch_embed.proj': tokenizer.bands}
    if isinstance(tokenizer, GroupChannelTokenizer):
        parts = {f'patch_embed.proj.{i}': group for i, group in enumerate(tokenizer.channel_groups)}
    found = {}
    for name, group in parts.items():
        filters = torch.stack([_mix(weight, source_bands, WAVELENGTHS[band]) for band in group], dim=1)
        found[f'{name}.weight'] = filters * (len(source_bands) / len(group))
        found[f'{name}.bias'] = bias.float().clone()
    return found


def _mix(weight: Tensor, bands: Sequence[str], wavelength: float) -> Tensor:
    """Return the filter at a wavelength, shape (D, P, P)."""
    known = sorted((WAVELENGTHS[band], i) for i, band in enumerate(bands))
    for (low, i), (high, j) in pairwise(known):
        if low <= wavelength <= high:
            share = (wavelength - low) / (high - low)
            return (1 - share) * weight[:, i] + share * weight[:, j]
    return weight[:, known[0 if wavelength < known[0][0] else -1][1]]
