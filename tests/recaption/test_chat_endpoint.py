from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import pytest
from chat_server import Script, said, serving

from recaption.chat_endpoint import Answer, ChatEndpoint, EndpointSettings, Question, split_spec
from recaption.errors import EndpointDownError, UsageError

QUICK = EndpointSettings(concurrency=4, timeout_seconds=0.4, max_tries=3, backoff_seconds=0.01)


def question(key="a", **more):
    return Question(key=key, messages=[{"role": "user", "content": "What is there?"}], max_tokens=9, **more)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("RECAPTION_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_answers_come_in_the_order_of_the_questions():
    def echo(asked):
        time.sleep(0.05 if asked["seed"] == 0 else 0)
        return said(f"answer {asked['seed']}", logprobs={"content": [{"logprob": -1.0}, {"logprob": -2.0}]})

    with serving(Script(echo)) as spec:
        answers = ChatEndpoint.at(spec, QUICK).ask([question(seed=i) for i in range(9)])
    assert [answer.text for answer in answers] == [f"answer {i}" for i in range(9)]
    assert answers[0] == Answer(text="answer 0", ended=True, num_tokens=6, mean_logprob=-1.5)


def test_no_more_questions_are_on_their_way_than_allowed():
    running, most, lock = [0], [0], threading.Lock()

    def slow(asked):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.03)
        with lock:
            running[0] -= 1
        return said()

    with serving(Script(slow)) as spec:
        ChatEndpoint.at(spec, QUICK).ask([question(seed=i) for i in range(12)])
    assert most[0] == QUICK.concurrency


def test_a_cut_answer_says_so():
    with serving(Script(said("A red", finish_reason="length"))) as spec:
        assert not ChatEndpoint.at(spec, QUICK).ask([question()])[0].ended


@pytest.mark.parametrize("first", [(429, {}, {"Retry-After": "0.05"}), (500, b"oops", {}), (503, {}, {})])
def test_a_busy_server_is_asked_again(first):
    script = Script(first, said())
    with serving(script) as spec:
        (answer,) = ChatEndpoint.at(spec, QUICK).ask([question()])
    assert answer.text.startswith("A red")
    assert answer.num_tries == 2


def test_retry_after_is_obeyed():
    script = Script((429, {}, {"Retry-After": "0.3"}), said())
    with serving(script) as spec:
        ChatEndpoint.at(spec, QUICK).ask([question()])
    assert script.times[1] - script.times[0] >= 0.3


def test_waits_grow_and_differ_between_questions_but_not_between_runs():
    endpoint = ChatEndpoint.at("http://127.0.0.1:9/v1#m", EndpointSettings(backoff_seconds=1.0))
    waits = [endpoint._wait_seconds(question("a"), number) for number in (1, 2, 3)]
    assert waits == [endpoint._wait_seconds(question("a"), number) for number in (1, 2, 3)]
    assert waits[0] != endpoint._wait_seconds(question("b"), 1)
    for number, wait in enumerate(waits):
        assert 0.5 * 2**number <= wait <= 1.5 * 2**number


