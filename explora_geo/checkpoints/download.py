"""Downloads that resume, are verified, and appear under their name only when complete."""

import hashlib
import http.client
import json
import os
from functools import lru_cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.console import Console
from rich.progress import DownloadColumn, Progress

_CHUNK = 1 << 20
#: Seconds without an answer before a download fails; the part received is kept.
TIMEOUT = 60.0


def download(url: str, path: Path, sha256: str | None = None, progress: bool = True) -> None:
    """Download a file, or the rest of it.

    What has come is kept beside as `<name>.part`. The rest is asked for only where the server has named the
    version of the file (ETag or Last-Modified), so that two versions are never joined.

    Args:
        url: Where it is.
        path: File to write; it appears in one piece.
        sha256: Hexadecimal hash to compare with, or its beginning, if known.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If it cannot be reached, ends early, or is another file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'.{path.name}.lock')):  # every process of a run asks for the same file
        if path.is_file():
            return
        part = path.with_name(f'{path.name}.part')
        try:
            _fetch(url, part, progress)
            found = file_sha256(part) if sha256 else ''
            if not found.startswith(sha256 or ''):
                _forget(part)
                raise ConnectionError(f'its SHA-256 is {found}, expected {sha256}')
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            reason = str(getattr(error, 'reason', error)) or type(error).__name__
            reason = f'{error.code} {reason}' if isinstance(error, HTTPError) else reason
            kept = f'; {part.stat().st_size:,} bytes are kept' if part.is_file() else ''
            raise ValueError(
                f'cannot download {url} ({reason}{kept}): check the network and try again, or download it '
                'elsewhere and give the path of the file'
            ) from error
        os.replace(part, path)
        _forget(part)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; one that has not changed is read once."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_sha256(path: Path, *state: int) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Bring `part` to its full length."""
    version = _version(part)
    start = part.stat().st_size if version and part.is_file() else 0
    request = Request(url, headers={'User-Agent': 'explora_geo'})
    if start and version:
        request.add_header('Range', f'bytes={start}-')
        request.add_header('If-Range', version)  # another version is sent whole
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # nothing is left to send: what there is may be of any version
            raise
        _forget(part)
        return _fetch(url, part, progress)
    with answer:
        if answer.status != 206:
            start = 0
        length = answer.headers.get('Content-Length')
        total = None if length is None else start + int(length)
        etag = answer.headers.get('ETag')
        strong = etag if etag and not etag.startswith('W/') else None
        _note(part).write_text(json.dumps({'version': strong or answer.headers.get('Last-Modified')}))
        columns = (*Progress.get_default_columns(), DownloadColumn())
        bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress)
        with part.open('ab' if start else 'wb') as file, bar:
            task = bar.add_task(part.stem, total=total, completed=start)
            while chunk := answer.read(_CHUNK):
                bar.advance(task, file.write(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and (size := part.stat().st_size) != total:
        raise ConnectionError(f'it ended after {size:,} of {total:,} bytes')
    return None


def _note(part: Path) -> Path:
    """File that records the version a partial download belongs to."""
    return part.with_name(f'{part.name}.json')


def _version(part: Path) -> str | None:
    try:
        return json.loads(_note(part).read_text())['version']
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)
