"""A small HTTP server of a folder that answers requests for ranges, counts what it sends, and can fail."""

import multiprocessing
import re
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self


def write_cog(path: Path, side: int) -> None:
    """Write a Cloud-Optimized GeoTIFF of noise, red, green and blue, in blocks of 128 px."""
    import numpy as np  # not in the server's process
    import rasterio
    from rasterio.shutil import copy
    from rasterio.transform import from_origin

    pixels = np.random.default_rng(0).integers(1, 255, (3, side, side), dtype=np.uint8)
    place = {'crs': 'EPSG:32631', 'transform': from_origin(500000, 5000000, 10, 10)}
    plain = {'driver': 'GTiff', 'count': 3, 'height': side, 'width': side, 'dtype': 'uint8', **place}
    with rasterio.MemoryFile() as memory:
        with memory.open(**plain) as target:
            target.write(pixels)
        with memory.open() as source:
            copy(source, path, driver='COG', compress='deflate', blocksize=128)


class Ranges:
    """The server, in a process of its own: rasterio holds the interpreter's lock in some of its requests.

    Attributes:
        folder: What is served.
        url: Its address.
    """

    def __init__(self, folder: Path) -> None:
        """Make it for a folder."""
        context: Any = multiprocessing.get_context('spawn')
        self._counters = context.Array('q', [0, -1, 1, 0])
        reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(folder, self._counters, writer), daemon=True)
        self._process.start()
        self.folder, self.url = folder, f'http://127.0.0.1:{reader.recv()}'

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(self, *args: object) -> None:
        """Stop."""
        self._process.terminate()
        self._process.join()

    @property
    def sent(self) -> int:
        """Bytes of files that were sent."""
        return int(self._counters[0])

    def fail_after(self, count: int | None) -> None:
        """Answer so many more requests, and refuse those after them; never again if None."""
        self._counters[1] = -1 if count is None else count

    def set_validators(self, etag: bool = True, modified: bool = False) -> None:
        """Choose whether answers carry `ETag` and `Last-Modified`."""
        self._counters[2], self._counters[3] = etag, modified


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'  # connections stay open, as those of real servers do

    def __init__(self, *args: Any, folder: Path, counters: Any) -> None:
        self.folder, self.counters = folder, counters
        super().__init__(*args)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.partition('?')[0].lstrip('/')
        with self.counters.get_lock():
            failing = self.counters[1] == 0
            self.counters[1] -= self.counters[1] > 0
        if failing or not path.is_file():
            self.send_response(503 if failing else 404)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        data = path.read_bytes()
        asked = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        self.send_response(206 if asked else 200)
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            self.send_header('Content-Range', f'bytes {first}-{last}/{len(data)}')
            data = data[first : last + 1]
        self.send_header('Content-Length', str(len(data)))
        self.send_header('Accept-Ranges', 'bytes')
        if self.counters[2]:
            self.send_header('ETag', f'"{path.stat().st_mtime_ns:x}"')
        if self.counters[3]:
            self.send_header('Last-Modified', self.date_time_string(path.stat().st_mtime))
        if body:
            with self.counters.get_lock():
                self.counters[0] += len(data)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


def _serve(folder: Path, counters: Any, told: Connection) -> None:
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(_Handler, folder=folder, counters=counters))
    told.send(server.server_port)
    server.serve_forever()
