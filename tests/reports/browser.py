"""A headless Chromium, told what to do over a pipe (Chrome DevTools Protocol)."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (found for n in ('chromium', 'chromium-browser', 'google-chrome') if (found := shutil.which(n))), None
)


class Browser:
    """One page of a running Chromium.

    Attributes:
        events: What the browser reported, `(method, params)`.
    """

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._numbers = read, write, count(1)
        self._buffer, self._session = b'', None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Network', 'Runtime', 'Log'):
            self.call(f'{domain}.enable')

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method and wait for its result."""
        number = next(self._numbers)
        message = {'id': number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._write, json.dumps(message).encode() + b'\0')
        while True:
            found = self._next()
            if found.get('id') == number:
                assert 'error' not in found, found['error']
                return found['result']

    def open(self, path: Path, width: int = 1200, height: int = 800, scheme: str = 'light') -> None:
        """Open a file and wait until all of it is loaded."""
        feature = {'name': 'prefers-color-scheme', 'value': scheme}
        self.call('Emulation.setEmulatedMedia', features=[feature])
        self.call(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        before = len(self.events)
        self.call('Page.navigate', url=path.resolve().as_uri())
        while not any(method == 'Page.loadEventFired' for method, _ in self.events[before:]):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        found = self.call('Runtime.evaluate', expression=expression, returnByValue=True)
        return found['result'].get('value')

    def _next(self) -> dict[str, Any]:
        while b'\0' not in self._buffer:
            read = os.read(self._read, 1 << 20)
            assert read, 'the browser closed'
            self._buffer += read
        line, self._buffer = self._buffer.split(b'\0', 1)
        found: dict[str, Any] = json.loads(line)
        if 'method' in found:
            self.events.append((found['method'], found['params']))
        return found


@contextmanager
def start() -> Iterator[Browser]:
    """Start Chromium with a profile of its own and without any network service of its own."""
    assert CHROMIUM is not None
    to_browser, from_us = os.pipe()
    to_us, from_browser = os.pipe()

    def connect() -> None:  # Chromium reads from 3 and writes to 4
        reader, writer = os.dup(to_browser), os.dup(from_browser)
        os.dup2(reader, 3)
        os.dup2(writer, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            '--headless=new',
            '--no-sandbox',
            '--disable-gpu',
            '--remote-debugging-pipe',
            '--no-first-run',
        ]
        process = subprocess.Popen(
            [CHROMIUM, *options, '--remote-debugging-pipe', f'--user-data-dir={profile}'],
            preexec_fn=connect,
            close_fds=False,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(to_us, from_us)
        finally:
            process.kill()
            process.wait()
            os.close(to_us)
            os.close(from_us)
