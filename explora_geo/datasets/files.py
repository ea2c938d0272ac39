"""Finding image files below a folder."""

import os
from collections.abc import Iterator
from pathlib import Path

#: Either spelling of a path that users may give.
PathLike = str | os.PathLike[str]

#: Plain images, read with Pillow.
PLAIN_SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif'})
#: Rasters, read with rasterio.
RASTER_SUFFIXES = frozenset({'.tif', '.tiff', '.jp2', '.img', '.vrt'})
IMAGE_SUFFIXES = PLAIN_SUFFIXES | RASTER_SUFFIXES


def find_images(root: PathLike, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find all images below a folder.

    Hidden files and folders are ignored, and so is ``__MACOSX``. Symbolic links are followed,
    but no folder is entered twice, so a loop ends. A link that leads nowhere counts as an image.

    Args:
        root: Folder to search.
        suffixes: File name endings to accept, in lower case.

    Returns:
        Paths, sorted, so that the order is the same on every machine.

    Raises:
        FileNotFoundError: If the folder does not exist.
        NotADirectoryError: If it is a file.
        PermissionError: If it, or a folder below it, may not be read.
    """
    root = Path(root)
    try:
        if not root.exists():
            raise FileNotFoundError(f'The image folder {root} does not exist; check the path.')
        if not root.is_dir():
            raise NotADirectoryError(f'{root} is a file, but a folder of images was expected.')
        return sorted(_walk(root, suffixes, set()))
    except PermissionError as error:
        raise PermissionError(
            f'The folder {error.filename} may not be read; change its permissions, or leave it out.'
        ) from error


def subfolders(root: PathLike) -> list[Path]:
    """List the visible folders directly below a folder.

    Args:
        root: Folder to list.

    Returns:
        Paths, sorted by name.
    """
    return sorted(p for p in Path(root).iterdir() if p.is_dir() and _visible(p.name))


def evenly_spaced(length: int, count: int) -> list[int]:
    """Choose at most ``count`` of ``length`` positions, evenly spaced and always the same."""
    if length <= count:
        return list(range(length))
    return [i * length // count for i in range(count)]


def _visible(name: str) -> bool:
    return not name.startswith('.') and name != '__MACOSX'


def _walk(folder: Path, suffixes: frozenset[str], seen: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        # Real folders before links: a link to a sibling must not steal that sibling's files.
        ordered = sorted((e for e in entries if _visible(e.name)), key=_links_last)
    for entry in ordered:
        if _is_folder(entry):
            yield from _walk(folder / entry.name, suffixes, seen)
        elif os.path.splitext(entry.name)[1].lower() in suffixes and (_is_file(entry) or entry.is_symlink()):
            yield folder / entry.name  # a link that leads nowhere is an image that cannot be read


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _links_last(entry: os.DirEntry[str]) -> tuple[bool, str]:
    return entry.is_symlink(), entry.name
