"""Short user prompts, rewritten in the style of the training captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from recaption.captions.text import clean, strip_boilerplate, words_in
from recaption.errors import UsageError
from recaption.prompts.style import Example, Style, why_unusable

EXPANDERS = "none | embedded | transformers:ID_OR_FOLDER | http://HOST/v1#MODEL"
"""What `load_expander` accepts, for messages."""


SHORT_SHARE = 0.1
"""A prompt longer than this share of the captions is one already."""


@dataclass(frozen=True, slots=True)
class Expanded:
    prompt: str
    """As typed."""
    text: str
    """What goes to the model."""
    expander: str
    """What wrote the text: `none` where the prompt was left as it is."""
    note: str = ""
    """Why it is not what was asked for."""


class Expander(Protocol):
    name: str

    def rewrite(self, prompts: Sequence[str], examples: Sequence[Example], style: Style) -> list[str]:
        """A longer text per prompt; "" where there is none."""
        ...


def expand(
    prompts: Sequence[str], examples: Sequence[Example], expander: str | Expander = "embedded"
) -> list[Expanded]:
    """Each prompt as a caption of the set that `examples` are from.

    Blank prompts, and prompts as long as captions are, stay as they are. The same arguments give the same texts.

    Raises:
        UsageError: no such expander, or a language model that cannot be had.
    """
    writer = load_expander(expander) if isinstance(expander, str) else expander
    found = {row: Expanded(prompt, prompt, "none") for row, prompt in enumerate(prompts)}
    if writer is None:
        return list(found.values())
    style = Style(tuple(example.caption for example in examples))
    if not examples:
        return [replace(one, note="no captions to take the style from") for one in found.values()]
    enough = float(np.quantile(style.lengths, SHORT_SHARE))
    wanted = [row for row, prompt in enumerate(prompts) if words_in(prompt) and len(words_in(prompt)) < enough]
    answers = writer.rewrite([prompts[row] for row in wanted], examples, style)
    refused: dict[int, str] = {}
    for row, answer in zip(wanted, answers, strict=True):
        text = _unquoted(strip_boilerplate(clean(answer))[0])
        why = why_unusable(prompts[row], text, style)
        if why:
            refused[row] = f"the answer of {writer.name} was not used: {why}"
        else:
            found[row] = Expanded(prompts[row], text, writer.name)
    if refused and writer.name != "embedded":
        second = expand([prompts[row] for row in refused], examples, "embedded")
        found |= {row: replace(one, note=refused[row]) for row, one in zip(refused, second, strict=True)}
    else:
        found |= {row: replace(found[row], note=note) for row, note in refused.items()}
    return list(found.values())


def load_expander(spec: str) -> Expander | None:
    """Open an expander; None for `none`.

    Raises:
        UsageError: no such expander, or its model cannot be had.
    """
    kind, _, rest = spec.partition(":")
    if spec == "none":
        return None
    if spec == "embedded":
        from recaption.prompts.from_captions import Embedded

        return Embedded()
    if kind in ("http", "https"):
        from recaption.prompts.language_model import EndpointExpander

        return EndpointExpander(spec)
    if kind == "transformers" and rest:
        from recaption.prompts.language_model import CausalExpander

        return CausalExpander(rest)
    raise UsageError(f"there is no expander {spec!r}; available: {EXPANDERS}")


def _unquoted(text: str) -> str:
    """Without the marks that a model has put around all of its answer."""
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2
    return text[1:-1].strip() if is_quoted else text
