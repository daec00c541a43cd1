"""Expands short user prompts to captions in the style of the training set.

    (one,) = expand(["a red circle over the sea"], read_examples(RunFolder("RUN")), "embedded")
    one.text         "A flat clip shows a small plain red circle that moves left. ... over the sea. No text is shown."

A rewrite that fails the checks of `rejection_reason` is replaced by that of the `embedded` expander, and `note` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from recaption.captions.text import normalize_text, strip_boilerplate, tokenize_words
from recaption.errors import UsageError
from recaption.prompts.style import Example, Style, rejection_reason

EXPANDERS = "none | embedded | transformers:ID_OR_FOLDER | http://HOST/v1#MODEL"
"""What `load_expander` accepts, for error messages."""
SHORT_PROMPT_QUANTILE = 0.1
"""A prompt with at least as many words as this quantile of caption lengths is not expanded."""


@dataclass(frozen=True, slots=True)
class ExpandedPrompt:
    """A prompt and its expansion."""

    prompt: str
    """As typed."""
    text: str
    """The prompt for the video model."""
    expander: str
    """Name of the expander that wrote the text; `none` where the prompt is unchanged."""
    note: str = ""
    """Why the requested expander was not used; "" where it was."""


class Expander(Protocol):
    """Rewrites prompts as captions."""

    name: str

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        """A caption per prompt; "" where there is none."""
        ...


def expand(
    prompts: Sequence[str], examples: Sequence[Example], expander: str | Expander = "embedded"
) -> list[ExpandedPrompt]:
    """Expand each prompt to a caption in the style of `examples`; deterministic.

    Blank prompts, and prompts as long as captions, stay unchanged.

    Raises:
        UsageError: unknown expander, or its language model is not available.
    """
    rewriter = load_expander(expander) if isinstance(expander, str) else expander
    expanded = {index: ExpandedPrompt(prompt, prompt, "none") for index, prompt in enumerate(prompts)}
    if rewriter is None:
        return list(expanded.values())
    style = Style(tuple(example.caption for example in examples))
    if not examples:
        return [replace(one, note="no captions to take the style from") for one in expanded.values()]
    min_words = float(np.quantile(style.lengths, SHORT_PROMPT_QUANTILE))
    num_words = [len(tokenize_words(prompt)) for prompt in prompts]
    short = [index for index, count in enumerate(num_words) if 0 < count < min_words]
    rewrites = rewriter.rewrite([prompts[index] for index in short], examples, style)
    rejected: dict[int, str] = {}
    for index, rewrite in zip(short, rewrites, strict=True):
        text = _strip_quotes(strip_boilerplate(normalize_text(rewrite))[0])
        reason = rejection_reason(prompts[index], text, style)
        if reason:
            rejected[index] = f"the rewrite by {rewriter.name} was rejected: {reason}"
        else:
            expanded[index] = ExpandedPrompt(prompts[index], text, rewriter.name)
    if rejected and rewriter.name != "embedded":
        fallback = expand([prompts[index] for index in rejected], examples, "embedded")
        expanded |= {i: replace(one, note=rejected[i]) for i, one in zip(rejected, fallback, strict=True)}
    else:
        expanded |= {i: replace(expanded[i], note=note) for i, note in rejected.items()}
    return list(expanded.values())


def load_expander(spec: str) -> Expander | None:
    """Open an expander; None for `none`.

    Raises:
        UsageError: unknown expander, or its model is not available.
    """
    kind, _, rest = spec.partition(":")
    if spec == "none":
        return None
    if spec == "embedded":
        from recaption.prompts.from_captions import RetrievalExpander

        return RetrievalExpander()
    if kind in ("http", "https"):
        from recaption.prompts.language_model import EndpointExpander

        return EndpointExpander(spec)
    if kind == "transformers" and rest:
        from recaption.prompts.language_model import CausalExpander

        return CausalExpander(rest)
    raise UsageError(f"unknown expander {spec!r}; available: {EXPANDERS}")


def _strip_quotes(text: str) -> str:
    """Strip quotation marks around the whole text."""
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1].strip() if is_quoted else text
