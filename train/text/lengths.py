"""Token counts, token limit and widths of a text encoder, without loading its weights.

length = load("t5:google/t5-v1_1-xxl")
length.max_tokens, length.count_tokens(["a red circle moves left"])         (256, [6])
widths("t5:google/t5-v1_1-xxl")                                 (4096, 4096)
"""

from __future__ import annotations

from collections.abc import Sequence

from recaption.captioners.gates import TokenBudget
from recaption.captioners.interface import Captioner
from train.text.clip import clip_config
from train.text.t5 import MAX_TEXT_TOKENS, t5_config, t5_tokenizer
from train.text.towers import parse


def load(
    spec: str, *, max_tokens: int = 0, captioner: Captioner | None = None, captioner_spec: str = ""
) -> TokenBudget:
    """Token counter of a text encoder spec (see encoder.load); of several towers, the smallest limit applies.

    Args:
        max_tokens: overrides the encoder's own limit; 0 = its own.
        captioner: an already loaded captioner of spec `captioner_spec`.

    Raises:
        UsageError: no such text encoder.
        WeightsUnreachableError: its tokenizer cannot be loaded.
    """
    lengths = [
        _length(kind, name, max_tokens, captioner if name == captioner_spec else None) for kind, name in parse(spec)
    ]
    if len(lengths) == 1:
        return lengths[0]
    tightest = min(lengths, key=lambda length: length.max_tokens)

    def count(texts: Sequence[str]) -> list[int]:
        """Tokens for the tower with the smallest limit, raised above it if another tower's limit is exceeded."""
        counts = [length.count_tokens(texts) for length in lengths]
        of_tightest = counts[lengths.index(tightest)]
        excess = [max(n - length.max_tokens for n, length in zip(per_tower, lengths)) for per_tower in zip(*counts)]
        return [n if over <= 0 else tightest.max_tokens + over for n, over in zip(of_tightest, excess)]

    return TokenBudget(tightest.max_tokens, count)


def _length(kind: str, name: str, max_tokens: int, captioner: Captioner | None) -> TokenBudget:
    if kind == "captioner":
        from recaption.captioners.registry import load_captioner

        tower = (captioner or load_captioner(name)).text_tower
        return TokenBudget(max_tokens or tower.max_tokens, tower.count_tokens)
    if kind == "clip":
        from recaption.captioners.videococa.tokenizer import ClipTokenizer

        tokenizer = ClipTokenizer(int(clip_config(name)["text_cfg"].get("context_length", 77)))
        return TokenBudget(max_tokens or tokenizer.context_length, tokenizer.count)
    tokenizer = t5_tokenizer(name)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts))["input_ids"]]

    return TokenBudget(max_tokens or MAX_TEXT_TOKENS, count)


def widths(spec: str) -> tuple[int, int]:
    """(width of token states, width of the pooled vector); of several towers, the sums. Raises as `load`."""
    per_tower = [_widths(kind, name) for kind, name in parse(spec)]
    return sum(width for width, _ in per_tower), sum(pooled for _, pooled in per_tower)


def _widths(kind: str, name: str) -> tuple[int, int]:
    if kind == "captioner":
        from recaption.captioners.registry import load_captioner

        tower = load_captioner(name).text_tower
        return tower.width, tower.pooled_width
    if kind == "clip":
        config = clip_config(name)
        return int(config["text_cfg"].get("width", 512)), int(config["embed_dim"])
    config, _ = t5_config(name)
    return int(config.d_model), int(config.d_model)
