from __future__ import annotations

import gzip
import itertools
import json
import logging
import threading
import time
import traceback
from dataclasses import replace

import pytest
from chat_server import Script, completion, serving, serving_pieces

from recaption.chat_endpoint.endpoint import ChatEndpoint, EndpointSettings
from recaption.chat_endpoint.messages import ChatRequest
from recaption.chat_endpoint.transport import MAX_RESPONSE_BYTES, api_key_for
from recaption.errors import EndpointDownError, UsageError

ONE_TRY = EndpointSettings(timeout_seconds=20, max_tries=1)
HALF_A_SECOND = replace(ONE_TRY, timeout_seconds=0.5)
MESSAGES = [{"role": "user", "content": "What is there?"}]
KEY = "secret-key-1"
OK = b"HTTP/1.1 200 OK\r\n"


def response_of(spec, settings=ONE_TRY):
    (response,) = ChatEndpoint.at(spec, settings).complete([ChatRequest(key="a", messages=MESSAGES, max_tokens=9)])
    return response


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("RECAPTION_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def slow_headers(_):
    yield OK
    yield from (b"X-%d: y\r\n" % number for number in itertools.count())


def continue_for_ever(_):
    yield from itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")


def slow_chunk_size_line(_):
    yield OK + b"Transfer-Encoding: chunked\r\n\r\n1;"
    yield from itertools.repeat(b"a")


def slow_chunks(_):
    yield OK + b"Transfer-Encoding: chunked\r\n\r\n"
    yield from itertools.repeat(b"1\r\n \r\n")


def slow_body(_):
    yield OK + b"Content-Length: 1000000\r\n\r\n"
    yield from itertools.repeat(b" ")


def silence(_):
    yield from itertools.repeat(b"")


@pytest.mark.parametrize(
    "pieces", [slow_headers, continue_for_ever, slow_chunk_size_line, slow_chunks, slow_body, silence]
)
def test_the_time_limit_holds_for_a_response_that_arrives_slowly(pieces):
    with serving_pieces(pieces, pause_seconds=0.05) as spec:
        started = time.monotonic()
        response = response_of(spec, HALF_A_SECOND)
        assert "no response within 0.5 s" in response.error
        assert time.monotonic() - started < 4
        with pytest.raises(EndpointDownError, match=r"no endpoint responds at .*no response within 0.5 s"):
            ChatEndpoint.at(spec, HALF_A_SECOND).check()
        assert time.monotonic() - started < 4


def test_a_server_that_never_stops_sending_is_cut_off():
    with serving_pieces(continue_for_ever) as spec:
        started = time.monotonic()
        assert response_of(spec, HALF_A_SECOND).error
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("length", [b"Content-Length: 1099511627776\r\n\r\n", b"\r\n"])
def test_a_giant_response_is_cut_off(length):
    sent = [0]

    def giant(_):
        yield OK + length
        while sent[0] < 1 << 30:
            sent[0] += 1 << 16
            yield b"x" * (1 << 16)

    with serving_pieces(giant) as spec:
        response = response_of(spec, ONE_TRY)
    assert "a response of more than 4 MiB" in response.error
    assert sent[0] < 8 * MAX_RESPONSE_BYTES  # what both ends of a connection buffer is sent too


@pytest.mark.parametrize("body", [b"\x1f\x8b" + b"\0" * 100, gzip.compress(gzip.compress(b" " * (1 << 24)))])
def test_nothing_is_decompressed(body):
    with serving(Script((200, body, {"Content-Encoding": "gzip, gzip"}))) as spec:
        error = response_of(spec).error
    assert "not JSON: b" in error
    assert "\\x1f\\x8b" in error


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_to_another_port(status, monkeypatch):
    monkeypatch.setenv("RECAPTION_API_KEY", KEY)
    other = Script(completion())
    with serving(other) as other_spec:
        script = Script((status, b"", {"Location": other_spec.partition("#")[0] + "/chat/completions"}))
        with serving(script) as spec, pytest.raises(EndpointDownError, match=f"status {status}"):
            response_of(spec)
    assert len(script.auth) == 1
    assert other.auth == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "//[", "http://a:99999/", "javascript:x", ""])
def test_no_redirect_is_followed_to_anything_else(location):
    with (
        serving(Script((302, b"", {"Location": location}))) as spec,
        pytest.raises(EndpointDownError, match="status 302"),
    ):
        response_of(spec)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02 not http\r\n\r\n",
        b"",
        OK + b"Content-Length: 9\r\n\r\n{",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n",
        OK + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
def test_what_is_no_http_is_one_error(sent):
    with serving_pieces(lambda _: [sent]) as spec:
        assert response_of(spec).error


@pytest.mark.parametrize(
    "value",
    ["nan", "-5", "Thu, 01 Jan 1970 00:00:00 -0000", "Thu, 01 Jan 2026 00:00:00 +99999999999999", "soon", "\xff"],
)
def test_a_meaningless_retry_after_is_ignored(value):
    script = Script((503, b"", {"Retry-After": value}), completion())
    started = time.monotonic()
    with serving(script) as spec:
        assert response_of(spec, EndpointSettings(max_tries=2, backoff_seconds=0.01)).text
    assert time.monotonic() - started < 5


