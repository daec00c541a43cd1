from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recaption.chat_endpoint.messages import parse_completion, parse_error_message, parse_models

DEEP = b"[" * 100_000 + b"]" * 100_000


def completion(*, content=b'"A red circle."', logprob=b"-0.5", num_tokens=b"3"):
    return (
        b'{"choices": [{"message": {"content": %b}, "finish_reason": "stop", "logprobs": {"content": [{"logprob": -1},'
        b'{"logprob": %b}]}}], "usage": {"completion_tokens": %b}}' % (content, logprob, num_tokens)
    )


@pytest.mark.parametrize(
    "logprob", [b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"9" * 400, b'"x"', b"null"]
)
def test_a_logprob_that_is_no_number_is_none(logprob):
    assert parse_completion(completion()).mean_logprob == -0.75
    response = parse_completion(completion(logprob=logprob))
    assert response.text == "A red circle."
    assert response.mean_logprob is None


@pytest.mark.parametrize("num_tokens", [b"-1", b"9" * 400, b"1e999", b'"3"', b"[1]"])
def test_an_impossible_number_of_tokens_is_replaced_by_the_number_of_logprobs(num_tokens):
    assert parse_completion(completion()).num_tokens == 3
    assert parse_completion(completion(num_tokens=num_tokens)).num_tokens == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (rb'"\ud800 red"', "? red"),  # a lone surrogate
        (b'"\xed\xa0\x80 red"', "? red"),  # the same in bytes
        (rb'"\ud83d\ude00"', "\N{GRINNING FACE}"),  # a pair
        (b'[{"type": "text", "text": "A "}, {"text": "circle"}, {"type": "image"}, 5, {"text": 5}]', "A circle5"),
    ],
)
def test_any_text_can_be_written_to_a_file(content, text):
    response = parse_completion(completion(content=content))
    assert response.text.encode() == text.encode()


@pytest.mark.parametrize(
    "body", [DEEP, b'{"choices": ' + DEEP + b"}", b"\xff\xfe\x00", completion(content=b'"\xff\xfe"'), b"9" * 5000, b""]
)
def test_bytes_that_are_not_json_are_a_value_error(body):
    with pytest.raises(ValueError, match="not JSON"):
        parse_completion(body)
    assert parse_models(body) is None
    assert isinstance(parse_error_message(body), str)


@pytest.mark.parametrize(
    "body",
    [b'{"choices": null}', b'{"choices": {"0": 1}}', b'{"choices": [null]}', b'{"choices": [{}]}', b"[]", b"null"],
)
def test_json_without_a_completion_is_a_value_error(body):
    with pytest.raises(ValueError, match=r"no choices|no text"):
        parse_completion(body)


def test_a_list_of_models_with_entries_that_are_none_is_no_list():
    assert parse_models(b'{"data": [{"id": 1}, {"id": "m"}]}') == {"1": {"id": 1}, "m": {"id": "m"}}
    assert parse_models(b'{"data": ["m"]}') is None
    assert parse_models(b'{"data": 5}') is None


@given(
    st.recursive(
        st.none() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "message",
                        "content",
                        "logprobs",
                        "logprob",
                        "usage",
                        "completion_tokens",
                        "text",
                        "error",
                    ]
                ),
                inner,
            )
        ),
    )
)
def test_any_json_is_a_completion_or_a_value_error(tree):
    body = json.dumps(tree).encode()
    parse_models(body)
    parse_error_message(body).encode()
    try:
        response = parse_completion(body)
    except ValueError:
        return
    response.text.encode()
    assert response.mean_logprob is None or math.isfinite(response.mean_logprob)
