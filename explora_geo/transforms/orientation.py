"""The eight orientations of a nadir image: quarter turns, and quarter turns of its mirror image."""

import torch
from torch import Tensor

#: Numbers of orientations that features may be averaged over: as it is, quarter turns, mirror images too.
TURNS = (1, 4, 8)


def turn(image: Tensor, k: int) -> Tensor:
    """An image, or a map of features, in another orientation.

    Args:
        image: Shape (..., H, W).
        k: Orientation from 0, as it is, to 7: `k % 4` quarter turns, then mirrored left to right from 4 on.

    Returns:
        Shape (..., H, W), or (..., W, H) for odd `k`.
    """
    turned = torch.rot90(image, k % 4, (-2, -1))
    return turned.flip(-1) if k >= 4 else turned


def turn_back(image: Tensor, k: int) -> Tensor:
    """Undo `turn`."""
    return torch.rot90(image.flip(-1) if k >= 4 else image, -(k % 4), (-2, -1))


def orientations(turns: int, height: int, width: int) -> list[int]:
    """Orientations to average over: those of `turns` that keep the sides of an image.

    Args:
        turns: 1, 4 or 8.
        height: Height of the image.
        width: Its width; half turns alone fit images that are not square.

    Raises:
        ValueError: If `turns` is another number.
    """
    if turns not in TURNS:
        raise ValueError(f'turns must be 1, 4 or 8, got {turns}')
    return [k for k in range(turns) if height == width or k % 2 == 0]
