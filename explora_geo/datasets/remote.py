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

#: A path as users may give it, as text or as an object.
PathLike = str | os.PathLike[str]

#: `/vsicurl/...`, `https://...`, and names that begin with a driver, such as `NETCDF:file.nc:band`.
_GDAL_ONLY = re.compile(r'/vsi\w+[/?]|[a-zA-Z][\w+.-]*://|[A-Z][A-Z0-9_]+:')
#: A URL whose two slashes `Path` has merged into one.
_FOLDED = re.compile(r'\b(https?|ftp|s3|gs|az|oss):/(?=[^/])')
#: The part of a name to request from a web server.
_ON_THE_WEB = re.compile(r'https?://[^{}!]+?(?=\.(?:zip|tar|tgz|gz)[/}!])\.\w+|https?://[^{}]+')
#: Retries and time-outs for servers, and cache size in bytes; environment variables take precedence.
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
    """Return a file on disk as `Path`, and a URL or other name that only GDAL understands as `str`."""
    text = os.fspath(path)
    if text.startswith('file://'):
        return Path(unquote(urlsplit(text).path))
    whole = _FOLDED.sub(r'\1://', text)
    return whole if _GDAL_ONLY.match(whole) and not Path(text).exists() else Path(text)


def short_name(path: Path | str) -> str:
    """Return the last part of a path or URL, without its query, which may hold a secret."""
    text = path.name if isinstance(path, Path) else re.split(r'[/!]', path.partition('?')[0].rstrip('/'))[-1]
    return text or str(path)


def identify(path: Path | str) -> dict[str, Any]:
    """Return the identity of a raster, which changes with its content, as JSON-ready values.

    Args:
        path: What `locate` returned.

    Returns:
        Name, `size` in bytes, and `changed`: the modification time of a file or of the archive that holds
        it, or the `ETag`, else `Last-Modified`, of a URL; None if unknown.
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
    """Request the size and version of a web file; asking for one byte also suits URLs signed for reading."""
    try:
        with requests.get(url, headers={'Range': 'bytes=0-0'}, stream=True, timeout=30) as answer:
            headers = answer.headers if answer.ok else {}
    except requests.RequestException:
        return {'size': None, 'changed': None}
    size = headers.get('Content-Range', '').rpartition('/')[2] or headers.get('Content-Length')
    return {'size': size, 'changed': headers.get('ETag') or headers.get('Last-Modified')}


def _archive(name: str) -> Path | None:
    """Find the file on disk that a name such as `/vsizip/a.zip/b.tif` or `zip://a.zip!b.tif` refers to."""
    parts = re.split(r'([/!}])', re.sub(r'^(?:/vsi\w+/|[\w+.-]+://)\{?', '', name))
    places = (Path(''.join(parts[:end])) for end in range(len(parts), 0, -2))
    return next((place for place in places if place.is_file()), None)


def remote_options() -> rasterio.Env:
    """Return GDAL's network settings, a context to enter around reads."""
    return rasterio.Env(**{k: v for k, v in _OPTIONS.items() if k not in os.environ})


def read_apart(function: Callable[..., T], *args: Any) -> T:
    """Call a reading function; in a worker process, call it in a separate thread.

    GDAL keeps connections per thread, and the main thread of a forked worker inherits its parent's:
    parent and workers would all write to the same connection.
    """
    if get_worker_info() is None:
        return function(*args)
    thread = _threads.get(os.getpid()) or _threads.setdefault(os.getpid(), ThreadPoolExecutor(1))
    return thread.submit(function, *args).result()
