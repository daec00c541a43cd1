"""An HTTP server of a folder that answers 500 or drops the line now and then, with ranges, ETags and a log of requests."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FlakyServer

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.num_open += 1
            self.server.most_open = max(self.server.most_open, self.server.num_open)
        try:
            self._answer()
        finally:
            with self.server.lock:
                self.server.num_open -= 1

    def _answer(self) -> None:
        path = self.server.folder / unquote(self.path).lstrip("/")
        number = self.server.requests[self.path]
        self.server.requests[self.path] += 1
        if not path.is_file():
            self.send_error(404)
            return
        if self.server.is_flaky and number == 0 and hash_of(self.path) % 3 == 0:
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        start, end = 0, len(data)
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and self.server.has_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            self.server.ranges.append((start, min(end, len(data))))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:end]
        self.send_header("Content-Length", str(len(body)))
        if self.server.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", self.server.content_type)
        self.send_header("ETag", f'"{len(data)}-{hash_of(str(path))}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        time.sleep(self.server.seconds)
        if self.server.is_flaky and number < 2 and hash_of(self.path) % 3 == 1 and len(body) > 1:
            self.wfile.write(body[: len(body) // 2])  # and the line drops
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)


class FlakyServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    folder: Path
    url: str
    is_flaky = True
    has_ranges = True
    content_type = "video/mp4"
    seconds = 0.0
    """Before the body."""
    num_open = most_open = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.lock = folder, threading.Lock()
        self.requests: Counter[str] = Counter()
        self.ranges: list[tuple[int, int]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        pass


def hash_of(text: str) -> int:
    return sum(text.encode())


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[FlakyServer]:
    """The server of a folder, while it runs."""
    with FlakyServer(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
