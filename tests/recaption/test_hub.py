import contextlib
import http.server
import re
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


def use_hub(monkeypatch, url: str) -> None:
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@contextlib.contextmanager
def serve_hub(status: int, headers: dict[str, str]):
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


def test_a_folder_is_on_disk_without_a_request(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: pytest.fail("sent a request"))
    assert hub.is_on_disk(str(tmp_path), what="x", hint="y")


def test_offline_mode_is_an_error_at_once(monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnreachableError, match=r"git:a/b: .*HF_HUB_OFFLINE is set.*; give a folder"):
        hub.is_on_disk("a/b", what="git:a/b", hint="give a folder")


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, {}, ""),
        (302, {"Location": "http://elsewhere.invalid/file"}, ""),
        (404, {}, hub.NOT_FOUND),
        (401, {}, "HF_TOKEN"),
        (503, {}, "503"),
    ],
)
def test_the_status_of_the_hub_becomes_a_reason(monkeypatch, empty_cache, status, headers, expected):
    with serve_hub(status, headers) as url:
        use_hub(monkeypatch, url)
        reason = hub.unavailable_reason("a/b", "config.json")
    assert expected in reason
    assert bool(expected) == bool(reason)


def test_a_hub_that_never_responds_is_unavailable(monkeypatch, empty_cache):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use_hub(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert re.fullmatch("the hub cannot be reached: .*timed out", hub.unavailable_reason("a/b", "config.json"))


def test_a_hub_that_refuses_connections_is_unavailable(monkeypatch, empty_cache):
    use_hub(monkeypatch, "http://127.0.0.1:9")
    assert re.fullmatch("the hub cannot be reached: .*refused", hub.unavailable_reason("a/b", "config.json"))


def test_malformed_ids_are_an_error_not_a_crash(monkeypatch, empty_cache):
    use_hub(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(WeightsUnreachableError, match=r"git:a b.*\(Repo id must"):
        hub.is_on_disk("a b//c", what="git:a b//c", hint="give a folder")
