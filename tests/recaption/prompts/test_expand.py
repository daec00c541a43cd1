import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from recaption.captions.text import tokenize_words
from recaption.errors import UsageError, WeightsUnreachableError
from recaption.prompts.examples import read_examples
from recaption.prompts.expand import ExpandedPrompt, expand
from recaption.prompts.language_model import few_shot_examples, messages_for, plain_text_for
from recaption.prompts.style import Example, Style, content_words, find_contradiction, rejection_reason
from recaption.records import Caption, to_table
from recaption.run_folder import RunFolder
from recaption.scenes.captions import (
    ATTRIBUTE_VALUES,
    SceneAttributes,
    attribute_in,
    fields_in,
    long_caption,
    short_caption,
)


def looks(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        SceneAttributes(**{key: str(rng.choice(values)) for key, values in ATTRIBUTE_VALUES.items()})
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(1)
    return [Example(short_caption(look, rng), long_caption(look, rng)) for look in looks(60)]


FOOTAGE = [
    Example(
        "a dog runs on the beach",
        "A brown dog runs on the beach. The dog has a red collar. The sky is cloudy. Waves roll in.",
    ),
    Example(
        "a man at a desk",
        "A man in a black shirt sits at a desk. He types on a keyboard. The room is lit by a lamp.",
    ),
    Example(
        "a car at night",
        "A red car drives down a wet street at night. Neon signs are reflected on the road. The camera is fixed.",
    ),
    Example(
        "a boat on a lake",
        "A boat lies on a calm lake. Mountains rise in the background. It is a sunny day, and birds pass.",
    ),
]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle over the sea",
        "blue star grows",
        "green crescent moves left at night",
        "a large white ring on the ice as the camera pans left",
        'a pink heart on the road under the word "TAXI"',
        "sepia video of a cross",
    ],
)
def test_scene_prompt_becomes_a_caption_with_the_same_attributes(scenes, prompt):
    (one,) = expand([prompt], scenes)
    assert one.expander == "embedded"
    assert len(tokenize_words(one.text)) >= 20
    for key in ATTRIBUTE_VALUES:
        if requested := attribute_in(prompt, key):
            assert attribute_in(one.text, key) == requested, key
    assert all(attribute_in(one.text, key) for key in ("main_object", "action", "background", "weather", "camera"))
    assert expand([prompt], scenes) == [one]  # deterministic


def test_captions_and_blank_prompts_stay_unchanged(scenes):
    unchanged = [scenes[0].caption, "", "  "]
    assert expand(unchanged, scenes) == [ExpandedPrompt(text, text, "none") for text in unchanged]
    assert expand(["a red circle"], scenes, "none") == [ExpandedPrompt("a red circle", "a red circle", "none")]
    (one,) = expand(["a red circle"], [])
    assert (one.text, one.note) == ("a red circle", "no captions to take the style from")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("dog on the beach", "A dog on the beach. The dog has a red collar. The sky is cloudy. Waves roll in."),
        (
            "a cat on the beach",
            "A cat on the beach. The sky is cloudy. Waves roll in.",
        ),  # no collar: the prompt has no dog
        ("a sunny beach", "A sunny beach. Waves roll in."),
        ("a desk at night", "A desk at night. The room is lit by a lamp."),
        ("Two cars at night", "Two cars at night. Neon signs are reflected on the road. The camera is fixed."),
        ("quantum foam", "A quantum foam."),
    ],
)
def test_other_prompts_keep_their_words_and_borrow_fitting_sentences(prompt, text):
    assert expand([prompt], FOOTAGE)[0].text == text


