"""Export a captioner checkpoint to a folder: fp16 weights, tokenizer and a model card with measured metrics.

    export("RUN/train/captioner", "recaption/captioners/tiny", num_scenes=500)

The card's metrics are measured on the exported half-precision weights and held-out scenes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recaption.captioners.registry import load_captioner
from recaption.captioners.videococa.checkpoint import read_captioner_folder, save_captioner
from recaption.scenes.splits import FIRST_HELD_OUT_SEED, HELD_OUT_PAIRS
from train.captioner.evaluation import FIELDS, evaluate_on_scenes

FIELD_NAMES = {"main_object": "main object (9 shapes)", "colour": "colour (9)", "action": "action (10)"} | {
    "surroundings": "surroundings (8)",
    "background": "background (8)",
    "text": "text (8 words or none)",
    "style": "style (5)",
}


def export(checkpoint: str | Path, folder: str | Path, *, num_scenes: int = 500) -> Path:
    """Export the EMA weights of a training checkpoint as a captioner folder: fp16, tokenizer.json, README.md.

    Args:
        num_scenes: held-out scenes for the card, and as many with shape-colour pairs never trained on; 0 = no card.
    """
    saved = read_captioner_folder(checkpoint)
    folder = save_captioner(folder, saved.state, saved.tokenizer, saved.config)
    if num_scenes:
        captioner = load_captioner(str(folder))
        metrics = evaluate_on_scenes(captioner, num_scenes)
        unseen_metrics = evaluate_on_scenes(
            captioner, num_scenes, FIRST_HELD_OUT_SEED + num_scenes, only_unseen_pairs=True
        )
        num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
        card = model_card(saved.config, metrics, unseen_metrics, num_scenes, num_bytes, captioner.weights_hash)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def model_card(
    config: dict[str, Any],
    metrics: dict[str, float],
    unseen_metrics: dict[str, float],
    num_scenes: int,
    num_bytes: int,
    weights_hash: str,
) -> str:
    coca, framing = config["coca"], config["framing"]
    vision, text = coca["vision_cfg"], coca["text_cfg"]
    rows = "\n".join(
        f"| {FIELD_NAMES[field]} | {metrics[f'accuracy/{field}']:.1%} | {unseen_metrics[f'accuracy/{field}']:.1%} |"
        for field in FIELDS
    )
    totals = "\n".join(
        f"| {name} | {metrics[key]:.1%} | {unseen_metrics[key]:.1%} |"
        for name, key in (
            ("mean over fields", "accuracy/mean"),
            ("all seven fields right", "accuracy/all_fields"),
            (f"right caption among {num_scenes} (contrastive)", "retrieval/text"),
            ("passes the caption gates", "ended"),
        )
    )
    pairs = ", ".join(f"{colour} {shape}" for shape, colour in HELD_OUT_PAIRS)
    return f"""# The tiny captioner

A small VideoCoCa trained from scratch by `recaption train captioner`, on scenes that `recaption.scenes` renders. It
describes such scenes in one long caption (25 to 60 words: object, action, surroundings, background, weather, text,
style, camera) and is the text encoder of the quickstart's diffusion transformer. It exists so that the pipeline runs
without a download. **It knows nothing but rendered scenes**: on real footage it names shapes that are not there.

- Weights `{weights_hash}`, {num_bytes / 1e6:.1f} MB in all (fp16), Apache-2.0 like the code. No outside data went in.
- {config["num_frames"]} frames, each squeezed to {framing["frame_px"]} x {framing["frame_px"]} px (nothing is cropped);
  patches of {vision["patch_size"]} px; vision {vision["width"]} x {vision["layers"]} layers, text {text["width"]} x \
{text["layers"]}, decoder {coca["multimodal_cfg"]["width"]} x {coca["multimodal_cfg"]["layers"]};
  {vision["attn_pooler_queries"] - 1} pooled tokens per clip; context {text["context_length"]} tokens.
- Caption kinds: {", ".join(config.get("kinds", ["descriptive"]))}; descriptive by default.
  The contrastive head and the text tower were trained on descriptive and on short captions.
- Its vocabulary is lower case; capitals are put back at sentence starts.

## Measured

{num_scenes} held-out scenes (seeds from {FIRST_HELD_OUT_SEED} on) of several sizes and lengths, and {num_scenes} whose
shape and colour were never shown together in training ({pairs}). Greedy captions, fields read back by
`recaption.scenes.renderer.fields_in`; a field counts where the caption names exactly the true word.

| field | held-out scenes | unseen pairs |
| --- | --- | --- |
{rows}
{totals}

Measured on the weights in this folder by `train.captioner.export.export`.
"""