def head(status_line, *lines):
    return "\r\n".join([f"HTTP/1.1 {status_line}", *lines, "\r\n"]).encode()


def echo_in_body(status):
    def pieces(headers):
        body = json.dumps({"error": {"message": f"wrong key {headers['Authorization']}"}}).encode()
        yield head(f"{status} X", f"Content-Length: {len(body)}") + body

    return pieces


ECHOES = {
    **{str(status): echo_in_body(status) for status in (400, 401, 404, 500)},
    "200": lambda headers: [head("200 OK", "Content-Length: 19") + headers["Authorization"].encode()],
    "reason": lambda headers: [head(f"500 {headers['Authorization']}", "Content-Length: 0")],
    "status line": lambda headers: [head(headers["Authorization"])],
    "header": lambda headers: [head("400 X", f"X-Key: {headers['Authorization']}", "Content-Length: 0")],
    "bad header": lambda headers: [head("200 OK", f"{headers['Authorization']}")],
    "redirect": lambda headers: [head("302 X", f"Location: http://h/{headers['Authorization']}", "Content-Length: 0")],
}


@pytest.mark.parametrize("echo", ECHOES)
def test_a_key_that_the_server_repeats_is_in_no_message(echo, monkeypatch, caplog, capfd):
    monkeypatch.setenv("RECAPTION_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with serving_pieces(ECHOES[echo]) as spec:
        for call in (response_of, lambda spec: ChatEndpoint.at(spec, ONE_TRY).check()):
            try:
                message = str(call(spec))
            except EndpointDownError as error:
                message = "".join(traceback.format_exception(error))
            assert "secret" not in message + caplog.text + "".join(capfd.readouterr())


def test_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("RECAPTION_API_KEY", f"{KEY}\n")  # as `echo KEY > file` leaves it
    script = Script((400, {"error": {"message": f"bad key {KEY}"}}, {}))
    with serving(script) as spec:
        response = response_of(spec)
    assert script.auth == [f"Bearer {KEY}"]
    assert response.error == "status 400: bad key ..."
    with serving(Script((401, {}, {}))) as spec, pytest.raises(EndpointDownError, match="the key is rejected"):
        response_of(spec)


def test_a_key_that_no_header_can_hold_is_a_usage_error_without_the_key(monkeypatch):
    for key in ("secret\nX: y", "secret\N{SNOWMAN}"):
        monkeypatch.setenv("RECAPTION_API_KEY", key)
        with pytest.raises(UsageError, match="RECAPTION_API_KEY holds a character") as caught:
            ChatEndpoint.at("http://127.0.0.1:9/v1#m")
        assert "secret" not in str(caught.value)


def test_the_key_of_a_hosted_service_is_not_sent_over_plain_http(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-2")
    assert api_key_for("http://far.example/v1") == ""
    assert api_key_for("http://localhost@far.example/v1") == ""
    assert api_key_for("https://far.example/v1") == "secret-key-2"
    assert api_key_for("http://localhost:8000/v1") == "secret-key-2"
    assert api_key_for("http://[::1]:8000/v1") == "secret-key-2"


def test_the_proxies_of_the_environment_are_used(monkeypatch):
    script = Script(completion())
    with serving(script) as spec:
        monkeypatch.setenv("HTTP_PROXY", spec.partition("/v1")[0])
        assert response_of("http://far.invalid/v1#m").text
        monkeypatch.setenv("NO_PROXY", "far.invalid")
        with pytest.raises(EndpointDownError, match="is down"):
            response_of("http://far.invalid/v1#m")
    assert len(script.requests) == 1
    monkeypatch.setenv("HTTP_PROXY", "gopher://user:secret@127.0.0.1:9")
    with pytest.raises(UsageError, match="the proxy that the environment names cannot be used") as caught:
        response_of("http://far.example/v1#m")
    assert "secret" not in str(caught.value)


def test_no_cookie_is_sent_back():
    cookies = []

    def pieces(headers):
        cookies.append(headers.get("Cookie"))
        yield OK + b"Set-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"

    with serving_pieces(pieces) as spec:
        response_of(spec, EndpointSettings(max_tries=2, backoff_seconds=0.01))
    assert cookies == [None, None]


def test_requests_of_several_threads_do_not_mix():
    def echo(body):
        return completion(body["messages"][0]["content"])

    with serving(Script(echo)) as spec:
        endpoint, texts = ChatEndpoint.at(spec, EndpointSettings(timeout_seconds=20)), {}

        def work(name):
            requests = [
                ChatRequest(key=str(i), messages=[{"role": "user", "content": f"{name}{i}"}], max_tokens=9)
                for i in range(9)
            ]
            texts[name] = [response.text for response in endpoint.complete(requests)]

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert texts == {name: [f"{name}{i}" for i in range(9)] for name in "abc"}
