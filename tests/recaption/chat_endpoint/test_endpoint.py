from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from chat_server import Script, completion, serving

from recaption.chat_endpoint.endpoint import ChatEndpoint, EndpointSettings, split_spec
from recaption.chat_endpoint.messages import ChatRequest, ChatResponse
from recaption.errors import EndpointDownError, UsageError

QUICK = EndpointSettings(concurrency=4, timeout_seconds=20, max_tries=3, backoff_seconds=0.01)


def chat_request(key="a", **more):
    return ChatRequest(key=key, messages=[{"role": "user", "content": "What is there?"}], max_tokens=9, **more)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("RECAPTION_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_responses_come_in_the_order_of_the_requests():
    def echo(body):
        time.sleep(0.05 if body["seed"] == 0 else 0)
        return completion(f"text {body['seed']}", logprobs={"content": [{"logprob": -1.0}, {"logprob": -2.0}]})

    with serving(Script(echo)) as spec:
        responses = ChatEndpoint.at(spec, QUICK).complete([chat_request(seed=i) for i in range(9)])
    assert [response.text for response in responses] == [f"text {i}" for i in range(9)]
    assert responses[0] == ChatResponse(text="text 0", ended=True, num_tokens=6, mean_logprob=-1.5)


def test_no_more_requests_are_in_flight_than_the_limit():
    running, most, lock = [0], [0], threading.Lock()

    def slow(body):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.03)
        with lock:
            running[0] -= 1
        return completion()

    with serving(Script(slow)) as spec:
        ChatEndpoint.at(spec, QUICK).complete([chat_request(seed=i) for i in range(12)])
    assert most[0] == QUICK.concurrency


def test_a_cut_completion_has_not_ended():
    with serving(Script(completion("A red", finish_reason="length"))) as spec:
        assert not ChatEndpoint.at(spec, QUICK).complete([chat_request()])[0].ended


@pytest.mark.parametrize("first", [(429, {}, {"Retry-After": "0.05"}), (500, b"oops", {}), (503, {}, {})])
def test_a_busy_server_is_retried(first):
    script = Script(first, completion())
    with serving(script) as spec:
        (response,) = ChatEndpoint.at(spec, QUICK).complete([chat_request()])
    assert response.text.startswith("A red")
    assert response.num_tries == 2


def test_retry_after_is_obeyed():
    script = Script((429, {}, {"Retry-After": "0.3"}), completion())
    with serving(script) as spec:
        ChatEndpoint.at(spec, QUICK).complete([chat_request()])
    assert script.times[1] - script.times[0] >= 0.3


def test_waits_grow_and_differ_between_requests_but_not_between_runs():
    endpoint = ChatEndpoint.at("http://127.0.0.1:9/v1#m", EndpointSettings(backoff_seconds=1.0))
    waits = [endpoint._backoff_wait_seconds(chat_request("a"), number) for number in (1, 2, 3)]
    assert waits == [endpoint._backoff_wait_seconds(chat_request("a"), number) for number in (1, 2, 3)]
    assert waits[0] != endpoint._backoff_wait_seconds(chat_request("b"), 1)
    for number, wait in enumerate(waits):
        assert 0.5 * 2**number <= wait <= 1.5 * 2**number


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ((200, b"<html>hello</html>", {}), "not JSON"),
        ((200, {"choices": []}, {}), "no choices"),
        ((200, [1, 2], {}), "no choices"),
        ((200, {"choices": [{"message": {"content": None}}]}, {}), "no text"),
        ((200, {"choices": [{"message": "x"}]}, {}), "no text"),
        ((400, {"error": {"message": "prompt is longer than the context of 4096"}}, {}), "longer than the context"),
        ((429, {}, {}), "429"),
    ],
)
def test_an_invalid_response_is_one_error_and_no_other_is_lost(reply, error):
    script = Script(lambda body: reply if body["seed"] == 1 else completion())
    with serving(script) as spec:
        responses = ChatEndpoint.at(spec, QUICK).complete([chat_request(seed=i) for i in range(4)])
    assert error in responses[1].error
    assert responses[1].text == ""
    assert all(not responses[i].error and responses[i].text for i in (0, 2, 3))


def test_one_slow_request_times_out():
    def slow(body):
        if body["seed"] == 1:
            time.sleep(2)
        return completion()

    with serving(Script(slow)) as spec:
        endpoint = ChatEndpoint.at(spec, replace(QUICK, timeout_seconds=1))
        responses = endpoint.complete([chat_request(seed=i) for i in range(3)])
    assert "no response within 1 s" in responses[1].error
    assert responses[0].text
    assert responses[2].text


