"""The views of a batch a model sees: augmented and normalized on the device."""

from collections.abc import Callable, Sequence
from typing import Any

import kornia.augmentation as K
from torch import Tensor

from .multicrop import MultiCrop, ViewsConfig
from .spectral import dihedral_flips

Transform = Callable[[dict[str, Any]], dict[str, Any]]


def normalization(mean: Tensor, std: Tensor) -> Transform:
    """Make a transform that only normalizes.

    Args:
        mean: Mean of each band in the units of the images, shape (C,).
        std: Standard deviation of each band, shape (C,).

    Returns:
        Function from batch to batch that changes ``image``, shape (B, C, H, W), to zero mean and
        unit variance; other keys pass.
    """
    return K.AugmentationSequential(K.Normalize(mean=mean, std=std), data_keys=None, keepdim=True)


def training_view(
    mean: Tensor,
    std: Tensor,
    image_size: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    horizontal_flip: bool = True,
    vertical_flip: bool = False,
    quarter_turns: bool = False,
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

    Returns:
        Function from batch to batch that changes ``image`` from shape (B, C, H, W) to
        (B, C, image_size, image_size); other keys pass.

    Raises:
        ValueError: If the crop scale is not an interval within (0, 1].
    """
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f'crop_scale must be (low, high) with 0 < low <= high <= 1, got {low, high}.')
    steps: list[Any] = [
        K.RandomResizedCrop(
            (image_size, image_size),
            scale=(low, high),
            resample='bicubic',
            # Half-pixel centers as in Pillow and torchvision, whose crops the weights were made on.
            align_corners=False,
            cropping_mode='slice',
        )
    ]
    asked = (horizontal_flip, vertical_flip, quarter_turns)
    steps += [step for step, given in zip(dihedral_flips(), asked, strict=True) if given]
    steps.append(K.Normalize(mean=mean, std=std))
    return K.AugmentationSequential(*steps, data_keys=None, keepdim=True)


def training_views(
    config: ViewsConfig, bands: Sequence[str], normalize: Transform, mean: Tensor, std: Tensor
) -> Transform:
    """Make a transform that normalizes and draws several crops per image.

    Args:
        config: What to draw.
        bands: Names of the bands, in image order.
        normalize: Function from batch to batch that normalizes ``image``, shape (B, C, H, W), or series.
        mean: Mean of each band that it subtracts, shape (C,).
        std: Standard deviation of each band that it divides by, shape (C,).

    Returns:
        Function from batch to batch that normalizes and adds ``views``, see :class:`MultiCrop`.
    """
    crop = MultiCrop(config, bands, mean, std)

    def transform(batch: dict[str, Any]) -> dict[str, Any]:
        batch = normalize(batch)
        return {**batch, 'views': crop(batch['image'])}

    return transform
