"""Small T5 and CLIP text encoders with random weights, as folders for the specs `t5:` and `clip:`."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = ("red", "blue", "circle")


def word_tokenizer(words: tuple[str, ...] = WORDS):
    """Word-level tokenizer with T5's end token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def write_t5(folder: Path, kind: str = "T5", *, seed: int = 0, words: tuple[str, ...] = WORDS) -> str:
    """Write an encoder of width 16 and return its SPEC.

    Args:
        kind: T5, MT5 or UMT5.
    """
    import torch
    import transformers

    word_tokenizer(words).save_pretrained(folder)
    torch.manual_seed(seed)
    config_class = getattr(transformers, f"{kind}Config")
    config = config_class(vocab_size=3 + len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    getattr(transformers, f"{kind}EncoderModel")(config).save_pretrained(folder)
    return f"t5:{folder}"


def write_clip(folder: Path, *, seed: int = 0, custom_text: bool = False, context_length: int = 24) -> str:
    """Write a CLIP in open_clip's format, text width 8 and embedding width 12, and return its SPEC.

    Args:
        custom_text: open_clip's newer layout, with other names of the text weights.
    """
    import torch
    from open_clip import CLIP, CustomTextCLIP
    from safetensors.torch import save_file

    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32}
    text = {"context_length": context_length, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, "custom_text": custom_text}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(seed)
    model = (CustomTextCLIP if custom_text else CLIP)(embed_dim=12, vision_cfg=vision, text_cfg=text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"clip:{folder}"
