"""Features averaged over the orientations of a tile: seen from above, it has no upright one."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from explora_geo.models.vit import Features, ViT

#: One pass; four quarter turns; these and their mirror images.
TURNS = (1, 4, 8)


def check_turns(turns: int) -> int:
    """The number of orientations, if it is one of `TURNS`.

    Raises:
        ValueError: If it is another number.
    """
    if turns not in TURNS:
        raise ValueError(f'turns must be 1, 4 (quarter turns) or 8 (mirrored, too), got {turns}')
    return turns


def turn(image: Tensor, number: int) -> Tensor:
    """An orientation of an image, shape (..., H, W): mirrored from number 4 on, then quarter turns."""
    return torch.rot90(image.flip(-1) if number >= 4 else image, number % 4, (-2, -1))


def turn_back(image: Tensor, number: int) -> Tensor:
    """Undo `turn`."""
    image = torch.rot90(image, -(number % 4), (-2, -1))
    return image.flip(-1) if number >= 4 else image


def average_maps(function: Callable[[Tensor], Tensor], image: Tensor, turns: int = 1) -> Tensor:
    """Mean over orientations of what a function gives for each place of an image.

    Args:
        function: From images, shape (..., H, W), to maps, shape (B, K, h, w).
        image: Images, shape (..., H, W).
        turns: Orientations: 1, 4 or 8.

    Returns:
        Maps in the orientation of the images, shape (B, K, h, w).

    Raises:
        ValueError: If `turns` is another number.
    """
    total = function(image)
    for number in range(1, check_turns(turns)):
        total = total + turn_back(function(turn(image, number)), number)
    return total / turns


def average_features(
    vit: ViT, image: Tensor, blocks: Sequence[int], turns: int = 1, *, timestamps: Tensor | None = None
) -> list[Features]:
    """Features after the named blocks, averaged over orientations; patches are turned back before.

    Turning a tile then changes no class token and no mean patch, and turns its patches with it.

    Args:
        vit: Backbone.
        image: Normalized image, shape (B, C, H, W), or as the tokenizer says.
        blocks: Block indices counted from 0; negative ones from the end.
        turns: Orientations: 1, 4 or 8, each a forward pass.
        timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

    Returns:
        One `Features` per block, in the order asked for.

    Raises:
        ValueError: If `turns` is another number.
    """
    sums: list[Features] = []
    for number in range(check_turns(turns)):
        seen = turn(image, number)
        height, width = vit.patch_embed.grid(seen)
        found = []
        for part in vit.intermediate(seen, blocks, timestamps=timestamps):
            maps = part.patches.transpose(-2, -1).unflatten(-1, (height, width))  # (B,S,L,D) -> (B,S,D,h,w)
            found.append(part._replace(patches=turn_back(maps, number).flatten(-2).transpose(-2, -1)))
        sums = [_combine(torch.add, a, b) for a, b in zip(sums, found, strict=True)] if number else found
    return [_combine(lambda x, _: x / turns, f, f) for f in sums]


def _combine(function: Callable[[Tensor, Tensor], Tensor], a: Features, b: Features) -> Features:
    registers = None if a.registers is None or b.registers is None else function(a.registers, b.registers)
    return Features(function(a.cls, b.cls), function(a.patches, b.patches), registers)