def test_words_outside_the_scene_vocabulary_are_kept(scenes):
    (one,) = expand(["a dog runs over the grass"], scenes)
    assert one.text.startswith("A dog runs over the grass.")
    assert "circle" not in one.text


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("a red ball", "A blue ball rolls.", ("red", "blue")),
        ("a red ball", "A red ball on green grass.", None),
        ("a street at night", "A street on a sunny day.", ("night", "day")),
        ("a car turns left", "A car turns right.", ("left", "right")),
        ("a ball", "A red ball.", None),
    ],
)
def test_contradictions(prompt, text, expected):
    assert find_contradiction(prompt, text) == expected


class FixedExpander:
    name = "model"

    def __init__(self, *texts):
        self.texts = list(texts)

    def rewrite(self, prompts, examples, style):
        return [self.texts.pop(0) for _ in prompts]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("a dog a dog a dog a dog a dog a dog", "looping"),
        ("I'm sorry, but I cannot describe this.", "refusal"),
        ("A dog sleeps on the beach. " + " ".join(f"word{i}" for i in range(60)), "too long"),
        ("A cat sits on a chair near a big window in the room.", "it lost"),
        ("A dog sleeps on the sandy beach at night under the stars.", "it says night where the prompt says day"),
    ],
)
def test_rejected_rewrites_fall_back_to_embedded_with_a_note(text, reason):
    prompt = "a dog on the beach by day"
    (one,) = expand([prompt], FOOTAGE, FixedExpander(text))
    assert one.expander == "embedded"
    assert one.text == expand([prompt], FOOTAGE)[0].text
    assert one.note.startswith("the rewrite by model was rejected: ")
    assert reason in one.note


def test_good_rewrites_are_used_without_boilerplate():
    first, second = expand(
        ["a dog", "a boat"],
        FOOTAGE,
        FixedExpander('Sure! Here is a caption: "A dog barks at the sea."', "A boat drifts by."),
    )
    assert (first.text, first.expander, first.note) == ("A dog barks at the sea.", "model", "")
    assert second.text == "A boat drifts by."


def test_few_shot_examples_end_with_the_nearest():
    style = Style(tuple(example.caption for example in FOOTAGE))
    selected = few_shot_examples("a car on a street", FOOTAGE, style)
    assert selected[-1] is FOOTAGE[2]
    assert len(selected) == len(FOOTAGE)
    assert messages_for("a car", selected)[-1] == {"role": "user", "content": "a car"}
    assert plain_text_for("a car", selected).endswith("Prompt: a car\nCaption:")
    assert content_words("The dog is on the beach") == {"dog", "beach"}
    assert rejection_reason("a dog", "A dog sits on a chair.", style) == ""


@pytest.mark.parametrize("spec", ["gpt", "transformers:", ""])
def test_unknown_expanders_are_refused(spec):
    with pytest.raises(UsageError, match="unknown expander"):
        expand(["a dog"], FOOTAGE, spec)


# --- a language model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A tiny GPT-2 with random weights and the real tokenizer class, its vocabulary trained on the captions."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("model")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [example.caption for example in FOOTAGE], vocab_size=400, special_tokens=["<|endoftext|>"]
    )
    trained.save(str(folder / "tokenizer.json"))
    tokenizer = GPT2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=2, n_head=2, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_nonsense_of_a_language_model_is_rejected(language_model):
    found = expand(["a dog on the beach", "a boat"], FOOTAGE, f"transformers:{language_model}")
    assert [one.text for one in found] == [one.text for one in expand(["a dog on the beach", "a boat"], FOOTAGE)]
    assert all("was rejected" in one.note for one in found)


CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("chat", [False, True])
def test_first_line_of_the_output_is_the_caption(language_model, chat, monkeypatch):
    import torch

    from recaption.prompts.language_model import CausalExpander

    expander = CausalExpander(str(language_model))
    if chat:
        expander.tokenizer.chat_template = CHAT_TEMPLATE
    prompts = []

    def generate(ids, **settings):
        prompts.append(expander.tokenizer.decode(ids[0]))
        output = expander.tokenizer(" A dog barks at the beach.\nPrompt: another")["input_ids"]
        return torch.cat([ids, torch.tensor([output])], dim=1)

    monkeypatch.setattr(expander.model, "generate", generate)
    (one,) = expand(["a dog on the beach"], FOOTAGE, expander)
    assert (one.text, one.note) == ("A dog barks at the beach.", "")
    assert FOOTAGE[0].caption in prompts[0]
    assert ("<assistant>" in prompts[0]) == chat


