"""Which tiles cover a scene, how they blend, and which blocks of the output are worked on."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle of pixels: rows from `top` to `bottom`, columns from `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True)
class TileGrid:
    """Overlapping tiles over a scene, the same wherever a computation starts.

    Attributes:
        height: Height of the scene, pixels.
        width: Width of the scene, pixels.
        tile: Side of a tile, pixels.
        stride: Distance of tiles, pixels; the last one of each direction is moved to end at the edge.
        block: Side of the blocks that are finished one by one, pixels.
    """

    height: int
    width: int
    tile: int
    stride: int
    block: int

    @classmethod
    def create(cls, height: int, width: int, tile: int, overlap: float, block: int, step: int = 1) -> Self:
        """Make a grid.

        Args:
            height: Height of the scene, pixels.
            width: Width of the scene, pixels.
            tile: Side of a tile, pixels.
            overlap: Share of a tile that the next one covers again, in [0, 1).
            block: Side of a block, pixels.
            step: What tiles start at multiples of, pixels (the patch side, for features of patches).

        Returns:
            The grid; of sizes that are multiples of `step`.

        Raises:
            ValueError: If the scene is smaller than a tile, or a value is out of range.
        """
        if not 0 <= overlap < 1:
            raise ValueError(f'overlap must be at least 0 and below 1, got {overlap}')
        if min(height, width) < tile:
            raise ValueError(
                f'the scene of {height}x{width} pixels is smaller than a tile of {tile} pixels: give a '
                'larger scene, or a model for smaller images'
            )
        stride = max(round(tile * (1 - overlap)) // step * step, step)
        height, width = height // step * step, width // step * step
        return cls(height, width, tile, stride, max(block // step * step, step))

    def starts(self, length: int) -> list[int]:
        """First pixels of the tiles along one direction."""
        regular = list(range(0, length - self.tile, self.stride))
        return [*regular, length - self.tile]

    def blocks(self) -> list[Box]:
        """Blocks that cover the scene without overlap, row by row."""
        return [
            Box(top, left, min(top + self.block, self.height), min(left + self.block, self.width))
            for top in range(0, self.height, self.block)
            for left in range(0, self.width, self.block)
        ]

    def tiles(self, block: Box) -> list[Box]:
        """All tiles that reach into a block: its result is the same whatever was computed before."""
        rows = [t for t in self.starts(self.height) if t < block.bottom and t + self.tile > block.top]
        columns = [c for c in self.starts(self.width) if c < block.right and c + self.tile > block.left]
        return [Box(t, c, t + self.tile, c + self.tile) for t in rows for c in columns]


def blending_weights(size: int) -> NDArray[np.float32]:
    """Weights of a tile's cells: a raised cosine that fades towards the edges but never to nothing.

    Args:
        size: Cells along a side.

    Returns:
        Weights, shape (size, size).
    """
    line = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    line = np.maximum(line, 1e-3)
    return np.outer(line, line).astype(np.float32)
