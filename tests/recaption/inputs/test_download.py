"""Downloads have limits on bytes, disk and time; what may pass is tried again, what the data deserves is final."""

from __future__ import annotations

import http.server
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from flaky_server import hash_of, serving

from recaption.errors import VideoError
from recaption.inputs import download
from recaption.inputs.download import current_etag, downloaded
from recaption.inputs.hosts import host_slot
from recaption.inputs.http import is_own_machine
from recaption.inputs.sidecars import find_sidecar

BODY = b"v" * 300_000


class Handler(http.server.BaseHTTPRequestHandler):
    """/503-2/a.mp4 answers 503 twice, /drop-1/... ends early once; /endless, /drip, /redirect-file, /redirect, /ok."""

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.hits.append(self.path)
        kind, _, number = self.path.split("/")[1].partition("-")
        if kind in ("503", "404", "403", "429") and self.server.hits.count(self.path) <= int(number or 99):
            self.send_error(int(kind))
        elif kind == "redirect":
            self.send_response(302)
            self.send_header(
                "Location", {"file": "file:///etc/passwd", "meta": "http://169.254.169.254/"}.get(number, "/ok")
            )
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b"x" * 100_000)
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        elif kind == "dripheaders":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
        else:
            drops = kind == "drop" and self.server.hits.count(self.path) <= int(number)
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.send_header("ETag", '"v1"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(BODY[: 1000 if drops else None])


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.01)

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True
        hits: list[str]

        def handle_error(self, *_):
            pass  # the client hung up, as it should

    with Quiet(("127.0.0.1", 0), Handler) as server:
        server.hits = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield server
        server.shutdown()


def fetch(uri, *, max_bytes=1 << 20, max_seconds=20.0) -> tuple[bytes, str]:
    with downloaded(uri, max_bytes=max_bytes, max_seconds=max_seconds) as (file, etag):
        return file.read(), etag


def failure(uri, **limits) -> VideoError:
    with pytest.raises(VideoError) as raised:
        fetch(uri, **limits)
    assert raised.value.uri == uri
    return raised.value


def test_a_whole_file_arrives_with_its_etag(server):
    assert fetch(f"{server.url}/ok/a.mp4") == (BODY, '"v1"')
    assert fetch(f"{server.url}/redirect/a.mp4")[0] == BODY
    assert current_etag(f"{server.url}/ok/a.mp4") == '"v1"'
    assert current_etag(f"{server.url}/404/a.mp4") == ""
    assert current_etag(f"{server.url}/503/a.mp4") is None


@pytest.mark.parametrize("path", ["/503-2/a.mp4", "/429-1/a.mp4", "/drop-2/a.mp4"])
def test_what_passes_is_tried_again(server, path):
    assert fetch(server.url + path)[0] == BODY
    assert server.hits.count(path) in (2, 3)


@pytest.mark.parametrize("path", ["/503/a.mp4", "/drop-9/a.mp4"])
def test_what_does_not_pass_is_fetch_failed(server, path):
    assert failure(server.url + path).reason == "fetch_failed"
    assert server.hits.count(path) == download.NUM_TRIES


@pytest.mark.parametrize("path", ["/404/a.mp4", "/403/a.mp4", "/redirect-file/a.mp4", "/redirect-meta/a.mp4"])
def test_what_the_server_says_of_the_file_is_final(server, path):
    assert failure(server.url + path).reason == "unreadable"
    assert server.hits.count(path) == 1


def test_a_host_that_is_not_there_is_fetch_failed(server):
    server.server_close()
    assert failure(f"{server.url}/ok/a.mp4").reason == "fetch_failed"


def test_a_download_has_a_limit_of_bytes_that_names_its_flag(server):
    for path in ("/endless/a.mp4", "/ok/a.mp4"):
        error = failure(server.url + path, max_bytes=200_000)
        assert error.reason == "too_large"
        assert "--prepare.decode.max-input-bytes" in error.detail
        assert server.hits.count(path) == 1
    fsspec.filesystem("memory").pipe("/download/a.mp4", BODY)
    assert failure("memory://download/a.mp4", max_bytes=200_000).reason == "too_large"
    assert fetch("memory://download/a.mp4", max_bytes=300_000)[0] == BODY


