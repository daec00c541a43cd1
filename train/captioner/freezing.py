"""Which parts of a captioner train: full, LiT or poolers only, as in VideoCoCa (arXiv 2212.04979).

    full     everything
    lit      image encoder frozen; poolers, temporal embedding, text tower and text decoder train (the paper's choice)
    frozen   only the poolers and the temporal embedding train

A CoCa decoder has a unimodal half (the text tower) and a multimodal half; "the decoder" of the paper's LiT is taken to
mean both. The poolers are everything between the encoder's frame tokens and the inputs of decoder and contrastive loss:
attentional poolers, their norm and projection, joint and temporal layers. The contrastive temperature trains with the
text side.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from recaption.errors import UsageError

TRAINABLE = ("full", "lit", "frozen")
ENCODER, POOLERS, TEXT = "encoder", "poolers", "text"
_TRAINABLE_PARTS = {"full": (ENCODER, POOLERS, TEXT), "lit": (POOLERS, TEXT), "frozen": (POOLERS,)}
ENCODER_PARTS = (
    "coca.visual.class_embedding",
    "coca.visual.positional_embedding",
    "coca.visual.conv1",
    "coca.visual.ln_pre",
    "coca.visual.transformer",
    "frame_encoder",
)
"""The per-frame part of open_clip's vision tower; `frame_encoder` is its replacement in this project's own models."""
TEXT_PARTS = ("coca.text", "coca.text_decoder", "coca.logit_scale", "coca.logit_bias")


def part_of(name: str) -> str:
    """The part that a parameter or module of a `VideoCoCa` belongs to: `encoder`, `text` or `poolers`."""
    for part, prefixes in ((ENCODER, ENCODER_PARTS), (TEXT, TEXT_PARTS)):
        if any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes):
            return part
    return POOLERS


def set_trainable(model: nn.Module, trainable: str) -> None:
    """Set `requires_grad` of the parameters by `full`, `lit` or `frozen`.

    Raises:
        UsageError: another value of `trainable`.
    """
    if trainable not in TRAINABLE:
        raise UsageError(f"--trainable {trainable!r}: choose from {', '.join(TRAINABLE)}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in _TRAINABLE_PARTS[trainable])


def frozen_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Outermost modules without trainable parameters; they are kept in eval mode, because of dropout and batch norm."""

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            yield module
            return
        for child in module.children():
            yield from visit(child)

    yield from visit(model)
