"""Atomic writing of files."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

#: Error numbers for a full disk, an exhausted quota and the limit on file size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` only if the block ends without an error.

    Args:
        path: File to write.
        size: Approximate size in bytes, if known.

    Raises:
        OSError: If there is no room for the file; the message names it and the missing bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, 'rb') as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp creates private files
        os.replace(name, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        room = _room(Path(name))
        # torch.save and safetensors report a failed write without its error number.
        number = error.errno if isinstance(error, OSError) else _growth_error(Path(name))
        if number not in FULL and (isinstance(error, OSError) or size is None or size <= room):
            raise
        raise OSError(errno.ENOSPC, _sentence(path, size, room)) from error
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically; errors are those of `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def _growth_error(file: Path) -> int | None:
    """Return the error number if a file cannot grow, else None."""
    try:
        with open(file, 'ab') as grown:
            grown.write(bytes(1 << 16))
    except OSError as error:
        return error.errno
    return None


def _room(temporary: Path) -> int:
    """Return the bytes that a file occupies plus those still free."""
    return temporary.stat().st_size + shutil.disk_usage(temporary.parent).free


def _sentence(path: Path, size: int | None, room: int) -> str:
    before = 'the existing file is unchanged' if path.exists() else 'nothing was written'
    missing = 'the disk or quota is full'
    if size is not None and size > room:
        missing = f'{size - room:,} more bytes are needed'
    return f'no space left to write {path}: {missing} ({room:,} bytes free); {before}, make room and rerun'
