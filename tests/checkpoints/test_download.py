"""Downloads from a real server on this machine: resumed, checked, whole or absent."""

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from explora_geo.checkpoints.remote import download, fetch

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """What the server does, and what it was asked for."""

    def __init__(self) -> None:
        self.content, self.version, self.cut = CONTENT, '"1"', 0
        self.ranges, self.url = True, ''
        self.asked: list[str | None] = []

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get('Range')
        self.asked.append(wanted)
        if request.path != '/weights.pth':
            request.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if request.headers.get('If-Range') not in (None, self.version):
            start = 0
        if start >= len(self.content):
            request.send_error(416)
            return
        body = self.content[start:]
        request.send_response(206 if start else 200)
        request.send_header('Content-Length', str(len(body)))
        if self.version:
            request.send_header('ETag', self.version)
        request.end_headers()
        request.wfile.write(body[: self.cut or None])  # then the connection ends


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        state.url = f'http://127.0.0.1:{http.server_port}/weights.pth'
        yield state
        http.shutdown()


@pytest.fixture
def interrupted(server: Server, tmp_path: Path) -> Path:
    """A download that ended after 300,000 bytes."""
    path, server.cut = tmp_path / 'cache' / 'weights.pth', 300_000
    with pytest.raises(ValueError, match=r'download http.*300,000 bytes are kept\): check the network'):
        download(server.url, path, progress=False)
    assert not path.exists()
    server.cut = 0
    return path


def test_a_file_comes_whole_and_leaves_nothing_beside(server: Server, tmp_path: Path) -> None:
    path = tmp_path / 'cache' / 'weights.pth'
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT
    assert [name for name in os.listdir(path.parent) if not name.endswith('.lock')] == ['weights.pth']


def test_an_interrupted_download_asks_for_the_rest_only(server: Server, interrupted: Path) -> None:
    download(server.url, interrupted, SHA256, progress=False)
    assert interrupted.read_bytes() == CONTENT
    assert server.asked == [None, 'bytes=300000-']


def test_another_version_of_the_file_is_not_joined_to_the_first(server: Server, interrupted: Path) -> None:
    server.content, server.version = CONTENT[::-1], '"2"'
    download(server.url, interrupted, progress=False)
    assert interrupted.read_bytes() == CONTENT[::-1]


def test_a_server_that_knows_no_ranges_sends_all_again(server: Server, interrupted: Path) -> None:
    server.ranges = False
    download(server.url, interrupted, SHA256, progress=False)
    assert interrupted.read_bytes() == CONTENT


def test_without_a_version_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    path, server.cut, server.version = tmp_path / 'weights.pth', 300_000, None
    with pytest.raises(ValueError, match='bytes are kept'):
        download(server.url, path, progress=False)
    server.cut = 0
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT and server.asked == [None, None]


def test_a_part_that_is_too_long_is_fetched_anew(server: Server, interrupted: Path) -> None:
    part = interrupted.with_name('weights.pth.part')
    part.write_bytes(part.read_bytes() + CONTENT)
    download(server.url, interrupted, SHA256, progress=False)
    assert interrupted.read_bytes() == CONTENT


def test_a_damaged_part_is_found_by_the_hash_and_not_kept(server: Server, interrupted: Path) -> None:
    part = interrupted.with_name('weights.pth.part')
    part.write_bytes(b'x' + part.read_bytes()[1:])
    with pytest.raises(ValueError, match=r'its SHA-256 is .*, expected'):
        download(server.url, interrupted, SHA256, progress=False)
    assert not interrupted.exists() and not part.exists()
    download(server.url, interrupted, SHA256, progress=False)
    assert interrupted.read_bytes() == CONTENT


def test_several_processes_download_once(server: Server, tmp_path: Path) -> None:
    args = server.url, tmp_path / 'weights.pth', SHA256, False
    threads = [threading.Thread(target=download, args=args) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / 'weights.pth').read_bytes() == CONTENT and server.asked == [None]


def test_what_cannot_be_reached_is_named_with_a_way_out(server: Server, tmp_path: Path) -> None:
    for url, reason in ((f'{server.url}.old', '404 Not Found'), ('http://127.0.0.1:9/a', 'refused')):
        with pytest.raises(ValueError, match=f'cannot download {url} .*{reason}.*pass its path'):
            download(url, tmp_path / 'a', progress=False)
    assert not (tmp_path / 'a').exists()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    return tmp_path / 'checkpoints'


def test_a_file_is_downloaded_once_into_torchs_cache(server: Server, cache: Path) -> None:
    path = fetch(server.url)
    assert path == cache / 'weights.pth' and path.read_bytes() == CONTENT
    assert fetch(server.url) == path and len(server.asked) == 1


def test_a_cached_or_shipped_file_is_checked_against_a_stated_hash(server: Server, cache: Path) -> None:
    path = fetch(server.url, SHA256)
    assert fetch(path.as_uri(), SHA256) == path
    path.write_bytes(CONTENT[:-1])
    for url in (server.url, path.as_uri()):
        with pytest.raises(ValueError, match=r'weights\.pth does not match .*; remove the file'):
            fetch(url, SHA256)
