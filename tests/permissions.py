"""What may not be read: root reads everything, unless it gives that up."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Linux: ignore the permissions of files, and those for reading and searching.
_CAPABILITIES = 1 << 1 | 1 << 2
_VERSION = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (('version', ctypes.c_uint32), ('pid', ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (
        ('effective', ctypes.c_uint32 * 1),
        ('permitted', ctypes.c_uint32 * 1),
        ('inheritable', ctypes.c_uint32 * 1),
        ('high', ctypes.c_uint32 * 3),
    )


@contextmanager
def forbidden(path: Path, mode: int = 0) -> Iterator[None]:
    """Take the permissions of a file or folder away, and from root what overrules them.

    Args:
        path: What may not be read, of the user who runs the tests.
        mode: What may be done with it.
    """
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        with _as_others():
            yield
    finally:
        path.chmod(before)


@contextmanager
def _as_others() -> Iterator[None]:
    if os.geteuid():
        yield
        return
    if sys.platform != 'linux':
        pytest.skip('root reads everything here')
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION, 0), _Sets()
    assert libc.capget(ctypes.byref(header), ctypes.byref(sets)) == 0
    whole = sets.effective[0]
    sets.effective[0] = whole & ~_CAPABILITIES
    assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
    try:
        yield
    finally:
        sets.effective[0] = whole
        assert libc.capset(ctypes.byref(header), ctypes.byref(sets)) == 0
