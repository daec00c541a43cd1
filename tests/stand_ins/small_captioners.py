"""Tiny captioners of every backend, a few kB each: real model classes and processors, random weights, no download."""

from __future__ import annotations

from pathlib import Path

TEXTS = [
    "A red circle moves left over the sea.",
    "A blue star stays still on the grass near some trees.",
    "A green square jumps up and down in front of a hill, and the camera is fixed.",
] * 4
CHAT = (
    "{{% for m in messages %}}user: {{% for c in m['content'] %}}{{% if c['type'] == 'text' %}}{{{{ c['text'] }}}}"
    "{{% elif c['type'] == 'image' %}}{image}{{% else %}}{video}{{% endif %}}{{% endfor %}}\n{{% endfor %}}assistant:"
)


def small_tokenizer(special_tokens: dict[str, str], added_tokens: tuple[str, ...] = ()):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*dict.fromkeys([*special_tokens.values(), *added_tokens])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=list(added_tokens), **special_tokens
    )


def _save(folder: Path, model, processor) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def small_git(folder: Path) -> Path:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM, GitProcessor

    tokenizer = small_tokenizer(
        {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    )
    config = GitConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        num_image_with_embedding=4,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return _save(folder, GitForCausalLM(config), GitProcessor(image_processor, tokenizer))


def _text_config(tokenizer, **more):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
        **more,
    }


CHAT_SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def small_qwen2_5_vl(folder: Path) -> Path:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = small_tokenizer(CHAT_SPECIALS, tokens)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(tokens))
    config = Qwen2_5_VLConfig(
        text_config=_text_config(
            tokenizer, rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
        ),
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 56}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size),
        tokenizer,
        Qwen2VLVideoProcessor(size=size),
        chat_template=CHAT.format(
            image="<|vision_start|><|image_pad|><|vision_end|>", video="<|vision_start|><|video_pad|><|vision_end|>"
        ),
    )
    return _save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def small_smolvlm(folder: Path) -> Path:
    from transformers import (
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    tokens = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>")
    tokenizer = small_tokenizer(CHAT_SPECIALS, tokens)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={"model_type": "llama", **_text_config(tokenizer)},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(do_image_splitting=False, **sizes),
        tokenizer,
        SmolVLMVideoProcessor(do_image_splitting=False, **sizes),
        image_seq_len=4,
        chat_template=CHAT.format(image="<image>", video="<video>"),
    )
    return _save(folder, SmolVLMForConditionalGeneration(config), processor)


def small_llava_onevision(folder: Path) -> Path:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = small_tokenizer(CHAT_SPECIALS, ("<image>", "<video>"))
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **_text_config(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32]],
    )
    size = {"height": 32, "width": 32}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[32, 32]]),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT.format(image="<image>", video="<video>"),
    )
    return _save(folder, LlavaOnevisionForConditionalGeneration(config), processor)


def small_internvl(folder: Path) -> Path:
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokens = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    tokenizer = small_tokenizer(CHAT_SPECIALS, tokens)
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=dict(zip(names, tokens)), **CHAT_SPECIALS
    )
    config = InternVLConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        text_config={"model_type": "qwen2", **_text_config(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    size = {"height": 32, "width": 32}
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHAT.format(image="<IMG_CONTEXT>", video="<video>"),
    )
    return _save(folder, InternVLForConditionalGeneration(config), processor)


def small_qwen3_vl(folder: Path) -> Path:
    from transformers import (
        Qwen2VLImageProcessor,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = small_tokenizer(CHAT_SPECIALS, tokens)
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(tokens))
    config = Qwen3VLConfig(
        text_config=_text_config(
            tokenizer,
            head_dim=8,
            rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 64 * 4}
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(size=size, patch_size=16),
        tokenizer,
        Qwen3VLVideoProcessor(size=size),
        chat_template=CHAT.format(
            image="<|vision_start|><|image_pad|><|vision_end|>", video="<|vision_start|><|video_pad|><|vision_end|>"
        ),
    )
    return _save(folder, Qwen3VLForConditionalGeneration(config), processor)


BERT_SPECIALS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}


def small_frozenbilm_config(vocab_size: int) -> dict:
    language = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "format": "frozenbilm-1",
        "num_tokens": vocab_size,
        "num_frames": 4,
        "lengths": [8, 10],
        "adapter_divisor": 1,
        "language": {
            **language,
            "vocab_size": vocab_size,
            "max_position_embeddings": 64,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "initializer_range": 0.3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "vision": {**vision, "image_size": 32, "patch_size": 8, "projection_dim": 32},
    }


def small_mplug2_config(vocab_size: int) -> dict:
    return {
        "format": "mplug2-1",
        "num_tokens": vocab_size,
        "num_frames": 4,
        "num_universal_layers": 2,
        "num_queries": 5,
        "vision": {"frame_px": 32, "patch_px": 8, "width": 32, "num_layers": 2, "num_heads": 2},
        "text": {
            "vocab_size": vocab_size,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    }


def small_bert_tokenizer():
    from recaption.captioners.backends.checkpoint_folder import Tokenizer

    return Tokenizer(small_tokenizer(BERT_SPECIALS).backend_tokenizer)


def small_frozenbilm(folder: Path) -> Path:
    from recaption.captioners.backends.checkpoint_folder import write_checkpoint_folder
    from recaption.captioners.backends.frozenbilm_model import FrozenBiLM

    tokenizer = small_bert_tokenizer()
    config = small_frozenbilm_config(tokenizer.vocab_size)
    return write_checkpoint_folder(folder, config=config, tokenizer=tokenizer, model=FrozenBiLM(config))


def small_mplug2(folder: Path) -> Path:
    from recaption.captioners.backends.checkpoint_folder import write_checkpoint_folder
    from recaption.captioners.backends.mplug2_model import MPlug2

    tokenizer = small_bert_tokenizer()
    config = small_mplug2_config(tokenizer.vocab_size)
    return write_checkpoint_folder(folder, config=config, tokenizer=tokenizer, model=MPlug2(config))


BUILDERS = {
    "frozenbilm": small_frozenbilm,
    "mplug2": small_mplug2,
    "git": small_git,
    "qwen2_5_vl": small_qwen2_5_vl,
    "qwen3_vl": small_qwen3_vl,
    "smolvlm": small_smolvlm,
    "llava_onevision": small_llava_onevision,
    "internvl": small_internvl,
}
VLMS = ("qwen2_5_vl", "qwen3_vl", "smolvlm", "llava_onevision", "internvl")
