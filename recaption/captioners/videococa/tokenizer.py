"""From caption text to token ids and back, the way CoCa's text tower wants them: start, words, end, then padding.

vocabulary = train_vocabulary(captions, context_length=96)
vocabulary.encode(["a red circle"])       LongTensor (1, 96): start, ids, end, 0, 0, ...
vocabulary.decode([17, 4, 230])           "A red circle"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from recaption.captioners.generation.settings import SpecialTokens
from recaption.captions.text import clean, sentence_case

PAD, START, END = "<pad>", "<start_of_text>", "<end_of_text>"


class Vocabulary(Protocol):
    special: SpecialTokens
    context_length: int
    num_tokens: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Token ids (S, context_length); a text too long is cut and still ends with the end token."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Clean text of ids, special tokens left out."""
        ...

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each whole text, start and end included: more than `context_length` where `encode` would cut it."""
        ...


class ClipVocabulary:
    """CLIP's byte-pair vocabulary as open_clip ships it. Its pad id 0 is also the token "!" and ends a caption."""

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
        return clean(self._tokenizer.decode([token for token in tokens if token not in specials]))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(self._tokenizer.encode(text)) + 2 for text in texts]


class BytePairVocabulary:
    """A small byte-level vocabulary of lower-case text: any text encodes, frequent words are one token."""

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
        return sentence_case(clean(self._tokenizer.decode(list(tokens), skip_special_tokens=True)))

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(one.ids) + 2 for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    @property
    def tokenizer_json(self) -> str:
        """What `tokenizer.json` holds; any reader of the `tokenizers` format opens it."""
        return self._tokenizer.to_str(pretty=False)

    @property
    def merges(self) -> list[str]:
        """The learned merges in order, `left right`: with the fixed byte alphabet they are the whole vocabulary."""
        merges = json.loads(self.tokenizer_json)["model"]["merges"]
        return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def train_vocabulary(texts: Iterable[str], *, num_tokens: int, context_length: int) -> BytePairVocabulary:
    """Learn a byte-pair vocabulary of at most `num_tokens` (256 bytes and 3 special tokens included)."""
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
    learned = BytePairVocabulary(tokenizer.to_str(), context_length)
    return vocabulary_from_merges(learned.merges, context_length=context_length)


def vocabulary_from_merges(merges: Sequence[str], *, context_length: int) -> BytePairVocabulary:
    """The vocabulary whose `merges` these are. Ids: pad 0, start 1, end 2, the 256 bytes, then one per merge."""
    return BytePairVocabulary(_empty_tokenizer(merges).to_str(), context_length)


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
    # a space before every word, also the first: "circle" is one token wherever it stands
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