def test_missing_language_model_gives_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnreachableError, match="expander transformers:"):
        expand(["a dog"], FOOTAGE, f"transformers:{tmp_path}")


# --- an endpoint ------------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint():
    """A local chat endpoint that responds with `responses` and records its requests."""

    class Handler(BaseHTTPRequestHandler):
        responses: ClassVar[list[str]] = []
        requests: ClassVar[list[dict]] = []

        def _send(self, body):
            payload = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def do_GET(self):
            self._send({"data": [{"id": "writer"}]})

        def do_POST(self):
            self.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            text = self.responses[len(self.requests) - 1]
            self._send(
                {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]} if text else {"choices": []}
            )

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_endpoint_request_contains_few_shot_examples(endpoint):
    address, handler = endpoint
    handler.responses, handler.requests = ["A dog barks at the grey sea."], []
    (one,) = expand(["a dog"], FOOTAGE, f"{address}#writer")
    assert (one.text, one.expander, one.note) == ("A dog barks at the grey sea.", f"{address}#writer", "")
    contents = [message["content"] for message in handler.requests[0]["messages"]]
    assert FOOTAGE[0].caption in contents
    assert contents[-1] == "a dog"
    assert handler.requests[0]["temperature"] == 0


def test_invalid_endpoint_response_falls_back_to_embedded(endpoint, monkeypatch):
    from recaption.chat_endpoint import endpoint as chat

    monkeypatch.setattr(chat.EndpointSettings, "__init__", _few_retries(chat))
    address, handler = endpoint
    handler.responses, handler.requests = [""] * 20, []
    (one,) = expand(["a dog on the beach"], FOOTAGE, f"{address}#writer")
    assert one.text == expand(["a dog on the beach"], FOOTAGE)[0].text
    assert one.note == f"the rewrite by {address}#writer was rejected: empty"


def _few_retries(module):
    real = module.EndpointSettings.__init__

    def init(self, **settings):
        real(self, **({"max_tries": 2, "backoff_seconds": 0.0} | settings))

    return init


def test_unreachable_endpoint_gives_one_clear_error():
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9"):
        expand(["a dog"], FOOTAGE, "http://127.0.0.1:9/v1#writer")


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_are_good_captions_of_whole_clips_with_short_captions_as_prompts(tmp_path):
    run = RunFolder(str(tmp_path))
    rows = [
        Caption(clip_id="a", text="A red dog runs over the lawn, and birds fly."),
        Caption(clip_id="a", text="a red dog", kind="short"),
        Caption(clip_id="a", text="A dog at the gate.", window=1),
        Caption(clip_id="b", text="A very small blue boat lies on the lake near a wide green wood."),
        Caption(clip_id="c", text="a a a a a", reason="bad_caption", fault="looping"),
        Caption(clip_id="d", text="my boat", source="original", kind=""),
    ]
    run.write_table("captions/main/part-00000.parquet", to_table(rows, Caption))
    examples = read_examples(run)
    assert sorted(examples, key=lambda example: example.caption) == [
        Example("a red dog", rows[0].text),
        Example("a very small blue boat lies on the", rows[3].text),
    ]
    assert read_examples(run, limit=1) == examples[:1]
    assert read_examples(RunFolder(str(tmp_path / "nowhere"))) == []


def test_fields_can_be_parsed_from_expanded_scenes(scenes):
    (one,) = expand(["a yellow diamond bounces"], scenes)
    fields = fields_in(one.text)
    assert (fields.main_object, fields.colour, fields.action) == ("diamond", "yellow", "bounces")
