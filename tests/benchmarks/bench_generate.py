"""CPU seconds of captioning: cached decoding against open_clip's full forward per token, same weights, same tokens.

    python tests/benchmarks/bench_generate.py                      # coca_ViT-B-32, 30 tokens, batches of 1 and 8
    python tests/benchmarks/bench_generate.py --repeats 5 --frames 8

Both sides start from the same encoded clips (decoding only) and run one after the other in one process; the ratio is
that of the medians. Process CPU seconds, one torch thread, so a busy machine disturbs little. Weights are random
and no row ends early.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from recaption.captioners import load_captioner
from recaption.captioners.generate import Decoding, SpecialTokens, generate


def full_greedy(coca: Any, image_embs_BND: Tensor, start: int, num_tokens: int) -> Tensor:
    """What open_clip's `generate` computes: both text towers over the whole prefix for each new token."""
    said_BM = torch.full((len(image_embs_BND), 1), start)
    unused = image_embs_BND[:, 0]
    for _ in range(num_tokens):
        out = coca(None, said_BM, image_latent=unused, image_embs=image_embs_BND, output_labels=False)
        said_BM = torch.cat([said_BM, out["logits"][:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return said_BM[:, 1:]


def cpu_seconds(run: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="coca_ViT-B-32")
    parser.add_argument("--tokens", type=int, default=30)
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    captioner: Any = load_captioner(f"open_clip:{arguments.model}/random")
    coca = captioner.model.coca
    with torch.no_grad():  # untouched random weights repeat one token; louder inputs make the captions vary
        coca.text.token_embedding.weight.mul_(20)
        coca.text.positional_embedding.mul_(40)
    special = SpecialTokens(start=captioner.vocabulary.special.start, end=-1, pad=-1)
    decoding = Decoding(max_tokens=arguments.tokens)
    side = captioner.frame_px
    print(f"{arguments.model}, {arguments.tokens} tokens, fp32, 1 thread, median of {arguments.repeats} interleaved")
    print("batch   full s   cached s   ratio   encode s   same tokens")
    for batch in arguments.batches:
        pixels = torch.randn(batch, arguments.frames, 3, side, side, generator=torch.Generator().manual_seed(batch))
        full_times, cached_times = [], []
        same = True
        with torch.inference_mode():
            encode, embedding = cpu_seconds(lambda pixels=pixels: captioner.model.encode_clips(pixels))
            embs = embedding.tokens_BND
            for _ in range(arguments.repeats):
                seconds, cached = cpu_seconds(
                    lambda embs=embs: generate(coca, embs, special=special, decoding=decoding)
                )
                cached_times.append(seconds)
                seconds, full = cpu_seconds(lambda embs=embs: full_greedy(coca, embs, special.start, arguments.tokens))
                full_times.append(seconds)
                same = same and [list(caption.tokens) for caption in cached] == full.tolist()
        full_s, cached_s = statistics.median(full_times), statistics.median(cached_times)
        print(f"{batch:5d} {full_s:8.2f} {cached_s:10.2f} {full_s / cached_s:6.1f}x {encode:10.2f}   {same}")


if __name__ == "__main__":
    main()
