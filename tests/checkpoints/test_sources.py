"""Downloads are checked, cached and explained."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch

from explora_geo.checkpoints.sources import fetch


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the network, and an empty cache."""
    folder = tmp_path / 'server'
    folder.mkdir()
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))

    def download(url: str, path: str, sha256: str | None, progress: bool) -> None:
        file = folder / url.rsplit('/', 1)[1]
        if not file.is_file():
            raise URLError('no route to host')
        if sha256 is not None and hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            raise RuntimeError(f'invalid hash value (expected "{sha256}")')
        Path(path).write_bytes(file.read_bytes())

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    return folder


def test_a_file_is_downloaded_once(server: Path) -> None:
    (server / 'pretrain-vit-e199.pth').write_bytes(b'weights')
    url = 'https://example.org/record/1/files/pretrain-vit-e199.pth'
    path = fetch(url, {})  # whose name looks as if it ended in a hash
    assert path.read_bytes() == b'weights'
    (server / 'pretrain-vit-e199.pth').unlink()
    assert fetch(url, {}) == path


def test_a_stated_hash_is_checked(server: Path) -> None:
    (server / 'a.pth').write_bytes(b'weights')
    with pytest.raises(ValueError, match=r'cannot download .*a\.pth \(invalid hash value'):
        fetch('https://example.org/a.pth', {'sha256': '0' * 64})
    fetch('https://example.org/a.pth', {'sha256': hashlib.sha256(b'weights').hexdigest()})


def test_a_failing_download_names_the_url_and_a_way_out(server: Path) -> None:
    with pytest.raises(ValueError, match=r'download https://example\.org/b\.pth .*no route.*give the path'):
        fetch('https://example.org/b.pth', {})
