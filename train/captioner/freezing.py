"""What of a captioner is trained: VideoCoCa's ways of tuning (arXiv 2212.04979).

    full     everything
    lit      image encoder frozen; poolers, temporal embedding, text tower and caption decoder train (the paper's choice)
    frozen   only the poolers and the temporal embedding train

A CoCa decoder is two halves: the text tower (unimodal, without the image) and the caption decoder that continues from
it; "the decoder" of the paper's LiT is taken to mean both. To the poolers belongs all that stands between the encoder's
frame tokens and what decoder and contrastive loss read: attentional poolers, their norm and projection, joint and
temporal layers. The temperature of the contrastive loss trains with the text side.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from recaption.errors import UsageError

PRESETS = ("full", "lit", "frozen")


ENCODER, POOLERS, TEXT = "encoder", "poolers", "text"


_TRAINS = {"full": (ENCODER, POOLERS, TEXT), "lit": (POOLERS, TEXT), "frozen": (POOLERS,)}


ENCODER_PARTS = (
    "coca.visual.class_embedding",
    "coca.visual.positional_embedding",
    "coca.visual.conv1",
    "coca.visual.ln_pre",
    "coca.visual.transformer",
    "frame_encoder",
)
"""Of open_clip's vision tower what works on one frame alone; `frame_encoder` is what a model of ours may have instead."""


TEXT_PARTS = ("coca.text", "coca.text_decoder", "coca.logit_scale", "coca.logit_bias")


def part_of(name: str) -> str:
    """`encoder`, `text` or `poolers`: where a parameter (or module) of a `VideoCoCa` belongs."""
    for part, prefixes in ((ENCODER, ENCODER_PARTS), (TEXT, TEXT_PARTS)):
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
            return part
    return POOLERS


def apply_preset(model: nn.Module, preset: str) -> None:
    """Set which parameters have gradients.

    Raises:
        UsageError: no such preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset {preset!r}: there are {', '.join(PRESETS)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in _TRAINS[preset])


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Outermost modules without any parameter to train: they stay in eval mode, dropout and batch statistics included."""

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield module
            return
        for child in module.children():
            yield from visit(child)

    yield from visit(model)
