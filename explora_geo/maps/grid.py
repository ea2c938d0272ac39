"""Which tiles cover a scene, how they blend, and which blocks of the output are worked on."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Box(NamedTuple):
    """A rectangle of pixels or cells: rows `top` to `bottom`, columns `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    def within(self, other: 'Box') -> tuple[slice, slice]:
        """Rows and columns of what both share, counted from the corner of the other."""
        return (
            slice(max(self.top - other.top, 0), min(self.bottom, other.bottom) - other.top),
            slice(max(self.left - other.left, 0), min(self.right, other.right) - other.left),
        )


@dataclass(frozen=True)
class TileGrid:
    """Overlapping tiles over a scene of whole cells, the same wherever a computation starts."""

    height: int  # of the scene, pixels
    width: int  # of the scene, pixels
    tile: int  # side of a tile, pixels
    overlap: float  # share of a tile that the next one covers again, in [0, 1)
    block: int  # side of the blocks that are finished one by one, pixels
    cell: int = 1  # side of a cell of the output, pixels: 1, or the patch side for features of patches

    def __post_init__(self) -> None:
        """Check the values, and cut off what is no whole cell."""
        if not 0 <= self.overlap < 1:
            raise ValueError(f'overlap must be at least 0 and below 1, got {self.overlap}')
        if min(self.height, self.width) < self.tile:
            raise ValueError(
                f'the scene of {self.height}x{self.width} pixels is smaller than a tile of {self.tile} '
                'pixels: give a larger scene, or a model for smaller images'
            )
        for name, least in (('height', 0), ('width', 0), ('block', self.cell)):
            whole = getattr(self, name) // self.cell * self.cell
            object.__setattr__(self, name, max(whole, least))

    def cells(self, box: Box) -> Box:
        """The cells of a box of pixels."""
        return Box(*(v // self.cell for v in box))

    def blocks(self) -> list[Box]:
        """Blocks that cover the scene without overlap, row by row."""
        return [
            Box(top, left, min(top + self.block, self.height), min(left + self.block, self.width))
            for top in range(0, self.height, self.block)
            for left in range(0, self.width, self.block)
        ]

    def tiles(self, block: Box) -> list[Box]:
        """All tiles that reach into a block: its result is the same whatever was computed before."""
        rows = self._starts(self.height, block.top, block.bottom)
        columns = self._starts(self.width, block.left, block.right)
        return [Box(row, column, row + self.tile, column + self.tile) for row in rows for column in columns]

    def _starts(self, length: int, first: int, end: int) -> list[int]:
        """First pixels of the tiles that reach into a range of rows or columns; the last ends at the edge."""
        stride = max(round(self.tile * (1 - self.overlap)) // self.cell * self.cell, self.cell)
        every = [*range(0, length - self.tile, stride), length - self.tile]
        return [start for start in every if start < end and start + self.tile > first]


def blending_weights(size: int) -> NDArray[np.float32]:
    """Weights of a tile's cells, shape (size, size): a raised cosine that fades to the edges, never to 0."""
    line = np.maximum(np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2, 1e-3)
    return np.outer(line, line).astype(np.float32)
