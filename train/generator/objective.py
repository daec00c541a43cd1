"""The training objective of the generator: noised tokens, condition mask, loss."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from train.generator.batch import DitBatch


def _answer(
    model: nn.Module,
    batch: DitBatch,
    x_LD: Tensor,
    timestep_S: Tensor,
    drop_text_S: Sequence[bool],
    given_L: Tensor | None,
) -> Tensor:
    return model(
        x_LD,
        batch.position_L3,
        batch.segments,
        timestep_S,
        batch.text.text_MC,
        batch.text.segments,
        batch.text.pooled_SC,
        drop_text_S=drop_text_S,
        given_L=given_L,
    )
