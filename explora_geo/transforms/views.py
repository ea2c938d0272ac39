"""Model views of a batch, augmented and normalized on the device by kornia."""

from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
from torch import Tensor, nn

Transform = Callable[[dict[str, Any]], dict[str, Any]]


def on_batches(*steps: Any) -> Any:
    """Combine kornia augmentations into one function from batch to batch.

    Args:
        *steps: Augmentations, in order.

    Returns:
        Function that changes ``image``, shape (B, C, H, W), masks and boxes and keeps other keys.
    """
    return K.AugmentationSequential(*steps, data_keys=None, keepdim=True)


def dihedral_flips() -> list[Any]:
    """Return flips and quarter turns for nadir images that make all eight orientations equally likely."""
    return [K.RandomHorizontalFlip(), K.RandomVerticalFlip(), K.RandomRotation90(times=(0, 3), p=1.0)]


def normalization(mean: Tensor, std: Tensor, clip: bool = False) -> Transform:
    """Make a transform that maps ``image``, shape (B, C, H, W), to (image - mean) / std.

    Args:
        mean: Mean of each band in the units of the images, shape (C,).
        std: Standard deviation of each band, shape (C,).
        clip: Whether to clip the result to [0, 1].
    """
    return on_batches(*_normalize(mean, std, clip))


def training_view(
    mean: Tensor,
    std: Tensor,
    image_size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    horizontal_flip: bool = True,
    vertical_flip: bool = False,
    quarter_turns: bool = False,
    clip: bool = False,
) -> Transform:
    """Make a transform that draws one random crop per image, flips and normalizes it.

    Args:
        mean: Mean of each band in the units of the images, shape (C,).
        std: Standard deviation of each band, shape (C,).
        image_size: Side of the result, pixels.
        crop_scale: Smallest and largest share of the image's area to crop.
        horizontal_flip: Whether to flip half of the images left to right.
        vertical_flip: Whether to flip half of the images top to bottom.
        quarter_turns: Whether to rotate images by a random multiple of 90 degrees.
        clip: Whether to clip normalized values to [0, 1].

    Returns:
        Function from batch to batch that changes ``image`` from shape (B, C, H, W) to
        (B, C, image_size, image_size) and keeps other keys.

    Raises:
        ValueError: If the crop scale is not an interval within (0, 1].
    """
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f'crop_scale must be (low, high) with 0 < low <= high <= 1, got {low, high}')
    crop = K.RandomResizedCrop(
        (image_size, image_size),
        scale=(low, high),
        resample='bicubic',
        # Half-pixel centers as in Pillow and torchvision, whose crops the weights were trained on.
        align_corners=False,
        cropping_mode='slice',
    )
    asked = (horizontal_flip, vertical_flip, quarter_turns)
    moves = [crop, *(step for step, given in zip(dihedral_flips(), asked, strict=True) if given)]
    normalize = _normalize(mean, std, clip)
    # As in SatMAE, clip before the crop, which then interpolates clipped values.
    return on_batches(*normalize, *moves) if clip else on_batches(*moves, *normalize)


class FramesAsChannels(nn.Module):
    """Image transform applied to time series, with the same random draw for all frames of a series.

    Frames are stacked as bands, so that all share a crop or a flip; TorchGeo's
    `torchgeo.transforms.Rearrange` only stacks. Give statistics per band and frame:
    `mean.repeat(num_frames)`.
    """

    def __init__(self, transform: Transform) -> None:
        """Initialize a FramesAsChannels from a transform of batches with ``image``, shape (B, T·C, H, W)."""
        super().__init__()
        self.transform = transform

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Transform ``image``, shape (B, T, C, H, W), and keep other keys.

        Raises:
            ValueError: If the images are not series.
        """
        image: Tensor = batch['image']
        if image.ndim != 5:
            raise ValueError(f'series must have shape (B, T, C, H, W), got {tuple(image.shape)}')
        changed = self.transform({'image': image.flatten(1, 2)})
        return {**batch, **changed, 'image': changed['image'].unflatten(1, image.shape[1:3])}


def _normalize(mean: Tensor, std: Tensor, clip: bool) -> list[nn.Module]:
    return [K.Normalize(mean=mean, std=std), *([nn.Hardtanh(0, 1)] if clip else [])]
