"""Tokenizers of VideoCoCa: caption text to padded token ids (start, text, end, padding) and back.

tokenizer = train_tokenizer(captions, num_tokens=2600, context_length=96)
tokenizer.encode(["a red circle"])       # LongTensor (1, 96): start, ids, end, 0, 0, ...
tokenizer.decode([17, 4, 230])           # "A red circle"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from recaption.captioners.generation.settings import SpecialTokens
from recaption.captions.text import normalize_text, sentence_case

PAD, START, END = "<pad>", "<start_of_text>", "<end_of_text>"


class CaptionTokenizer(Protocol):
    """Text to padded token ids and back."""

    special: SpecialTokens
    context_length: int
    num_tokens: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token ids (S, context_length); longer texts are truncated and still end with the end token."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Cleaned text without special tokens."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens per whole text, start and end included; `encode` truncates what exceeds `context_length`."""
        ...


class ClipTokenizer:
    """CLIP's BPE tokenizer from open_clip. Its pad id 0 is also the token "!" and ends a caption."""

    def __init__(self, context_length: int) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._tokenizer = SimpleTokenizer(context_length=context_length)
        self.context_length = context_length
        self.num_tokens = int(self._tokenizer.vocab_size)
        self.special = SpecialTokens(start=self._tokenizer.sot_token_id, end=self._tokenizer.eot_token_id, pad=0)

    def encode(self, texts: Sequence[str]) -> Tensor:
        return self._tokenizer(list(texts))

    def decode(self, tokens: Sequence[int]) -> str:
        specials = (self.special.start, self.special.end, self.special.pad)
        return normalize_text(self._tokenizer.decode([token for token in tokens if token not in specials]))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(self._tokenizer.encode(text)) + 2 for text in texts]


class BPETokenizer:
    """Small byte-level BPE tokenizer for lower-case text: any text encodes, frequent words are one token."""

    def __init__(self, tokenizer_json: str, context_length: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self.context_length = context_length
        ids = self._tokenizer.get_vocab()
        if not {START, END, PAD} <= ids.keys():
            raise ValueError(f"tokenizer.json lacks one of {START}, {END}, {PAD}")
        self.special = SpecialTokens(start=ids[START], end=ids[END], pad=ids[PAD])
        self.num_tokens = self._tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Tensor:
        ids_SM = torch.full((len(texts), self.context_length), self.special.pad, dtype=torch.long)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            ids = [self.special.start, *encoding.ids[: self.context_length - 2], self.special.end]
            ids_SM[row, : len(ids)] = torch.tensor(ids)
        return ids_SM

    def decode(self, tokens: Sequence[int]) -> str:
        return sentence_case(normalize_text(self._tokenizer.decode(list(tokens), skip_special_tokens=True)))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [
            len(encoding.ids) + 2 for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    @property
    def tokenizer_json(self) -> str:
        """Content of `tokenizer.json`, in the format of the `tokenizers` package."""
        return self._tokenizer.to_str(pretty=False)

    @property
    def merges(self) -> list[str]:
        """Learned BPE merges in order, as `left right`; with the fixed byte alphabet they define the whole vocabulary."""
        merges = json.loads(self.tokenizer_json)["model"]["merges"]
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def train_tokenizer(texts: Iterable[str], *, num_tokens: int, context_length: int) -> BPETokenizer:
    """Train a BPE tokenizer with at most `num_tokens` tokens (256 bytes and 3 special tokens included)."""
    from tokenizers import trainers

    tokenizer = _empty_tokenizer([])
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        initial_alphabet=_byte_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = BPETokenizer(tokenizer.to_str(), context_length)
    return tokenizer_from_merges(trained.merges, context_length=context_length)


def tokenizer_from_merges(merges: Sequence[str], *, context_length: int) -> BPETokenizer:
    """Rebuild a tokenizer from its `merges`. Ids: pad 0, start 1, end 2, the 256 bytes, then one per merge."""
    return BPETokenizer(_empty_tokenizer(merges).to_str(), context_length)


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _empty_tokenizer(merges: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokens = [PAD, START, END, *_byte_alphabet(), *dict.fromkeys(left + right for left, right in pairs)]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs))
    tokenizer.add_special_tokens([PAD, START, END])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # a space before every word, also the first: "circle" is the same token at any position
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
