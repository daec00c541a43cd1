"""DiT forward and backward in bfloat16, compiled and not, against float32, with speed and memory."""

from __future__ import annotations

import time

import torch
from table import NOT_HERE, RIGHT, WRONG, Check, Row, worst_error
from torch import nn

from train.backbones.dit import Dit
from train.backbones.interface import PackedInputs
from train.layers.segments import Segments
from train.parallel.device_memory import AUTOCAST_BYTES, WEIGHT_BYTES
from train.parallel.fsdp import apply_activation_checkpointing
from train.text.encoder import EncodedText

TOKEN_WIDTH, HEAD_WIDTH = 64, 64
MAX_ERROR = 0.05
"""Relative error of a sample's prediction in bfloat16 that its rounding explains, over 28 blocks."""


def run(check: Check) -> None:
    torch.manual_seed(0)
    check.one("DiT bf16", lambda: _row(check, "DiT bf16"))
    for name, is_checkpointed in (
        ("DiT bf16, compiled", False),
        ("DiT bf16, compiled, activation checkpointing", True),
    ):
        if check.compiles:
            check.one(name, lambda case=(name, is_checkpointed): _row(check, case[0], True, case[1]))
        else:
            check.rows.append(Row(check=name, status=NOT_HERE, note="left out by --no-compile"))


def _row(check: Check, name: str, is_compiled: bool = False, is_checkpointed: bool = False) -> Row:
    size = check.size
    model = _model(check)
    inputs = _inputs(check)
    with torch.no_grad():
        expected = model(inputs)
    check.free()
    if is_checkpointed:
        apply_activation_checkpointing(model, name="dit")
    if is_compiled:
        for block in model.blocks:
            block.compile(**({"backend": "eager"} if size.is_small else {}))
    predictions = []

    def forward_and_backward() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(check.device.type, torch.bfloat16):
            prediction_LD = model(inputs)
        prediction_LD.square().mean().backward()
        predictions[:] = [prediction_LD.detach()]

    start = time.perf_counter()
    forward_and_backward()
    check.synchronize()
    first_seconds = time.perf_counter() - start
    seconds = check.seconds(forward_and_backward)
    worst = worst_error(predictions[0], expected, size.lengths)
    is_finite = all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    flops = model.flops(size.lengths, _text_lengths(check)) / seconds
    activations = model.activation_bytes(
        size.lengths, _text_lengths(check), precision="bf16", checkpointed=is_checkpointed
    )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return Row(
        check=name,
        status=RIGHT if worst <= MAX_ERROR and is_finite else WRONG,
        tokens_per_second=sum(size.lengths) / seconds,
        flops_per_second=flops,
        mfu=check.mfu(flops),
        peak_bytes=check.peak_bytes(),
        estimate_bytes=activations + num_parameters * (2 * WEIGHT_BYTES + AUTOCAST_BYTES),
        note=f"{seconds:.3f} s, the first {first_seconds:.1f} s; worst relative error of a sample {worst:.1e}"
        f"{'' if is_finite else '; a gradient is not finite'}",
    )


def _model(check: Check) -> Dit:
    size = check.size
    with check.device:
        model = Dit(
            token_width=TOKEN_WIDTH, text_width=size.text_width, pooled_width=size.text_width, width=size.width,
            depth=size.depth, num_heads=size.width // HEAD_WIDTH,
        )  # fmt: skip
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.02)  # a new DiT predicts 0, which hides every difference
    return model


def _text_lengths(check: Check) -> list[int]:
    return [check.size.text_tokens] * len(check.size.lengths)


def _inputs(check: Check) -> PackedInputs:
    size = check.size
    segments = Segments.from_lengths(size.lengths, check.device)
    text_segments = Segments.from_lengths(_text_lengths(check), check.device)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(check.device)

    position_L3 = torch.cat([torch.arange(n)[:, None] // torch.tensor([64, 8, 1]) % 64 for n in size.lengths])
    return PackedInputs(
        tokens_LD=draw(segments.num_tokens, TOKEN_WIDTH),
        position_L3=position_L3.to(check.device),
        segments=segments,
        timestep_S=torch.linspace(0.1, 0.9, len(size.lengths)).to(check.device),
        text=EncodedText(
            draw(text_segments.num_tokens, size.text_width), text_segments, draw(len(size.lengths), size.text_width)
        ),
    )
