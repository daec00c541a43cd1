"""Prompt expansion by a language model, local or behind an endpoint, with few-shot examples from the caption set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recaption import hub
from recaption.captions.text import tokenize_words
from recaption.prompts.style import Example, Style

NUM_FEW_SHOT_EXAMPLES = 6
"""Few-shot examples in the prompt: the nearest ones, then others."""
TOKENS_PER_WORD = 2.0
"""Token limit of the output, per word of the longest caption; English has about 1.3 tokens per word."""
SYSTEM_PROMPT = (
    "You turn short video prompts into captions like those of a training set. Keep everything that the prompt says; add "
    "only details that fit. Write in the style and length of the examples. Answer with the caption alone, on one line."
)


def few_shot_examples(prompt: str, examples: Sequence[Example], style: Style) -> list[Example]:
    """Examples for the language model, the nearest last, next to the prompt."""
    nearest = style.nearest(prompt, NUM_FEW_SHOT_EXAMPLES)
    indices = nearest + [i for i in range(min(len(examples), NUM_FEW_SHOT_EXAMPLES)) if i not in nearest]
    return [examples[index] for index in reversed(indices[:NUM_FEW_SHOT_EXAMPLES])]


def messages_for(prompt: str, examples: Sequence[Example]) -> list[dict[str, str]]:
    """Chat messages: system prompt, examples as turns, prompt."""
    turns = [
        {"role": role, "content": text}
        for example in examples
        for role, text in (("user", example.prompt), ("assistant", example.caption))
    ]
    return [{"role": "system", "content": SYSTEM_PROMPT}, *turns, {"role": "user", "content": prompt}]


def plain_text_for(prompt: str, examples: Sequence[Example]) -> str:
    """Few-shot prompt for base models without chat template: they continue it; only the first line is used."""
    lines = [f"Prompt: {example.prompt}\nCaption: {example.caption}\n" for example in examples]
    return "\n".join([SYSTEM_PROMPT, "", *lines, f"Prompt: {prompt}\nCaption:"])


def _max_tokens(style: Style, prompt: str) -> int:
    return int(TOKENS_PER_WORD * max(int(style.lengths[-1]), len(tokenize_words(prompt)))) + 8


class CausalExpander:
    """Implements `expand.Expander` by any causal language model of transformers, with greedy decoding."""

    def __init__(self, model_id: str, *, device: str = "cpu") -> None:
        """
        Raises:
            WeightsUnreachableError: neither on disk nor downloadable; raised within seconds.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        what, hint = f"expander transformers:{model_id}", "give a folder as transformers:FOLDER, or --expander embedded"
        local_only = hub.is_on_disk(model_id, what=what, hint=hint)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(
                model_id, local_files_only=local_only, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(model_id, local_files_only=local_only, trust_remote_code=False)
        except Exception as error:  # damaged files make transformers, tokenizers and safetensors raise anything
            raise hub.loading_error(what, error, hint) from error
        self.name = f"transformers:{model_id}"
        self.model = model.to(device).eval()
        self.device = device

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        return [self._generate(prompt, few_shot_examples(prompt, examples, style), style) for prompt in prompts]

    def _generate(self, prompt: str, examples: Sequence[Example], style: Style) -> str:
        """The first line of the output; "" where it was truncated or the prompt does not fit the context."""
        ids = self._input_ids(messages_for(prompt, examples), plain_text_for(prompt, examples))
        max_tokens = _context_length(self.model.config) - ids.shape[1]
        if max_tokens < 1:
            return self._generate(prompt, examples[1:], style) if examples else ""
        text, has_ended = self._continue(ids, min(_max_tokens(style, prompt), max_tokens))
        line, _, rest = text.partition("\n")
        return line.strip() if has_ended or rest else ""

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
        """The answer to chat messages; "" where it was truncated or they do not fit the context."""
        ids = self._input_ids(messages, "\n\n".join(message["content"] for message in messages) + "\n\n")
        max_tokens = min(max_tokens, _context_length(self.model.config) - ids.shape[1])
        text, has_ended = self._continue(ids, max_tokens) if max_tokens > 0 else ("", False)
        return text if has_ended else ""

    def _continue(self, ids: Any, max_tokens: int) -> tuple[str, bool]:
        """Greedy output, and whether it ended by itself."""
        import torch

        end_id = self.tokenizer.eos_token_id
        with torch.inference_mode():
            output = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=end_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
            )
        tokens = output[0, ids.shape[1] :]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return text, len(tokens) < max_tokens or int(tokens[-1]) == end_id

    def _input_ids(self, messages: Sequence[dict[str, str]], plain_text: str) -> Any:
        """Of the messages; of the plain text where the model has no chat template."""
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
            encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            encoded = self.tokenizer(plain_text, return_tensors="pt")
        return encoded["input_ids"].to(self.device)


def _context_length(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20)


class EndpointExpander:
    """Implements `expand.Expander` by a model behind an OpenAI-compatible endpoint, at temperature 0."""

    def __init__(self, spec: str) -> None:
        """
        Raises:
            UsageError: not http://HOST/v1#MODEL, no server there, or no such model.
        """
        from recaption.chat_endpoint.endpoint import ChatEndpoint

        self.endpoint = ChatEndpoint.at(spec)
        self.endpoint.check()
        self.name = spec

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        """Raises UsageError where the endpoint goes down; a failed request gives an empty text."""
        from recaption.chat_endpoint.messages import ChatRequest

        if not prompts:
            return []
        requests = [
            ChatRequest(
                key=prompt,
                messages=messages_for(prompt, few_shot_examples(prompt, examples, style)),
                max_tokens=_max_tokens(style, prompt),
            )
            for prompt in prompts
        ]
        answers = self.endpoint.complete(requests)
        return [answer.text if answer.ended and not answer.error else "" for answer in answers]

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
        """The answer to chat messages; "" where the request failed or the answer was truncated.

        Raises:
            UsageError: the endpoint goes down.
        """
        from recaption.chat_endpoint.messages import ChatRequest

        request = ChatRequest(key=messages[-1]["content"], messages=messages, max_tokens=max_tokens)
        (answered,) = self.endpoint.complete([request])
        return answered.text if answered.ended and not answered.error else ""
