"""Transforms of time series, (B, T, C, H, W), by those of images."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class FramesAsChannels(nn.Module):
    """Apply a transform of images to series: what is drawn for a series holds for all its frames.

    The frames are stacked as bands, so that a crop or a flip is the same for all; TorchGeo's
    `torchgeo.transforms.Rearrange` does the stacking alone. Statistics for it are one per band and frame:
    `mean.repeat(num_frames)`.
    """

    def __init__(self, transform: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Initialize a FramesAsChannels.

        Args:
            transform: Function from batch to batch that reads ``image``, shape (B, T·C, H, W).
        """
        super().__init__()
        self.transform = transform

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Transform ``image``, shape (B, T, C, H, W); other keys pass.

        Raises:
            ValueError: If the images are no series.
        """
        image: Tensor = batch['image']
        if image.ndim != 5:
            raise ValueError(f'series must have shape (B, T, C, H, W), got {tuple(image.shape)}.')
        others = {key: value for key, value in batch.items() if key != 'image'}
        changed = self.transform({'image': image.flatten(1, 2)})
        return {**others, **changed, 'image': changed['image'].unflatten(1, image.shape[1:3])}
