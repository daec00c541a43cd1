"""CPU time of caption generation: KV cache against open_clip's full forward pass per token, same weights and tokens.

    python tests/benchmarks/recaption/bench_generate.py                       # all cases, float32; about 12 CPU-minutes
    python tests/benchmarks/recaption/bench_generate.py --cases greedy30-b1 beam6-b1
    python tests/benchmarks/recaption/bench_generate.py --precisions fp32 bf16 --compile
    python tests/benchmarks/recaption/bench_generate.py --cases overhead      # captioner against bare model

Both sides start from the same encoded clips (decoding only) and are interleaved in one process; process CPU seconds, one
torch thread, minimum of the repeats, so other load disturbs little. The baseline is open_clip's own forward pass over
the whole prefix for each token, with the same search around it: for 6 beams that is 6 rows per clip, as in open_clip's
default call (which moreover encodes the image 6 times; that is left out). Weights are random and no row ends early.
`same` is the fraction of tokens that agree with the full forward pass.
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
from recaption.captioners.generation.settings import DecodingSettings, GeneratedTokens, SpecialTokens
from recaption.captioners.registry import load_captioner

CASES = {
    "greedy30-b1": (1, DecodingSettings(max_tokens=30)),
    "greedy30-b8": (8, DecodingSettings(max_tokens=30)),
    "greedy30-b16": (16, DecodingSettings(max_tokens=30)),
    "greedy76-b4": (4, DecodingSettings(max_tokens=76)),
    "beam6-b1": (1, DecodingSettings(max_tokens=30, num_beams=6)),
    "beam6-b4": (4, DecodingSettings(max_tokens=30, num_beams=6)),
}
"""Name -> number of clips, settings."""


class FullForwardDecoder:
    """Replaces `CachedDecoder`: both text towers over the whole prefix for each new token."""

    def __init__(self, coca: Any, image_embs_BND: Tensor, rows_per_clip: int) -> None:
        self.coca, self.rows_per_clip, self.device = coca, rows_per_clip, image_embs_BND.device
        self.num_clips = len(image_embs_BND)
        self.embs_RND = image_embs_BND.repeat_interleave(rows_per_clip, dim=0)
        self.ids_RM = torch.zeros(len(self.embs_RND), 0, dtype=torch.long)

    def step(self, tokens_RP: Tensor) -> Tensor:
        self.ids_RM = torch.cat([self.ids_RM, tokens_RP], dim=1)
        unused = self.embs_RND[:, 0]
        out = self.coca(None, self.ids_RM, image_latent=unused, image_embs=self.embs_RND, output_labels=False)
        return out["logits"][:, -1].float()

    def select_rows(self, rows: list[int], clips: list[int]) -> None:
        self.ids_RM, self.num_clips = self.ids_RM[rows], len(clips)


def full_forward(
    coca: Any, embs_BND: Tensor, special: SpecialTokens, decoding: DecodingSettings
) -> list[tuple[int, ...]]:
    decoder: Any = FullForwardDecoder(coca, embs_BND, decoding.num_beams)
    if decoding.num_beams > 1:
        return [
            caption.tokens for caption in beam_search(decoder, [special.start], decoding.max_tokens, special, decoding)
        ]
    ids = [torch.full((len(embs_BND), 1), special.start)]
    for _ in range(decoding.max_tokens):
        ids.append(decoder.step(ids[-1]).argmax(dim=-1, keepdim=True))
    return [tuple(row) for row in torch.cat(ids[1:], dim=1).tolist()]


def cpu_seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def open_captioner(model: str, precision: str) -> Any:
    captioner: Any = load_captioner(
        f"open_clip:{model}/random", dtype=torch.float32 if precision == "fp32" else torch.bfloat16
    )
    coca = captioner.model.coca
    with torch.no_grad():  # unscaled random weights repeat one token; larger embeddings make the captions vary
        coca.text.token_embedding.weight.mul_(20)
        coca.text.positional_embedding.mul_(40)
    return captioner


def generate_whole_words_only(captioner: Any) -> None:
    """Random weights generate word pieces, whose text has other tokens; a trained captioner generates words."""
    projection = captioner.model.coca.text_decoder.text_projection
    names = captioner.tokenizer._tokenizer.decoder
    is_word = [names[token].removesuffix("</w>").isalpha() and names[token].endswith("</w>") for token in sorted(names)]
    with torch.no_grad():
        projection[:, ~torch.tensor(is_word)] = 0


def agreement(generated: list[GeneratedTokens], expected: list[tuple[int, ...]]) -> float:
    is_same = [
        a == b
        for caption, tokens in zip(generated, expected, strict=True)
        for a, b in zip(caption.tokens, tokens, strict=True)
    ]
    return float(np.mean(is_same))


def compare(arguments: argparse.Namespace) -> None:
    captioners = {precision: open_captioner(arguments.model, precision) for precision in arguments.precisions}
    reference = captioners["fp32"]
    special = SpecialTokens(start=reference.tokenizer.special.start, end=-1, pad=-1)
    side = reference.frame_px
    print(
        f"{arguments.model}, 1 thread, minimum of {arguments.repeats} interleaved; CPU seconds and ratio to the full forward"
    )
    print(f"{'case':14} {'full s':>8} " + "".join(f"{name + ' s':>9} {'ratio':>7} {'same':>7}" for name in captioners))
    for case in arguments.cases:
        num_clips, decoding = CASES[case]
        if arguments.tokens:
            decoding = dataclasses.replace(decoding, max_tokens=arguments.tokens)
        pixels = torch.randn(num_clips, 1, 3, side, side, generator=torch.Generator().manual_seed(num_clips))
        full_times: list[float] = []
        times: dict[str, list[float]] = {name: [] for name in captioners}
        generated: dict[str, list[GeneratedTokens]] = {}
        with torch.inference_mode():
            embs = reference.model.encode_clips(pixels).tokens_BND
            for _ in range(arguments.repeats):
                seconds, expected = cpu_seconds(
                    lambda: full_forward(reference.model.coca, embs, special, decoding)  # noqa: B023
                )
                full_times.append(seconds)
                for name, captioner in captioners.items():
                    coca = captioner.model.coca
                    image_tokens = embs.to(coca.text.positional_embedding.dtype)
                    for _ in range(2):
                        seconds, generated[name] = cpu_seconds(
                            lambda: generate(coca, image_tokens, special=special, decoding=decoding)  # noqa: B023
                        )
                        times[name].append(seconds)
        columns = [
            f"{min(times[name]):9.2f} {min(full_times) / min(times[name]):6.1f}x {agreement(generated[name], expected):7.3f}"
            for name in captioners
        ]
        print(f"{case:14} {min(full_times):8.2f} " + "".join(columns), flush=True)


def overhead(arguments: argparse.Namespace) -> None:
    """Captioner from frames to records, against encoder and decoder alone on prepared tensors."""
    captioner = open_captioner(arguments.model, "fp32")
    generate_whole_words_only(captioner)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (8, 224, 398, 3), dtype=np.uint8) for _ in range(arguments.clips)]
    pixels = torch.stack([captioner.preprocessor.to_tensor(clip, num_frames=8, repeat=False) for clip in clips])
    alone: list[float] = []
    whole: list[float] = []
    decoding = DecodingSettings(max_tokens=30)

    def core() -> None:
        with torch.inference_mode():
            embs = captioner.model.encode_clips(pixels).tokens_BND
            generate(captioner.model.coca, embs, special=captioner.tokenizer.special, decoding=decoding)

    for _ in range(arguments.repeats):
        alone.append(cpu_seconds(core)[0])
        whole.append(cpu_seconds(lambda: captioner.caption_with_embeddings(clips, max_tokens=30))[0])
    print(
        f"{arguments.clips} clips of 8 frames 224x398: encoder and decoder alone {min(alone):.2f} s, whole captioner "
        f"{min(whole):.2f} s: {min(alone) / min(whole):.3f} of its time"
    )


def compiled(arguments: argparse.Namespace) -> None:
    """The decoder's MLPs for one row, eager and with torch.compile."""
    captioner = open_captioner(arguments.model, "fp32")
    coca = captioner.model.coca
    block = coca.text_decoder.cross_attn[0]

    def mlp(x: Tensor) -> Tensor:
        for cross in coca.text_decoder.cross_attn:
            x = x + cross.mlp(cross.ln_2(x))
        return x

    compiled_mlp = torch.compile(mlp)
    x = torch.randn(1, 1, block.attn.embed_dim)
    with torch.inference_mode():
        started = time.process_time()
        compiled_mlp(x)
        build = time.process_time() - started
        eager_s = min(cpu_seconds(lambda: [mlp(x) for _ in range(10)])[0] for _ in range(arguments.repeats + 2))
        compiled_s = min(
            cpu_seconds(lambda: [compiled_mlp(x) for _ in range(10)])[0] for _ in range(arguments.repeats + 2)
        )
    print(f"torch.compile of the 12 MLPs at batch 1: {eager_s / compiled_s:.2f}x, {build:.1f} CPU-s to compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="coca_ViT-B-32")
    parser.add_argument("--cases", nargs="+", default=[*CASES, "overhead"], choices=[*CASES, "overhead"])
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the MLPs")
    parser.add_argument(
        "--tokens", type=int, default=0, help="overrides each case's number; fewer tokens, lower ratios"
    )
    parser.add_argument("--clips", type=int, default=8, help="clips of the overhead case")
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
