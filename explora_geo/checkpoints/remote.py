"""Remote files: fetch URLs and Hugging Face hub names to local files.

Downloads resume, are verified, and appear under their name only when complete.
"""

import hashlib
import http.client
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import wrap_file

from explora_geo.checkpoints.files import first_line

#: Prefix of hub names.
HUB = 'hf:'
ADAPTER, MODEL, CARD = 'adapter.safetensors', 'model.safetensors', 'README.md'
#: Seconds without a response before a download fails; the received part is kept.
TIMEOUT = 60.0
_NAME = re.compile(r'(?:hf:)?(?P<repo>[^/@\s]+/[^/@\s]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?')


def fetch(url: str, sha256: str | None = None) -> Path:
    """Return the local file of a URL (`https:`, `file:`) or of a hub name (`hf:`), downloaded once.

    For a URL, a hexadecimal hash of the file, or its beginning, is checked on each call.

    Raises:
        ValueError: If it cannot be downloaded or its hash differs.
    """
    if url.startswith(HUB):
        return fetch_file(url).path
    path = local_file(url)
    if urlparse(url).scheme != 'file' and not path.is_file():
        download(url, path, sha256)
    elif sha256 and path.is_file() and not (found := file_sha256(path)).startswith(sha256):
        raise ValueError(
            f'{path} does not match {url}: its SHA-256 is {found}, expected {sha256}; remove the file'
        )
    return path


def local_file(url: str) -> Path:
    """Return the local path of a URL or hub name, whether or not it has been downloaded."""
    if url.startswith(HUB):
        from huggingface_hub import try_to_load_from_cache

        match = _NAME.fullmatch(url)
        assert match is not None
        found = try_to_load_from_cache(match['repo'], match['file'], revision=match['revision'])
        return Path(found if isinstance(found, str) else url)
    parts = urlparse(url)
    path = Path(unquote(parts.path))
    return path if parts.scheme == 'file' else Path(torch.hub.get_dir()) / 'checkpoints' / path.name


