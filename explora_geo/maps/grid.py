"""Tiles that cover a scene, their blending weights, and the blocks of the output."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """Rectangle of pixels or cells: rows `top` to `bottom`, columns `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def within(self, other: 'Box') -> tuple[slice, slice]:
        """Return the rows and columns of the overlap, relative to the corner of the other box."""
        return (
            slice(max(self.top - other.top, 0), min(self.bottom, other.bottom) - other.top),
            slice(max(self.left - other.left, 0), min(self.right, other.right) - other.left),
        )


@dataclass(frozen=True)
class TileGrid:
    """Grid of overlapping tiles over a scene of whole cells, independent of where computation starts."""

    height: int  # of the scene, pixels
    width: int  # of the scene, pixels
    tile: int  # side of a tile, pixels
    overlap: float  # share of a tile that the next one overlaps, in [0, 1)
    block: int  # side of the blocks that are finished one by one, pixels
    cell: int = 1  # side of an output cell, pixels: 1, or the patch side for patch features

    def __post_init__(self) -> None:
        """Check the values, and crop the scene to whole cells."""
        if not 0 <= self.overlap < 1:
            raise ValueError(f'overlap must be at least 0 and below 1, got {self.overlap}')
        if min(self.height, self.width) < self.tile:
            raise ValueError(
                f'the scene of {self.height}x{self.width} pixels is smaller than a tile of {self.tile} '
                'pixels: use a larger scene, or a model for smaller images'
            )
        for name, least in (('height', 0), ('width', 0), ('block', self.cell)):
            whole = getattr(self, name) // self.cell * self.cell
            object.__setattr__(self, name, max(whole, least))

    def cells(self, box: Box) -> Box:
        """Convert a box of pixels to cells."""
        return Box(*(v // self.cell for v in box))

    def blocks(self) -> list[Box]:
        """Return the blocks that cover the scene without overlap, row by row."""
        return [
            Box(top, left, min(top + self.block, self.height), min(left + self.block, self.width))
            for top in range(0, self.height, self.block)
            for left in range(0, self.width, self.block)
        ]

    def tiles(self, block: Box) -> list[Box]:
        """Return all tiles that intersect a block, whose result thus never depends on other blocks."""
        rows = self._starts(self.height, block.top, block.bottom)
        columns = self._starts(self.width, block.left, block.right)
        return [Box(row, column, row + self.tile, column + self.tile) for row in rows for column in columns]

    def _starts(self, length: int, first: int, end: int) -> list[int]:
        """Return the first pixels of tiles that intersect a range; the last tile ends at the edge."""
        stride = max(round(self.tile * (1 - self.overlap)) // self.cell * self.cell, self.cell)
        every = [*range(0, length - self.tile, stride), length - self.tile]
        return [start for start in every if start < end and start + self.tile > first]


def blending_weights(size: int) -> NDArray[np.float32]:
    """Compute cell weights of a tile, (size, size): a raised cosine that fades to the edges, never to 0."""
    line = np.maximum(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2, 1e-3)
    return np.outer(line, line).astype(np.float32)