@pytest.mark.parametrize(
    ("garbage", "fault"),
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
def test_garbage_is_one_fault_and_the_other_answers_are_not_lost(garbage, fault):
    script = Script(lambda asked: garbage if asked["seed"] == 1 else said())
    with serving(script) as spec:
        answers = ChatEndpoint.at(spec, QUICK).ask([question(seed=i) for i in range(4)])
    assert fault in answers[1].fault
    assert answers[1].text == ""
    assert all(not answers[i].fault and answers[i].text for i in (0, 2, 3))


def test_one_slow_question_is_given_up():
    def slow(asked):
        if asked["seed"] == 1:
            time.sleep(0.8)
        return said()

    with serving(Script(slow)) as spec:
        answers = ChatEndpoint.at(spec, QUICK).ask([question(seed=i) for i in range(3)])
    assert "no answer within 0.4 s" in answers[1].fault
    assert answers[0].text
    assert answers[2].text


def test_an_answer_drop_by_drop_is_given_up_too():
    script = Script(said())
    script.bytes_at_a_time, script.pause_seconds = 1, 0.05  # each byte well within the limit, all of them in 7 s
    with serving(script) as spec:
        started = time.monotonic()
        (answer,) = ChatEndpoint.at(spec, replace(QUICK, max_tries=1)).ask([question()])
    assert "no answer within 0.4 s" in answer.fault
    assert time.monotonic() - started < 2


def test_an_endpoint_that_is_down_is_one_error():
    with pytest.raises(EndpointDownError, match=r"is down.*start it and run this again"):
        ChatEndpoint.at("http://127.0.0.1:9/v1#m", QUICK).ask([question(seed=i) for i in range(40)])
    with pytest.raises(EndpointDownError, match=r"no endpoint answers at http://127.0.0.1:9/v1"):
        ChatEndpoint.at("http://127.0.0.1:9/v1#m", QUICK).check()
    script = Script((500, {}, {}))
    with serving(script) as spec, pytest.raises(EndpointDownError, match="status 500"):
        ChatEndpoint.at(spec, QUICK).ask([question(seed=i) for i in range(40)])
    assert len(script.seen) < 40  # nobody goes on asking


def test_a_server_that_takes_no_pictures_is_one_error():
    script = Script((400, {"error": {"message": "m is not a multimodal model"}}, {}))
    with serving(script) as spec, pytest.raises(EndpointDownError, match=r"refuses every question.*not a multimodal"):
        ChatEndpoint.at(spec, QUICK).ask([question(seed=i) for i in range(40)])


def test_a_server_without_logprobs_is_asked_without():
    def picky(asked):
        return (400, {"detail": "logprobs are not supported"}, {}) if "logprobs" in asked else said()

    with serving(Script(picky)) as spec:
        (answer,) = ChatEndpoint.at(spec, QUICK).ask([question()])
    assert answer.text
    assert answer.mean_logprob is None


def test_a_server_with_the_newer_name_of_the_limit_is_asked_by_it():
    def picky(asked):
        unsupported = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return (400, {"error": {"message": unsupported}}, {}) if "max_tokens" in asked else said()

    script = Script(picky)
    with serving(script) as spec:
        answers = ChatEndpoint.at(spec, replace(QUICK, concurrency=1, max_tries=1)).ask([question(), question("b")])
    assert all(answer.text for answer in answers)
    assert len(script.seen) == 3


def test_the_list_of_models_is_checked():
    with serving(Script(said(), models=("other",))) as spec, pytest.raises(UsageError, match="serves other"):
        ChatEndpoint.at(spec, QUICK).check()
    with serving(Script(said())) as spec:
        assert ChatEndpoint.at(spec, QUICK).check() == {"id": "m"}


def test_the_key_is_sent_and_never_shown(monkeypatch, caplog):
    monkeypatch.setenv("RECAPTION_API_KEY", "secret-key-1")
    script = Script((400, {"error": {"message": "bad key secret-key-1"}}, {}))
    caplog.set_level(logging.DEBUG)
    with serving(script) as spec:
        endpoint = ChatEndpoint.at(spec, QUICK)
        (answer,) = endpoint.ask([question()])
    assert script.auth == ["Bearer secret-key-1"]
    assert "secret" not in answer.fault + caplog.text + repr(endpoint.settings)
    with serving(Script((401, {}, {}))) as spec, pytest.raises(EndpointDownError, match="the key is refused") as caught:
        ChatEndpoint.at(spec, QUICK).ask([question()])
    assert "secret" not in str(caught.value)


def test_the_key_of_a_hosted_service_does_not_leave_in_plain_text(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-2")
    assert "Authorization" not in ChatEndpoint.at("http://far.example/v1#m")._headers()
    assert "Authorization" in ChatEndpoint.at("https://far.example/v1#m")._headers()
    assert "Authorization" in ChatEndpoint.at("http://localhost:8000/v1#m")._headers()


def test_redirects_are_not_followed():
    script = Script((307, b"", {"Location": "http://127.0.0.1:9/v1"}))
    with serving(script) as spec, pytest.raises(EndpointDownError, match="status 307"):
        ChatEndpoint.at(spec, QUICK).ask([question()])


@pytest.mark.parametrize(
    "spec", ["http://host/v1", "http://#m", "ftp://host/v1#m", "http://host:x/v1#m", "http://u:p@host/v1#m", "http:m"]
)
def test_malformed_addresses(spec):
    with pytest.raises(UsageError):
        split_spec(spec)
    assert split_spec("http://host:8000/v1/#org/model") == ("http://host:8000/v1", "org/model")
