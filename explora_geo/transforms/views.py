"""The views of a batch that a model sees, augmented and normalized on the device by kornia."""

from collections.abc import Callable
from typing import Any

import kornia.augmentation as K
from torch import Tensor, nn

Transform = Callable[[dict[str, Any]], dict[str, Any]]


def on_batches(*steps: Any) -> Any:
    """Kornia augmentations as one function from batch to batch.

    Args:
        *steps: Augmentations, in order.

    Returns:
        Function that changes ``image``, shape (B, C, H, W), and with it masks and boxes; other keys pass.
    """
    return K.AugmentationSequential(*steps, data_keys=None, keepdim=True)


def dihedral_flips() -> list[Any]:
    """Flips and quarter turns, for nadir images, that together give all eight orientations alike."""
    return [K.RandomHorizontalFlip(), K.RandomVerticalFlip(), K.RandomRotation90(times=(0, 3), p=1.0)]


def normalization(mean: Tensor, std: Tensor, clip: bool = False) -> Transform:
    """Make a transform that maps ``image``, shape (B, C, H, W), to (image - mean) / std.

    Args:
        mean: Mean of each band in the units of the images, shape (C,).
        std: Standard deviation of each band, shape (C,).
        clip: Whether what lies beyond [0, 1] then is cut off.
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
    """Make a transform that draws one random crop per image, mirrors it and normalizes.

    Args:
        mean: Mean of each band in the units of the images, shape (C,).
        std: Standard deviation of each band, shape (C,).
        image_size: Side of the result.
        crop_scale: Smallest and largest share of the image's area to crop.
        horizontal_flip: Whether to mirror half of the images left to right.
        vertical_flip: Whether to mirror half of the images top to bottom.
        quarter_turns: Whether to turn images by a random multiple of 90 degrees.
        clip: Whether what normalization maps beyond [0, 1] is cut off.

    Returns:
        Function from batch to batch that changes ``image`` from shape (B, C, H, W) to
        (B, C, image_size, image_size); other keys pass.

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
        # Half-pixel centers as in Pillow and torchvision, whose crops the weights were made on.
        align_corners=False,
        cropping_mode='slice',
    )
    asked = (horizontal_flip, vertical_flip, quarter_turns)
    moves = [crop, *(step for step, given in zip(dihedral_flips(), asked, strict=True) if given)]
    normalize = _normalize(mean, std, clip)
    # As in SatMAE values are cut off before the crop, whose interpolation then sees those that count.
    return on_batches(*normalize, *moves) if clip else on_batches(*moves, *normalize)


class FramesAsChannels(nn.Module):
    """Apply a transform of images to series: what is drawn for a series holds for all its frames.

    The frames are stacked as bands, so that a crop or a flip is the same for all; TorchGeo's
    `torchgeo.transforms.Rearrange` does the stacking alone. Statistics for it are one per band and frame:
    `mean.repeat(num_frames)`.
    """

    def __init__(self, transform: Transform) -> None:
        """Initialize a FramesAsChannels of a function of batches with ``image``, shape (B, T·C, H, W)."""
        super().__init__()
        self.transform = transform

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Transform ``image``, shape (B, T, C, H, W); other keys pass.

        Raises:
            ValueError: If the images are no series.
        """
        image: Tensor = batch['image']
        if image.ndim != 5:
            raise ValueError(f'series must have shape (B, T, C, H, W), got {tuple(image.shape)}')
        changed = self.transform({'image': image.flatten(1, 2)})
        return {**batch, **changed, 'image': changed['image'].unflatten(1, image.shape[1:3])}


def _normalize(mean: Tensor, std: Tensor, clip: bool) -> list[nn.Module]:
    return [K.Normalize(mean=mean, std=std), *([nn.Hardtanh(0, 1)] if clip else [])]