def download(url: str, path: Path, sha256: str | None = None, progress: bool = True) -> None:
    """Download a file, or the rest of it; it appears under its name only when complete.

    The received part is kept as `<name>.part`. The rest is requested only if the server named the version of
    the file (ETag or Last-Modified), so that two versions are never joined. A hexadecimal hash, or its
    beginning, is checked.

    Raises:
        ValueError: If it cannot be reached, ends early, or has another hash.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, version = (path.with_name(f'{path.name}.{name}') for name in ('part', 'version'))
    with FileLock(path.with_name(f'.{path.name}.lock')):  # every process of a run asks for the same file
        if path.is_file():
            return
        try:
            _complete(url, part, version, progress)
            if sha256 and not (found := file_sha256(part)).startswith(sha256):
                part.unlink()
                raise ConnectionError(f'its SHA-256 is {found}, expected {sha256}')
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            reason = str(getattr(error, 'reason', error)) or type(error).__name__
            reason = f'{error.code} {reason}' if isinstance(error, HTTPError) else reason
            kept = f'; {part.stat().st_size:,} bytes are kept' if part.is_file() else ''
            raise ValueError(
                f'cannot download {url} ({reason}{kept}): check the network and try again, or download the '
                'file elsewhere and pass its path'
            ) from error
        os.replace(part, path)
        version.unlink()


def _complete(url: str, part: Path, version: Path, progress: bool) -> None:
    """Download the missing rest of `part`; `version` records which version of the file it belongs to."""
    request = Request(url, headers={'User-Agent': 'explora_geo'})
    start = 0
    if part.is_file() and version.is_file() and (known := version.read_text()):
        start = part.stat().st_size
        request.add_header('Range', f'bytes={start}-')
        request.add_header('If-Range', known)  # another version is sent in full
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # nothing is left to send: the part may be of any version
            raise
        part.unlink()
        return _complete(url, part, version, progress)
    with answer:
        start = start if answer.status == 206 else 0
        length = int(answer.headers.get('Content-Length') or 0)
        etag = answer.headers.get('ETag') or 'W/'
        version.write_text(answer.headers.get('Last-Modified') or '' if etag.startswith('W/') else etag)
        console = Console(stderr=True, quiet=not progress)
        shown = wrap_file(cast(Any, answer), length, description=part.stem, console=console, transient=True)
        with part.open('ab' if start else 'wb') as file, shown as reader:
            shutil.copyfileobj(cast(IO[bytes], reader), file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if length and size != start + length:
        raise ConnectionError(f'the connection closed after {size:,} of {start + length:,} bytes')
    return None


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read again only if it has changed."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_sha256(path: Path, *state: int) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


class HubFile(NamedTuple):
    """File of a hub repository, in the local cache."""

    path: Path
    name: str  # `hf:owner/name@commit/file`: with the commit it always means this file
    commit: str
    license: str  # from the repository's card; empty if not stated
    card: Path | None


def fetch_file(name: str, wanted: Sequence[str] = (MODEL, 'pytorch_model.bin')) -> HubFile:
    """Fetch a hub file, from the cache if it is there; interrupted downloads resume.

    `HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE` apply as for any client of the hub.

    Args:
        name: `hf:owner/name[@revision][/file]`, where the revision is a branch, a tag or a commit.
        wanted: File names to try, in this order, if `name` has no file.

    Raises:
        ValueError: If it cannot be fetched; the message gives the reason and a remedy.
    """
    from huggingface_hub import hf_hub_download, metadata_load
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f'{name} is not a hub name: use hf:owner/name@revision/file')
    repo, revision = match['repo'], match['revision']
    wanted = [match['file']] if match['file'] else wanted
    with hub_errors(repo, revision):
        for file in wanted:
            try:
                path = Path(hf_hub_download(repo, file, revision=revision))
                break
            except LocalEntryNotFoundError as error:
                unreached: Exception | None = error
            except EntryNotFoundError:
                unreached = None
        else:
            if unreached is not None:
                raise unreached
            raise ValueError(f'{repo} has no {" or ".join(wanted)}{_others(repo, revision)}')
        commit = path.parents[file.count('/')].name
        try:
            card = Path(hf_hub_download(repo, CARD, revision=commit))
        except EntryNotFoundError:
            card = None
    facts = (metadata_load(card) if card else None) or {}
    license = str(facts.get('license_name') or facts.get('license') or '')
    return HubFile(path, f'{HUB}{repo}@{commit}/{file}', commit, license, card)


def _others(repo: str, revision: str | None) -> str:
    """Suggest one of a repository's weights files, for a message."""
    from huggingface_hub import HfApi

    files = [file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()]
    names = [name for name in files if name.endswith(('.safetensors', '.bin', '.pth'))]
    return f': specify one of its files, such as hf:{repo}/{names[0]}' if names else ' or other weights'


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn the hub client's errors about a repository into a ValueError with a one-sentence remedy."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        match error:
            case errors.GatedRepoError():
                terms = f'{constants.ENDPOINT}/{repo}'
                text = f'{repo} is gated: accept its terms at {terms}, and set HF_TOKEN to your token'
            case errors.RepositoryNotFoundError():
                text = f'repository {repo} not found on the hub: check the name; '
                text += 'if it is private, set HF_TOKEN to your token'
            case errors.RevisionNotFoundError():
                text = f'{repo} has no revision {revision}'
            case _ if error.response.status_code in (401, 403):
                text = f'the hub denied access to {repo}: set HF_TOKEN to a token with read or write access'
            case _:
                text = f'the hub rejected the request for {repo} ({first_line(error)}): try again later'
        raise ValueError(text) from error
    except ValueError:
        raise
    except Exception as error:  # network errors come in many types, from several packages
        why = 'HF_HUB_OFFLINE is set' if constants.HF_HUB_OFFLINE else first_line(error.__cause__ or error)
        raise ValueError(
            f'{repo} is not in the cache, and the hub cannot be reached ({why}): check the network or pass '
            'the path of a file'
        ) from error
