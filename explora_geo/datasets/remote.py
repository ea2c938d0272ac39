"""Rasters that only GDAL opens: by URL, on object stores, inside archives."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import rasterio
import requests
from torch.utils.data import get_worker_info

#: Either spelling of a path that users may give.
PathLike = str | os.PathLike[str]

#: `/vsicurl/...`, `https://...`, and names that begin with a driver, such as `NETCDF:file.nc:band`.
_GDAL_ONLY = re.compile(r'/vsi\w+[/?]|[a-zA-Z][\w+.-]*://|[A-Z][A-Z0-9_]+:')
#: What `Path` makes of the two slashes of a URL.
_FOLDED = re.compile(r'\b(https?|ftp|s3|gs|az|oss):/(?=[^/])')
#: The part of a name that a web server knows.
_ON_THE_WEB = re.compile(r'https?://[^{}!]+?(?=\.(?:zip|tar|tgz|gz)[/}!])\.\w+|https?://[^{}]+')
#: Patience with servers, and bytes of their files kept in memory; the environment's settings come first.
_OPTIONS = {
    'GDAL_HTTP_MAX_RETRY': 3,
    'GDAL_HTTP_RETRY_DELAY': 1,
    'GDAL_HTTP_CONNECTTIMEOUT': 30,
    'GDAL_HTTP_LOW_SPEED_TIME': 60,
    'GDAL_HTTP_LOW_SPEED_LIMIT': 1,
    'CPL_VSIL_CURL_CACHE_SIZE': 128 << 20,
}
T = TypeVar('T')
_threads: dict[int, ThreadPoolExecutor] = {}


def locate(path: PathLike) -> Path | str:
    """A file on disk as `Path`; a URL or another name that only GDAL understands as `str`, as it is."""
    text = os.fspath(path)
    if text.startswith('file://'):
        return Path(unquote(urlsplit(text).path))
    whole = _FOLDED.sub(r'\1://', text)
    return whole if _GDAL_ONLY.match(whole) and not Path(text).exists() else Path(text)


def short_name(path: Path | str) -> str:
    """The last part of a path or URL, without its query, which may hold a secret."""
    text = path.name if isinstance(path, Path) else re.split(r'[/!]', path.partition('?')[0].rstrip('/'))[-1]
    return text or str(path)


def identify(path: Path | str) -> dict[str, Any]:
    """Identity of a raster, which changes with its content, JSON-ready.

    Args:
        path: What `locate` returned.

    Returns:
        Name, `size` in bytes, and `changed`: the time of a file or of the archive that holds it, the
        `ETag`, or else `Last-Modified`, of a URL; None where nobody tells.
    """
    named = {'file': path.name} if isinstance(path, Path) else {'url': path}
    if isinstance(path, str) and (found := _ON_THE_WEB.search(path)):
        return {**named, **_ask(found[0])}
    file = path if isinstance(path, Path) else _archive(path)
    if file is None:
        return {**named, 'size': None, 'changed': None}
    status = file.stat()
    return {**named, 'size': status.st_size, 'changed': status.st_mtime_ns}


def _ask(url: str) -> dict[str, Any]:
    """Size and version of a file on the web; a request for one byte also suits URLs signed for reading."""
    try:
        with requests.get(url, headers={'Range': 'bytes=0-0'}, stream=True, timeout=30) as answer:
            headers = answer.headers if answer.ok else {}
    except requests.RequestException:
        return {'size': None, 'changed': None}
    size = headers.get('Content-Range', '').rpartition('/')[2] or headers.get('Content-Length')
    return {'size': size, 'changed': headers.get('ETag') or headers.get('Last-Modified')}


def _archive(name: str) -> Path | None:
    """The file on disk that a name such as `/vsizip/a.zip/b.tif` or `zip://a.zip!b.tif` leads into."""
    parts = re.split(r'([/!}])', re.sub(r'^(?:/vsi\w+/|[\w+.-]+://)\{?', '', name))
    places = (Path(''.join(parts[:end])) for end in range(len(parts), 0, -2))
    return next((place for place in places if place.is_file()), None)


def remote_options() -> rasterio.Env:
    """GDAL's settings for networks, to be entered around what reads."""
    return rasterio.Env(**{k: v for k, v in _OPTIONS.items() if k not in os.environ})


def read_apart(function: Callable[..., T], *args: Any) -> T:
    """Call a function that reads; workers call it in a thread of their own.

    GDAL keeps connections by thread, and the main thread of a forked worker inherits those of its parent:
    both, and all other workers, would write into the same one.
    """
    if get_worker_info() is None:
        return function(*args)
    thread = _threads.get(os.getpid()) or _threads.setdefault(os.getpid(), ThreadPoolExecutor(1))
    return thread.submit(function, *args).result()
