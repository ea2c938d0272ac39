"""Find image files in a folder, in a list or by a pattern."""

import glob
import os
from pathlib import Path

from explora_geo.datasets.remote import PathLike, locate

#: Plain images, read with Pillow.
PLAIN_SUFFIXES = frozenset({'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif'})
#: Rasters, read with rasterio.
RASTER_SUFFIXES = frozenset({'.tif', '.tiff', '.jp2', '.img', '.vrt'})
IMAGE_SUFFIXES = PLAIN_SUFFIXES | RASTER_SUFFIXES
_TABLES = frozenset({'.csv', '.parquet', '.geoparquet'})
#: Table columns that may name files, in order of preference.
_PATH_COLUMNS = ('path', 'location', 'filename', 'filepath', 'file_path', 'file', 'image', 'href', 'url')


def find_images(root: PathLike, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Find all images below a folder by file extension, sorted.

    Hidden files and folders and `__MACOSX` are ignored. Symbolic links are followed, but no folder is
    entered twice, so loops end. A broken link counts as an image.

    Raises:
        FileNotFoundError: If the folder does not exist.
        NotADirectoryError: If it is a file.
        PermissionError: If it, or a folder below it, is not readable.
    """
    root, found = Path(root), []
    try:
        if not root.exists():
            raise FileNotFoundError(f'the image folder {root} does not exist; check the path')
        if not root.is_dir():
            raise NotADirectoryError(f'{root} is a file, expected a folder of images')
        seen = {os.path.realpath(root)}
        for folder, folders, names in os.walk(root, onerror=_fail, followlinks=True):
            # Real folders before links: a link to a sibling must not steal that sibling's files.
            ordered = sorted(folders, key=lambda name: (os.path.islink(os.path.join(folder, name)), name))
            folders.clear()
            for name in filter(_visible, ordered):
                if (place := os.path.realpath(os.path.join(folder, name))) not in seen:
                    seen.add(place)
                    folders.append(name)
            for name in names:
                if _visible(name) and os.path.splitext(name)[1].lower() in suffixes:
                    found.append(Path(folder, name))
    except PermissionError as error:
        raise PermissionError(
            f'no permission to read the folder {error.filename}; change its permissions, or exclude it'
        ) from error
    return sorted(found)


def no_images(where: PathLike, which: str = '') -> FileNotFoundError:
    """Return the error for an archive without images, or without those that *which* describes."""
    return FileNotFoundError(
        f'{where} contains no images{which} (searched for JPEG, PNG, GeoTIFF and similar, including '
        'subfolders); check the path'
    )


def locate_images(root: PathLike) -> tuple[Path | None, list[Path | str]]:
    """Find the images of a folder, a list of files, or a pattern such as `tiles/*/*.tif`.

    Returns:
        The folder that holds all images, or None if some are not files on disk; and the images, sorted or
        in the order of the list.

    Raises:
        FileNotFoundError: If the folder or list does not exist, or no file matches the pattern.
        NotADirectoryError: If *root* is another kind of file.
        ValueError: If the list cannot be read.
    """
    path, files = Path(root), list[Path | str]()
    if is_list(path):
        files += read_list(path)
    elif is_pattern(root):
        matches = [p for p in map(Path, glob.glob(os.fspath(root), recursive=True)) if p.is_file()]
        if not matches:
            raise FileNotFoundError(f'no files match {root}; check the pattern')
        files += sorted(p for p in matches if p.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise FileNotFoundError(f'the files that match {root} are not images; check the pattern')
    else:
        return path, [*find_images(path)]
    if any(isinstance(file, str) for file in files):
        return None, files
    return Path(os.path.commonpath([Path(file).parent for file in files])), files


def is_pattern(root: PathLike) -> bool:
    """Return whether a path is a pattern such as `tiles/*.tif` rather than a file or folder of that name."""
    return glob.has_magic(os.fspath(root)) and not Path(root).exists()


def is_list(root: PathLike) -> bool:
    """Return whether a path is a list of files: text with one path per line, or a table."""
    return Path(root).suffix.lower() in _TABLES | {'.txt'} and Path(root).is_file()


def read_list(path: PathLike) -> list[Path | str]:
    """Read a list of files in order, without duplicates.

    Relative paths start at the list's folder; URLs and GDAL's `/vsi` names are kept unchanged.

    Args:
        path: Text file with one path per line, ignoring lines that begin with `#`, or a table (CSV,
            Parquet or GeoParquet) with a column such as `path`, `location` or `filename`.

    Raises:
        ValueError: If the list cannot be read, is empty or has no such column.
    """
    path = Path(path)
    try:
        if path.suffix.lower() in _TABLES:
            names = _column(path)
        else:
            lines = map(str.strip, path.read_text(encoding='utf-8-sig').splitlines())
            names = [line for line in lines if line and not line.startswith('#')]
    except ImportError as error:
        raise ValueError(
            f"{path} requires pyarrow: pip install 'explora_geo[parquet]', or pass a text file with one path "
            'per line'
        ) from error
    except OSError:
        raise
    except Exception as error:  # table readers raise many kinds of errors on foreign bytes
        raise ValueError(
            f'{path} cannot be read as a list of files ({str(error).splitlines()[0]}); pass a text file with '
            'one path per line, or a table with a column path'
        ) from error
    if not names:
        raise ValueError(f'the list {path} contains no paths; add one path per line')
    places = map(locate, names)
    return list(dict.fromkeys(p if isinstance(p, str) else path.parent / p for p in places))


def _column(path: Path) -> list[str]:
    import pandas as pd

    table = pd.read_csv(path) if path.suffix.lower() == '.csv' else pd.read_parquet(path)
    columns = {str(name).lower(): name for name in table.columns}
    found = [columns[name] for name in _PATH_COLUMNS if name in columns]
    if not found:
        raise ValueError(f'columns {list(table.columns)} include none of {", ".join(_PATH_COLUMNS)}')
    return [str(name) for name in table[found[0]].dropna()]


def evenly_spaced(length: int, count: int) -> list[int]:
    """Choose at most `count` of `length` positions, evenly spaced and deterministic."""
    if length <= count:
        return list(range(length))
    return [i * length // count for i in range(count)]


def _visible(name: str) -> bool:
    return not name.startswith('.') and name != '__MACOSX'


def _fail(error: OSError) -> None:
    raise error
