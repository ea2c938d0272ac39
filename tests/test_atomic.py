"""Files are written in one piece or not at all, also when the disk is full."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from explora_geo._atomic import atomic_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB, where one can be mounted."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=256k', 'tmpfs', str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip('no disk can be mounted here')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


def test_a_full_disk_leaves_the_file_of_before(small_disk: Path) -> None:
    file = small_disk / 'weights.bin'
    file.write_bytes(b'x' * 100_000)
    with (
        pytest.raises(
            OSError, match=r'no space left to write .*weights\.bin: [\d,]+ more bytes are needed'
        ) as caught,
        atomic_path(file, 300_000) as temporary,
    ):
        temporary.write_bytes(b'y' * 300_000)
    missing = int(str(caught.value).split('weights.bin: ')[1].split(' ')[0].replace(',', ''))
    assert missing == pytest.approx(300_000 - (262_144 - 100_000), abs=8192)
    assert file.read_bytes() == b'x' * 100_000 and os.listdir(small_disk) == ['weights.bin']


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_of_by_path(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(
            OSError, match=r'no space left to write .*a\.json: the disk or quota is full'
        ) as caught,
        atomic_path(tmp_path / 'a.json') as temporary,
    ):
        temporary.write_bytes(b'half')
        raise OSError(number, 'full')
    assert caught.value.errno == errno.ENOSPC and 'nothing was written' in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_other_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match='no'), atomic_path(tmp_path / 'a') as temporary:
        temporary.write_bytes(b'half')
        raise PermissionError('no')
    assert os.listdir(tmp_path) == []
