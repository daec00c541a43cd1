"""Null captions: put in place of dropped and of empty texts, and part of every graph."""

from __future__ import annotations

import pytest
import torch

from train.layers.segments import Segments
from train.layers.text_condition import with_null_captions

TEXT_MC = torch.tensor([[1.0], [2.0], [3.0]])
SEGMENTS = Segments.from_lengths([1, 0, 2])
POOLED_SC = torch.tensor([[10.0], [20.0], [30.0]])


def replaced(drop_text_S):
    null_text_MC, null_pooled_C = torch.tensor([[-1.0]], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    found = with_null_captions(
        TEXT_MC, SEGMENTS, POOLED_SC, drop_text_S, null_text_MC=null_text_MC, null_pooled_C=null_pooled_C
    )
    return found, (null_text_MC, null_pooled_C)


def test_dropped_and_empty_texts_become_the_null_caption():
    (text_MC, segments, pooled_SC), _ = replaced([False, False, True])
    assert text_MC[:, 0].tolist() == [1, -1, -1]
    assert segments.lengths == (1, 1, 1)
    assert pooled_SC[:, 0].tolist() == [10, -10, -10]
    (text_MC, segments, pooled_SC), _ = replaced(None)
    assert text_MC[:, 0].tolist() == [1, -1, 2, 3]
    assert segments.lengths == (1, 1, 2)
    assert pooled_SC[:, 0].tolist() == [10, -10, 30]


def test_null_embeddings_get_a_gradient_also_where_nothing_is_dropped():
    null_text_MC, null_pooled_C = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    text_MC, _, pooled_SC = with_null_captions(
        TEXT_MC[:1],
        Segments.from_lengths([1]),
        POOLED_SC[:1],
        None,
        null_text_MC=null_text_MC,
        null_pooled_C=null_pooled_C,
    )
    gradients = torch.autograd.grad(text_MC.sum() + pooled_SC.sum(), (null_text_MC, null_pooled_C))
    assert [float(gradient.sum()) for gradient in gradients] == [0, 0]


def test_a_flag_per_sample_is_needed():
    with pytest.raises(ValueError, match="2 entries of drop_text_S for 3 samples"):
        replaced([True, False])
