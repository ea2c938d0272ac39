"""Find image files: below a folder, in a list, by a pattern."""

import glob
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
#: Lists of files: text with one path a line, or tables.
TABLE_SUFFIXES = frozenset({'.csv', '.parquet', '.geoparquet'})
LIST_SUFFIXES = TABLE_SUFFIXES | {'.txt'}
#: Columns of a table that name files, in the order in which they are looked for.
PATH_COLUMNS = ('path', 'location', 'filename', 'filepath', 'file_path', 'file', 'image', 'href', 'url')


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


def locate_images(root: PathLike) -> tuple[Path, list[Path]]:
    """Find images wherever a user says they are.

    Args:
        root: Folder, list of files (see :func:`read_list`), or pattern such as ``tiles/*/*.tif``.

    Returns:
        The folder that holds all images, and their paths: sorted, or in the order of a list.

    Raises:
        FileNotFoundError: If there is no such folder, list or file of the pattern.
        NotADirectoryError: If it is another kind of file.
        ValueError: If the list cannot be read.
    """
    path = Path(root)
    if is_list(path):
        files = [Path(name) for name in read_list(path)]
    elif is_pattern(root):
        files = [p for p in expand(root) if p.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise FileNotFoundError(f'The files of the pattern {root} are no images; check the pattern.')
    else:
        return path, find_images(path)
    return Path(os.path.commonpath([file.parent for file in files])), files


def is_pattern(root: PathLike) -> bool:
    """Whether a path is a pattern such as ``tiles/*.tif`` rather than a file or folder of that name."""
    return glob.has_magic(os.fspath(root)) and not Path(root).exists()


def expand(pattern: PathLike) -> list[Path]:
    """List the files of a pattern, in which ``**`` stands for any folders.

    Raises:
        FileNotFoundError: If there is none.
    """
    found = sorted(Path(p) for p in glob.glob(os.fspath(pattern), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise FileNotFoundError(f'No file matches {pattern}; check the pattern.')
    return files


def is_list(root: PathLike) -> bool:
    """Whether a path is a list of files."""
    return Path(root).suffix.lower() in LIST_SUFFIXES and Path(root).is_file()


def read_list(path: PathLike) -> list[str]:
    """Read a list of files.

    Args:
        path: Text file with one path a line, where lines that begin with ``#`` are left out, or a table
            (CSV, Parquet or GeoParquet) with a column such as ``path``, ``location`` or ``filename``.

    Returns:
        Paths in the list's order, without doubles. Relative ones start at the list's folder; URLs and GDAL's
        ``/vsi`` names stay as they are.

    Raises:
        ValueError: If the list cannot be read, names nothing or has no such column.
    """
    path = Path(path)
    try:
        names = _column(path) if path.suffix.lower() in TABLE_SUFFIXES else _lines(path)
    except ImportError as error:
        raise ValueError(
            f"{path} needs pyarrow to be read: pip install 'explora_geo[parquet]', or give a text file with "
            'one path a line.'
        ) from error
    except OSError:
        raise
    except Exception as error:  # readers of tables raise errors of many kinds on foreign bytes
        raise ValueError(
            f'{path} cannot be read as a list of files ({str(error).splitlines()[0]}); give a text file with '
            'one path a line, or a table with a column path.'
        ) from error
    if not names:
        raise ValueError(f'The list {path} names no file; give one path a line.')
    return list(dict.fromkeys(name if is_remote(name) else str(path.parent / name) for name in names))


def is_remote(name: PathLike) -> bool:
    """Whether a name is one that GDAL opens without the file system: a URL or a ``/vsi`` path."""
    return '://' in os.fspath(name) or os.fspath(name).startswith('/vsi')


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    return [line for line in lines if line and not line.startswith('#')]


def _column(path: Path) -> list[str]:
    import pandas as pd

    table = pd.read_csv(path) if path.suffix.lower() == '.csv' else pd.read_parquet(path)
    columns = {str(name).lower(): name for name in table.columns}
    found = [columns[name] for name in PATH_COLUMNS if name in columns]
    if not found:
        raise ValueError(f'none of its columns {list(table.columns)} is {", ".join(PATH_COLUMNS)}')
    return [str(name) for name in table[found[0]].dropna()]


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
