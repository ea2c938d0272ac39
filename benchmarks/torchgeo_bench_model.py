"""Our backbones as models of torchgeo-bench: `conf/model/explora_geo.yaml` names this class.

torchgeo-bench builds a model for the bands of each data set and reads one vector per image from it; this
module imports nothing of torchgeo-bench.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.bands import same_bands
from explora_geo.checkpoints import load_backbone


class ExPLoRABench(nn.Module):
    """A plain, merged or adapted backbone; segmentation probes read the layers `backbone.blocks.<i>`."""

    def __init__(
        self,
        bands: Sequence[Any],
        weights: str,
        adapter: str | None = None,
        model: str | None = None,
        img_size: int | None = None,
        tokens: Literal['cls', 'avg', 'cls+avg'] = 'cls',
        normalization: str = 'bandspec_zscore',
        **_: Any,
    ) -> None:
        """Initialize an ExPLoRABench.

        Args:
            bands: Bands in channel order, as torchgeo-bench passes them.
            weights: Merged or source weights: a file, a name of ours, or `timm/<name>`.
            adapter: Adapter file trained on these weights.
            model: Backbone name, if the file does not state it.
            img_size: Side to which images are resized; the model's own if None.
            tokens: Image representation: class token, mean patch, or both.
            normalization: `bandspec_zscore` (statistics of each data set) or `identity`.
        """
        super().__init__()
        if normalization not in ('bandspec_zscore', 'identity'):
            raise ValueError(f'normalization must be bandspec_zscore or identity, got {normalization!r}')
        if tokens not in ('cls', 'avg', 'cls+avg'):
            raise ValueError(f'tokens must be cls, avg or cls+avg, got {tokens!r}')
        self.bands, self.num_channels, self.tokens = list(bands), len(bands), tokens
        file = None if adapter is None else Path(adapter)
        self.backbone = load_backbone(model, weights, file, img_size=img_size)
        given, wanted = [str(b.name) for b in self.bands], list(self.backbone.patch_embed.bands)
        if not same_bands(given, wanted):
            found = f'the model expects the bands {", ".join(wanted)}, but the dataset has {", ".join(given)}'
            raise ValueError(f'{found}: set dataset.bands to the bands of the model, in the same order')
        plain = normalization == 'identity'
        mean, std = ([float(getattr(b, key)) for b in self.bands] for key in ('mean', 'std'))
        for name, values, one in (('mean', mean, 0.0), ('std', std, 1.0)):
            value = torch.tensor([one] * len(values) if plain else values).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """Normalize raw images, shape (B, C, H, W)."""
        return (images - self.get_buffer('mean')) / self.get_buffer('std').clamp_min(1e-8)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return one vector per raw image, shape (B, C, H, W) -> (B, K)."""
        x, tokenizer = self.normalize_inputs(images.float()), self.backbone.patch_embed
        side = tokenizer.grid_size[0] * tokenizer.patch_size
        if x.shape[-2:] != (side, side):
            x = F.interpolate(x, (side, side), mode='bilinear', antialias=True)
        found = self.backbone(x)
        kinds = {'cls': found.cls, 'avg': found.patches.flatten(1, 2).mean(1)}
        return torch.cat([kinds[kind] for kind in self.tokens.split('+')], dim=1)

    forward_patch_features = forward