def test_an_endpoint_that_is_down_is_one_error():
    with pytest.raises(EndpointDownError, match=r"is down.*start it and run the same command again"):
        ChatEndpoint.at("http://127.0.0.1:9/v1#m", QUICK).complete([chat_request(seed=i) for i in range(40)])
    with pytest.raises(EndpointDownError, match=r"no endpoint responds at http://127.0.0.1:9/v1"):
        ChatEndpoint.at("http://127.0.0.1:9/v1#m", QUICK).check()
    script = Script((500, {}, {}))
    with serving(script) as spec, pytest.raises(EndpointDownError, match="status 500"):
        ChatEndpoint.at(spec, QUICK).complete([chat_request(seed=i) for i in range(40)])
    assert len(script.requests) < 40  # the remaining requests are not sent


def test_a_server_that_rejects_every_request_is_one_error():
    script = Script((400, {"error": {"message": "m is not a multimodal model"}}, {}))
    with serving(script) as spec, pytest.raises(EndpointDownError, match=r"rejects every request.*not a multimodal"):
        ChatEndpoint.at(spec, QUICK).complete([chat_request(seed=i) for i in range(40)])


def test_a_server_without_logprobs_gets_requests_without_them():
    def picky(body):
        return (400, {"detail": "logprobs are not supported"}, {}) if "logprobs" in body else completion()

    with serving(Script(picky)) as spec:
        (response,) = ChatEndpoint.at(spec, QUICK).complete([chat_request()])
    assert response.text
    assert response.mean_logprob is None


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_server_with_the_newer_name_of_the_limit_gets_that_name(concurrency):
    all_in_flight = threading.Barrier(concurrency)

    def picky(body):
        if "max_tokens" in body:
            all_in_flight.wait(5)  # so that all of them were sent before the first rejection arrives
            unsupported = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": unsupported}}, {}
        return (400, {"detail": "logprobs are not supported"}, {}) if "logprobs" in body else completion()

    script = Script(picky)
    with serving(script) as spec:
        endpoint = ChatEndpoint.at(spec, replace(QUICK, concurrency=concurrency, max_tries=1))
        responses = endpoint.complete([chat_request(seed=i) for i in range(2 * concurrency)])
    assert [response.error for response in responses] == [""] * 2 * concurrency
    assert sum("max_tokens" in body for body in script.requests) == concurrency


def test_after_an_endpoint_was_down_all_tries_are_made_again():
    script = Script((401, {}, {}), (503, {}, {}), (503, {}, {}), completion())
    with serving(script) as spec:
        endpoint = ChatEndpoint.at(spec, QUICK)
        with pytest.raises(EndpointDownError, match="status 401"):
            endpoint.complete([chat_request()])
        (response,) = endpoint.complete([chat_request()])
    assert response.text
    assert response.num_tries == 3


def test_a_failure_of_all_does_not_wait_for_the_others():
    released = threading.Event()

    def reply(body):
        if body["seed"]:
            released.wait(20)
        return 401, {}, {}

    with serving(Script(reply)) as spec:
        started = time.monotonic()
        with pytest.raises(EndpointDownError, match="status 401"):
            ChatEndpoint.at(spec, QUICK).complete([chat_request(seed=i) for i in range(4)])
        assert time.monotonic() - started < 10
        released.set()


def test_it_works_where_an_event_loop_runs_already():
    async def notebook_cell():
        endpoint = ChatEndpoint.at(spec, QUICK)
        return endpoint.check(), endpoint.complete([chat_request()])

    with serving(Script(completion())) as spec:
        entry, (response,) = asyncio.run(notebook_cell())
    assert entry == {"id": "m"}
    assert response.text


def test_the_list_of_models_is_checked():
    with serving(Script(completion(), models=("other",))) as spec, pytest.raises(UsageError, match="serves other"):
        ChatEndpoint.at(spec, QUICK).check()
    with serving(Script(completion())) as spec:
        assert ChatEndpoint.at(spec, QUICK).check() == {"id": "m"}


@pytest.mark.parametrize(
    "spec", ["http://host/v1", "http://#m", "ftp://host/v1#m", "http://host:x/v1#m", "http://u:p@host/v1#m", "http:m"]
)
def test_malformed_urls_are_usage_errors(spec):
    with pytest.raises(UsageError):
        split_spec(spec)
    assert split_spec("http://host:8000/v1/#org/model") == ("http://host:8000/v1", "org/model")