@pytest.mark.parametrize("path", ["/drip/a.mp4", "/dripheaders/a.mp4"])
def test_a_download_has_a_clock_whatever_drips(server, monkeypatch, path):
    monkeypatch.setattr(download, "NUM_TRIES", 1)
    started = time.monotonic()
    error = failure(server.url + path, max_seconds=0.5)
    assert error.reason == "fetch_failed"
    assert "--prepare.decode.max-fetch-seconds" in error.detail
    assert time.monotonic() - started < 5


def test_a_download_leaves_room_on_the_disk_and_nothing_behind(server, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(download, "RESERVE_BYTES", 1 << 62)
    error = failure(f"{server.url}/ok/a.mp4")
    assert error.reason == "fetch_failed"
    assert "TMPDIR" in error.detail
    assert list(Path(tmp_path).iterdir()) == []


def test_storage_that_fails_for_a_while_is_tried_again(monkeypatch, server):
    from fsspec.implementations.memory import MemoryFileSystem

    fsspec.filesystem("memory").pipe("/download/b.mp4", BODY)
    get_file, failures = MemoryFileSystem.get_file, [OSError("503 Slow Down"), ConnectionError("reset")]

    def sometimes(self, *args, **kwargs):
        if failures:
            raise failures.pop()
        return get_file(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "get_file", sometimes)
    assert fetch("memory://download/b.mp4")[0] == BODY
    failures += [OSError("503 Slow Down")] * download.NUM_TRIES
    assert failure("memory://download/b.mp4").reason == "fetch_failed"
    failures += [PermissionError("403")]
    assert failure("memory://download/b.mp4").reason == "unreadable"
    assert failure("memory://download/none.mp4").reason == "unreadable"


def test_protocols_outside_of_the_list_are_not_followed():
    for uri in ("local:///etc/hostname", "sftp://127.0.0.1/a.mp4"):
        assert "inputs are not read from" in failure(uri).detail


def test_addresses_of_this_machine_are_known():
    assert is_own_machine("http://localhost:80/a")
    assert is_own_machine("http://[::1]/a")
    assert is_own_machine("http://0.0.0.0/a")
    assert is_own_machine("http://2130706433/a")
    assert not is_own_machine("http://93.184.216.34/a")


def test_side_texts_of_http_inputs_are_bounded_and_never_raise(server):
    assert find_sidecar(f"{server.url}/404/a.mp4").refusal == ""
    assert "503" in find_sidecar(f"{server.url}/503/a.mp4").refusal
    assert "longer than" in find_sidecar(f"{server.url}/endless/a.mp4").refusal


# --- ranges and politeness --------------------------------------------------------------------------------------------


def test_a_dropped_line_goes_on_where_it_stopped(tmp_path, server):
    del server  # without proxies and waiting
    (tmp_path / "a.mp4").write_bytes(BODY)
    with serving(tmp_path) as flaky:
        assert hash_of("/a.mp4") % 3 == 1  # the line drops after half of what is asked for, twice
        with downloaded(f"{flaky.url}/a.mp4", max_bytes=1 << 30, max_seconds=60) as (file, etag):
            assert file.read() == BODY
        assert etag
        assert flaky.ranges == [(len(BODY) // 2, len(BODY)), (len(BODY) * 3 // 4, len(BODY))]
        flaky.has_ranges = False
        flaky.requests.clear()
        with downloaded(f"{flaky.url}/a.mp4", max_bytes=1 << 30, max_seconds=60) as (file, _):
            assert file.read() == BODY


def test_a_host_gets_a_few_connections_at_a_time(tmp_path, server):
    del server
    (tmp_path / "a.mp4").write_bytes(BODY)
    with serving(tmp_path) as slow:
        slow.is_flaky, slow.seconds = False, 0.05

        def fetch(_):
            with downloaded(f"{slow.url}/a.mp4", max_bytes=1 << 30, max_seconds=60, max_host_connections=2) as (
                file,
                _,
            ):
                return len(file.read())

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(fetch, range(8))) == [len(BODY)] * 8
        assert slow.most_open <= 2
        with (
            host_slot(slow.url, max_connections=1, max_seconds=1.0),
            pytest.raises(VideoError, match="were busy"),
            host_slot(slow.url, max_connections=1, max_seconds=0.1),
        ):
            pass


def test_a_page_is_no_video(tmp_path, server):
    del server
    (tmp_path / "watch").write_text("<html>")
    with serving(tmp_path) as pages:
        pages.is_flaky, pages.content_type = False, "text/html"
        assert "recaption[yt-dlp]" in failure(f"{pages.url}/watch").detail
