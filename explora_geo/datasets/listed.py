"""Images that a list names, with one class each: the base of data sets that come with tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .base import TileDataset
from .files import PathLike


class ListedDataset(TileDataset):
    """Tiles of a list, whose first file must exist, so that a wrong root is found at once."""

    def __init__(self, root: PathLike, files: Sequence[Path], *args: Any, **kwargs: Any) -> None:
        """Initialize a new ListedDataset instance; see :class:`TileDataset`.

        Raises:
            FileNotFoundError: If the list is empty or its first image does not exist.
            ValueError: If a band does not exist, or a label is out of range.
        """
        if len(files) and not files[0].is_file():
            raise FileNotFoundError(f'There is no image {files[0]}, which the list of {root} names first.')
        super().__init__(root, files, *args, **kwargs)
