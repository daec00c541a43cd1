import contextlib
import http.server
import socket
import threading

import pytest
from huggingface_hub import constants

from recaption import hub
from recaption.errors import WeightsUnreachableError


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@contextlib.contextmanager
def small_hub(status: int, headers: dict[str, str]):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_folder_is_on_disk_and_asks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "probe", lambda *_: pytest.fail("asked the hub"))
    assert hub.is_on_disk(str(tmp_path), what="x", give="y")


def test_offline_is_said_at_once(monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnreachableError, match=r"git:a/b: .*HF_HUB_OFFLINE is set.*; give a folder"):
        hub.is_on_disk("a/b", what="git:a/b", give="give a folder")


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (200, {}, ""),
        (302, {"Location": "http://127.0.0.1:9/elsewhere"}, ""),
        (404, {}, hub.NOT_THERE),
        (401, {}, "HF_TOKEN"),
        (503, {}, "503"),
    ],
)
def test_answers_of_a_hub(monkeypatch, empty_cache, status, headers, says):
    with small_hub(status, headers) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        answer = hub.probe("a/b", "config.json")
    assert says in answer
    assert bool(says) == bool(answer)


def test_a_hub_that_never_answers_is_given_up(monkeypatch, empty_cache):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.probe("a/b", "config.json") != ""


def test_malformed_ids_are_unreachable_not_a_crash(monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnreachableError, match="git:a b"):
        hub.is_on_disk("a b//c", what="git:a b//c", give="give a folder")
