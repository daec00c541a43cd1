"""Prompts expanded by a language model, on this machine or behind an endpoint, with captions of the set as examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recaption import hub
from recaption.captions.text import words_in
from recaption.prompts.style import Example, Style

NUM_SHOTS = 6
"""Examples that a model is shown: those nearest to the prompt, then others."""


TOKENS_PER_WORD = 2.0
"""Room for the answer, against the longest caption; English has about 1.3."""


TASK = (
    "You turn short video prompts into captions like those of a training set. Keep everything that the prompt says; add "
    "only details that fit. Write in the style and length of the examples. Answer with the caption alone, on one line."
)


def shots_for(prompt: str, examples: Sequence[Example], style: Style) -> list[Example]:
    """Examples to show, the nearest last, where a model looks most."""
    near = style.nearest(prompt, NUM_SHOTS)
    rows = near + [row for row in range(min(len(examples), NUM_SHOTS)) if row not in near]
    return [examples[row] for row in reversed(rows[:NUM_SHOTS])]


def messages_for(prompt: str, shots: Sequence[Example]) -> list[dict[str, str]]:
    turns = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in (("user", shot.prompt), ("assistant", shot.caption))
    ]
    return [{"role": "system", "content": TASK}, *turns, {"role": "user", "content": prompt}]


def plain_text_for(prompt: str, shots: Sequence[Example]) -> str:
    """For models that know no turns: they go on with the list, and stop at its next line."""
    lines = [f"Prompt: {shot.prompt}\nCaption: {shot.caption}\n" for shot in shots]
    return "\n".join([TASK, "", *lines, f"Prompt: {prompt}\nCaption:"])


def _max_tokens(style: Style, prompt: str) -> int:
    return int(TOKENS_PER_WORD * max(int(style.lengths[-1]), len(words_in(prompt)))) + 8


class CausalExpander:
    """Any causal language model of the transformers package, greedy: the same prompt gives the same text."""

    def __init__(self, model_id: str, *, device: str = "cpu") -> None:
        """
        Raises:
            WeightsUnreachableError: neither on disk nor to be downloaded; within seconds.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        what, give = f"expander transformers:{model_id}", "give a folder as transformers:FOLDER, or --expander embedded"
        local_only = hub.is_on_disk(model_id, what=what, give=give)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(model_id, local_files_only=local_only)
            model = AutoModelForCausalLM.from_pretrained(model_id, local_files_only=local_only)
        except (OSError, ValueError) as error:
            raise hub.unreachable(what, error, give) from error
        self.name = f"transformers:{model_id}"
        self.model = model.to(device).eval()
        self.device = device

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        return [self._answer(prompt, shots_for(prompt, examples, style), style) for prompt in prompts]

    def _answer(self, prompt: str, shots: Sequence[Example], style: Style) -> str:
        """The first line of the answer; "" where it does not end or does not fit the model."""
        import torch

        ids = self._ids(prompt, shots)
        room = _context_of(self.model.config) - ids.shape[1]
        if room < 1:
            return self._answer(prompt, shots[1:], style) if shots else ""
        limit = min(_max_tokens(style, prompt), room)
        end = self.tokenizer.eos_token_id
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                num_beams=1,
                pad_token_id=end if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
            )
        said = out[0, ids.shape[1] :]
        text = self.tokenizer.decode(said, skip_special_tokens=True).strip()
        line, _, rest = text.partition("\n")
        has_ended = len(said) < limit or int(said[-1]) == end or bool(rest)
        return line.strip() if has_ended else ""

    def _ids(self, prompt: str, shots: Sequence[Example]) -> Any:
        if self.tokenizer.chat_template:
            messages = messages_for(prompt, shots)
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            encoded = self.tokenizer(plain_text_for(prompt, shots), return_tensors="pt")
        return encoded["input_ids"].to(self.device)


def _context_of(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20)


class EndpointExpander:
    """A model behind an OpenAI-compatible endpoint, at temperature 0."""

    def __init__(self, spec: str) -> None:
        """
        Raises:
            UsageError: not http://HOST/v1#MODEL, nobody there, or no such model.
        """
        from recaption.chat_endpoint import ChatEndpoint

        self.endpoint = ChatEndpoint.at(spec)
        self.endpoint.check()
        self.name = spec

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        """Raises UsageError where the endpoint goes down; an answer that is none is an empty text."""
        from recaption.chat_endpoint import Question

        if not prompts:
            return []
        questions = [
            Question(
                key=prompt,
                messages=messages_for(prompt, shots_for(prompt, examples, style)),
                max_tokens=_max_tokens(style, prompt),
            )
            for prompt in prompts
        ]
        answers = self.endpoint.ask(questions)
        return [answer.text if answer.ended and not answer.fault else "" for answer in answers]
