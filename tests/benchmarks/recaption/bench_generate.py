"""CPU seconds of captioning: cached decoding against open_clip's full forward per token, same weights, same tokens.

    python tests/benchmarks/recaption/bench_generate.py                       # all cases, float32; about 12 CPU-minutes
    python tests/benchmarks/recaption/bench_generate.py --cases greedy30-b1 beam6-b1
    python tests/benchmarks/recaption/bench_generate.py --precisions fp32 bf16 int8 --compile
    python tests/benchmarks/recaption/bench_generate.py --cases overhead      # describe() against encoder and decoder alone

Both sides start from the same encoded clips (decoding only) and take turns in one process; process CPU seconds, one
torch thread, the least of the repeats, so a busy machine disturbs little. The other side is open_clip's own forward over
the whole prefix for each token, with the same search around it: for 6 beams that is 6 rows per clip, as in open_clip's
default call (which moreover encodes the image 6 times; that is left out). Weights are random and no row ends early.
`same` is the share of tokens that agree with the full forward.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recaption.captioners.generation.beam_search import beam_search
from recaption.captioners.generation.generate import generate
from recaption.captioners.generation.packed_weights import StepWeights
from recaption.captioners.generation.settings import Decoding, Generated, SpecialTokens
from recaption.captioners.registry import load_captioner

CASES = {
    "greedy30-b1": (1, Decoding(max_tokens=30)),
    "greedy30-b8": (8, Decoding(max_tokens=30)),
    "greedy30-b16": (16, Decoding(max_tokens=30)),
    "greedy76-b4": (4, Decoding(max_tokens=76)),
    "beam6-b1": (1, Decoding(max_tokens=30, num_beams=6)),
    "beam6-b4": (4, Decoding(max_tokens=30, num_beams=6)),
}
"""Name -> clips, decoding."""


class FullSteps:
    """Stands in for `DecodingSteps`: both text towers over the whole prefix for each new token."""

    def __init__(self, coca: Any, image_embs_BND: Tensor, rows_per_clip: int) -> None:
        self.coca, self.rows_per_clip, self.device = coca, rows_per_clip, image_embs_BND.device
        self.num_clips = len(image_embs_BND)
        self.embs_RND = image_embs_BND.repeat_interleave(rows_per_clip, dim=0)
        self.said_RM = torch.zeros(len(self.embs_RND), 0, dtype=torch.long)

    def step(self, tokens_RP: Tensor) -> Tensor:
        self.said_RM = torch.cat([self.said_RM, tokens_RP], dim=1)
        unused = self.embs_RND[:, 0]
        out = self.coca(None, self.said_RM, image_latent=unused, image_embs=self.embs_RND, output_labels=False)
        return out["logits"][:, -1].float()

    def keep(self, rows: list[int], clips: list[int]) -> None:
        self.said_RM, self.num_clips = self.said_RM[rows], len(clips)


def full(coca: Any, embs_BND: Tensor, special: SpecialTokens, decoding: Decoding) -> list[tuple[int, ...]]:
    steps: Any = FullSteps(coca, embs_BND, decoding.num_beams)
    if decoding.num_beams > 1:
        return [one.tokens for one in beam_search(steps, [special.start], decoding.max_tokens, special, decoding)]
    said = [torch.full((len(embs_BND), 1), special.start)]
    for _ in range(decoding.max_tokens):
        said.append(steps.step(said[-1]).argmax(dim=-1, keepdim=True))
    return [tuple(row) for row in torch.cat(said[1:], dim=1).tolist()]


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def open_captioner(model: str, precision: str) -> Any:
    captioner: Any = load_captioner(
        f"open_clip:{model}/random", dtype=torch.float32 if precision == "fp32" else torch.bfloat16
    )
    coca = captioner.model.coca
    with torch.no_grad():  # untouched random weights repeat one token; louder inputs make the captions vary
        coca.text.token_embedding.weight.mul_(20)
        coca.text.positional_embedding.mul_(40)
    return captioner


def say_whole_words(captioner: Any) -> None:
    """Random weights say pieces of words, and text made of them has other tokens; a trained captioner says words."""
    projection = captioner.model.coca.text_decoder.text_projection
    names = captioner.vocabulary._tokenizer.decoder
    is_word = [names[token].removesuffix("</w>").isalpha() and names[token].endswith("</w>") for token in sorted(names)]
    with torch.no_grad():
        projection[:, ~torch.tensor(is_word)] = 0


def agreement(some: list[Generated], others: list[tuple[int, ...]]) -> float:
    pairs = [a == b for one, other in zip(some, others, strict=True) for a, b in zip(one.tokens, other, strict=True)]
    return float(np.mean(pairs))


def compare(arguments: argparse.Namespace) -> None:
    captioners = {precision: open_captioner(arguments.model, precision) for precision in arguments.precisions}
    sides = {
        precision: StepWeights(captioner.model.coca, int8=precision == "int8")
        for precision, captioner in captioners.items()
    }
    reference = captioners["fp32"]
    special = SpecialTokens(start=reference.vocabulary.special.start, end=-1, pad=-1)
    side = reference.frame_px
    print(
        f"{arguments.model}, 1 thread, least of {arguments.repeats} interleaved; CPU seconds and ratio to the full forward"
    )
    print(f"{'case':14} {'full s':>8} " + "".join(f"{name + ' s':>9} {'ratio':>7} {'same':>7}" for name in sides))
    for case in arguments.cases:
        num_clips, decoding = CASES[case]
        if arguments.tokens:
            decoding = dataclasses.replace(decoding, max_tokens=arguments.tokens)
        pixels = torch.randn(num_clips, 1, 3, side, side, generator=torch.Generator().manual_seed(num_clips))
        full_times: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in sides}
        said: dict[str, list[Generated]] = {}
        with torch.inference_mode():
            embs = reference.model.encode_clips(pixels).tokens_BND
            for _ in range(arguments.repeats):
                seconds, expected = cpu_seconds(lambda: full(reference.model.coca, embs, special, decoding))  # noqa: B023
                full_times.append(seconds)
                for name, weights in sides.items():
                    coca = captioners[name].model.coca
                    own = embs.to(coca.text.positional_embedding.dtype)
                    for _ in range(2):
                        seconds, said[name] = cpu_seconds(
                            lambda: generate(coca, own, special=special, decoding=decoding, weights=weights)  # noqa: B023
                        )
                        times[name].append(seconds)
        columns = [
            f"{min(times[name]):9.2f} {min(full_times) / min(times[name]):6.1f}x {agreement(said[name], expected):7.3f}"
            for name in sides
        ]
        print(f"{case:14} {min(full_times):8.2f} " + "".join(columns), flush=True)


def overhead(arguments: argparse.Namespace) -> None:
    """Frames in, records out, against encoder and decoder alone on tensors that are there."""
    captioner = open_captioner(arguments.model, "fp32")
    say_whole_words(captioner)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (8, 224, 398, 3), dtype=np.uint8) for _ in range(arguments.clips)]
    pixels = torch.stack([captioner.framing.tensor(clip, num_frames=8, repeat=False) for clip in clips])
    alone: list[float] = []
    whole: list[float] = []
    weights = StepWeights(captioner.model.coca)
    decoding = Decoding(max_tokens=30)

    def core() -> None:
        with torch.inference_mode():
            embs = captioner.model.encode_clips(pixels).tokens_BND
            generate(
                captioner.model.coca, embs, special=captioner.vocabulary.special, decoding=decoding, weights=weights
            )

    captioner.describe(clips[:1], max_tokens=2)  # lays out the weights
    for _ in range(arguments.repeats):
        alone.append(cpu_seconds(core)[0])
        whole.append(cpu_seconds(lambda: captioner.describe(clips, max_tokens=30))[0])
    print(
        f"{arguments.clips} clips of 8 frames 224x398: encoder and decoder alone {min(alone):.2f} s, describe() "
        f"{min(whole):.2f} s: {min(alone) / min(whole):.3f} of its time"
    )


def compiled(arguments: argparse.Namespace) -> None:
    """The full step of one row, eager and through torch.compile, prefix 16."""
    captioner = open_captioner(arguments.model, "fp32")
    coca = captioner.model.coca
    block = coca.text_decoder.cross_attn[0]

    def mlp(x: Tensor) -> Tensor:
        for cross in coca.text_decoder.cross_attn:
            x = x + cross.mlp(cross.ln_2(x))
        return x

    fast = torch.compile(mlp)
    x = torch.randn(1, 1, block.attn.embed_dim)
    with torch.inference_mode():
        started = time.process_time()
        fast(x)
        build = time.process_time() - started
        eager_s = min(cpu_seconds(lambda: [mlp(x) for _ in range(10)])[0] for _ in range(arguments.repeats + 2))
        fast_s = min(cpu_seconds(lambda: [fast(x) for _ in range(10)])[0] for _ in range(arguments.repeats + 2))
    print(f"torch.compile of the 12 MLPs at batch 1: {eager_s / fast_s:.2f}x, {build:.1f} CPU-s to compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="coca_ViT-B-32")
    parser.add_argument("--cases", nargs="+", default=[*CASES, "overhead"], choices=[*CASES, "overhead"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16", "int8"])
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the MLPs")
    parser.add_argument("--tokens", type=int, default=0, help="instead of each case's own; fewer tokens, lower ratios")
    parser.add_argument("--clips", type=int, default=8, help="of the overhead case")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with_overhead = "overhead" in arguments.cases
    arguments.cases = [case for case in arguments.cases if case != "overhead"]
    if arguments.cases:
        compare(arguments)
    if with_overhead:
        overhead(arguments)
    if arguments.compile:
        compiled(arguments)


if __name__ == "__main__":
    main()
