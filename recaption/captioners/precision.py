"""In which arithmetic a captioner computes: `fp32`, `bf16` or `int8`; `auto` is fp32 on a CPU and bf16 on a GPU.

    open_captioner("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", device="cpu", precision="bf16")

int8 is bf16 whose decoder matrices are rounded to 8 bits. On a CPU both pay for few clips at a time, where reading the
weights is what takes the time, and not for many: decoding with CoCa ViT-B/32 took 0.63 (bf16) and 0.43 (int8) of fp32's
CPU seconds for 1 clip, 0.78 and 0.80 for 8, 1.19 and 1.33 for 16. Neither says the same words as fp32 throughout (half to
four fifths of the tokens, random weights): tests/benchmarks/bench_generate.py --precisions fp32 bf16 int8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recaption.captioners import Captioner, load_captioner
from recaption.errors import UsageError

if TYPE_CHECKING:
    import torch

PRECISIONS = ("auto", "fp32", "bf16", "int8")


def open_captioner(spec: str, *, device: str, precision: str = "auto", **settings: Any) -> Captioner:
    """`load_captioner` in a precision; `settings` are its other ones.

    Raises:
        UsageError: no such precision, or int8 where there is none: on a GPU, or for a captioner of another kind.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"{precision = } is not one of {', '.join(PRECISIONS)}")
    if precision == "int8" and device != "cpu":
        raise UsageError("int8 decoding is for CPUs; on a GPU take bf16")
    captioner = load_captioner(spec, device=device, dtype=_dtype(device, precision), **settings)
    if precision == "int8":
        if not hasattr(captioner, "quantise"):
            raise UsageError(f"captioner {captioner.name} has no int8 decoding")
        captioner.quantise()
    return captioner


def _dtype(device: str, precision: str) -> torch.dtype | None:
    import torch

    if precision == "auto":
        return torch.bfloat16 if device.startswith("cuda") else None
    return torch.float32 if precision == "fp32" else torch.bfloat16
