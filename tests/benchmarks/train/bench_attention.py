"""Packed attention: CPU time of a dense mask and of padding, forward and backward, relative to the segment loop.

    python tests/benchmarks/train/bench_attention.py --rounds 5

One pack of 4096 tokens, 6 heads of 64, several length mixes. `dense_mask` is one attention over the pack with a boolean
L x L mask; `padded` is a batch in which every sample is as long as the longest, with a key mask. All three compute the
same outputs (checked). The variants alternate in every round; the ratio is that of the medians. Goals: at
least 3x over the dense mask on 2048..64 and 7x on 8 x 512.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3]))

from train.layers.attention import packed_attention
from train.layers.segments import Segments

HEADS, HEAD_WIDTH = 6, 64
MIXES = {
    "2048..64": (2048, 1024, 512, 256, 128, 64, 64),
    "ten of 64..1200": (1200, 800, 600, 450, 350, 256, 180, 128, 68, 64),
    "8 x 512": (512,) * 8,
    "64 x 64": (64,) * 64,
    "2 x 2048": (2048, 2048),
}
GOALS = {"2048..64": 3.0, "8 x 512": 7.0}


def loop(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    return packed_attention(q, k, v, segments, segments, backend="loop")


def dense_mask(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    mask = segments.segment_ids_L[:, None] == segments.segment_ids_L
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)


def padded(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    longest, lengths = segments.max_length, torch.tensor(segments.lengths)
    is_real_SL = torch.arange(longest) < lengths[:, None]
    batch = [
        torch.nn.utils.rnn.pad_sequence(list(x.split(segments.lengths)), batch_first=True).transpose(1, 2)
        for x in (q, k, v)
    ]
    out_SHLD = F.scaled_dot_product_attention(*batch, attn_mask=is_real_SL[:, None, None])
    return out_SHLD.transpose(1, 2)[is_real_SL]


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor, Segments], Tensor]] = {
    "loop": loop,
    "dense_mask": dense_mask,
    "padded": padded,
}


def cpu_seconds(variant: str, inputs: list[Tensor], segments: Segments) -> tuple[float, Tensor]:
    """Process CPU time of one forward and backward, and the output."""
    start = time.process_time()
    out = VARIANTS[variant](*inputs, segments)
    torch.autograd.grad(out.sum(), inputs)
    return time.process_time() - start, out.detach()


def measure(lengths: tuple[int, ...], rounds: int, dtype: torch.dtype) -> dict[str, float]:
    """Ratio of each variant's median CPU seconds to the loop's."""
    segments = Segments.from_lengths(lengths)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(segments.num_tokens, HEADS, HEAD_WIDTH, generator=generator).to(dtype).requires_grad_()
        for _ in range(3)
    ]
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for number in range(rounds + 1):
        outputs = {}
        for variant in VARIANTS:
            spent, outputs[variant] = cpu_seconds(variant, inputs, segments)
            if number:  # the first round warms up
                seconds[variant].append(spent)
        for variant, out in outputs.items():
            torch.testing.assert_close(out, outputs["loop"], atol=1e-2, rtol=1e-2, msg=f"{variant} differs")
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    return {variant: medians[variant] / medians["loop"] for variant in VARIANTS if variant != "loop"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    ratios = {name: measure(mix, options.rounds, getattr(torch, options.dtype)) for name, mix in MIXES.items()}
    missed = {name: goal for name, goal in GOALS.items() if ratios[name]["dense_mask"] < goal}
    if options.json:
        print(json.dumps({"cpu_seconds_over_loop": ratios, "missed_goals": missed}))
    else:
        print(f"{'lengths':<18}{'dense mask / loop':>20}{'padded / loop':>16}")
        for name, of_mix in ratios.items():
            print(f"{name:<18}{of_mix['dense_mask']:>19.2f}x{of_mix['padded']:>15.2f}x")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
