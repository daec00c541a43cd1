"""The shortest script a user would write for captioned shards today: decord in this process, 8 frames, open_clip's CoCa,
webdataset's writer. No limits, no checks, no resume. The side that bench_end_to_end.py compares with.

    python tests/benchmarks/jobs/naive_chain.py FOLDER OUT WEIGHTS|none NUM_TOKENS
"""

import sys
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

folder, out, weights, num_tokens = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
if weights != "none":
    import torch  # before decord: imported after it, torch 2.14 crashes in its first convolution
import decord  # noqa: E402

NUM_FRAMES, SIDE_PX = 8, 224


def caption_of(frames) -> str:
    pixels = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
    latent, embeddings = model._encode_image(pixels)
    embeddings = embeddings.reshape(1, -1, embeddings.shape[-1])
    text = torch.tensor([[tokenizer.sot_token_id]])
    for _ in range(num_tokens):  # `model.generate` needs a transformers of 2024; this is what it computes
        logits = model(None, text, image_latent=latent[:1], image_embs=embeddings, output_labels=False)["logits"]
        text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
        if text[0, -1] == tokenizer.eot_token_id:
            break
    return tokenizer.decode(text[0].tolist())


if weights != "none":
    import open_clip

    torch.set_grad_enabled(False)
    model, _, preprocess = open_clip.create_model_and_transforms("coca_ViT-B-32", pretrained=weights)
    model.eval()
    tokenizer = open_clip.get_tokenizer("coca_ViT-B-32")

out.mkdir(parents=True, exist_ok=True)
with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=1000, verbose=0) as sink:
    for path in sorted(folder.iterdir()):
        reader = decord.VideoReader(str(path), num_threads=1)
        frames = reader.get_batch(np.linspace(0, len(reader) - 1, NUM_FRAMES).astype(int)).asnumpy()
        if weights != "none":
            sample = {"mp4": path.read_bytes(), "txt": caption_of(frames)}
        else:
            sample = {"npy": np.stack([np.asarray(Image.fromarray(f).resize((SIDE_PX, SIDE_PX))) for f in frames])}
        sink.write({"__key__": path.stem.replace(".", "_"), **sample})
