"""Encoding of latents in shards as .npy members: float16, bfloat16 or 8 bit.

    members = store(latent_CTHW, "int8")               # {"npy": ..., "scale.npy": ...}
    restore(members, "int8", latent_CTHW.shape)        # float32, within half a step of 1/255 of each channel's range

| dtype    | .npy member                          | decoded                                                    |
| -------- | ------------------------------------ | ---------------------------------------------------------- |
| float16  | float16                              | as it is                                                   |
| bfloat16 | uint16: the upper half of a float32  | (npy.astype(uint32) << 16).view(float32)                   |
| int8     | int8, and .scale.npy float32 (2, C)  | npy * scale[0] + scale[1], one number for each channel     |

All are plain .npy files, so that any WebDataset reader can do the same. 8 bit is affine, with a scale and a zero point for
each channel of each sample. For 4 bytes per channel the zero point makes it nowhere worse than a symmetric scale, and better
for channels that are not symmetric around 0 (`tests/benchmarks/packing/bench_latents.py` measures both).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from math import prod

import numpy as np

from recaption.errors import UsageError

LATENT_DTYPES = ("float16", "bfloat16", "int8")
_NPY_DTYPES = {"float16": "<f2", "bfloat16": "<u2", "int8": "|i1"}
LEVELS = 255
"""Steps from the smallest to the largest value of a channel."""


def check_latent_dtype(dtype: str) -> None:
    """Raises UsageError where `dtype` is none of `LATENT_DTYPES`."""
    if dtype not in LATENT_DTYPES:
        raise UsageError(f"encode.dtype {dtype!r}: latents are stored as {', '.join(LATENT_DTYPES)}")


def encode_latent(latent_CTHW: np.ndarray, dtype: str) -> dict[str, bytes]:
    """Members of a tar sample, extension -> bytes.

    Raises:
        ValueError: the latent has values that `dtype` cannot represent.
    """
    assert dtype in LATENT_DTYPES, dtype
    with np.errstate(over="ignore"):
        latent = np.ascontiguousarray(latent_CTHW, np.float16 if dtype == "float16" else np.float32)
    if not np.isfinite(latent).all():
        raise ValueError(f"the latent has values that {dtype} cannot represent")
    if dtype == "float16":
        return {"npy": _npy(latent)}
    if dtype == "bfloat16":
        return {"npy": _npy(_upper_half(latent))}
    values_CN = latent.reshape(len(latent), -1)
    low_C1, high_C1 = values_CN.min(axis=1, keepdims=True), values_CN.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        step_C1 = (high_C1 - low_C1) / np.float32(LEVELS)
        if not np.isfinite(step_C1).all():
            raise ValueError(f"the latent has values that {dtype} cannot represent")
    levels_CN = np.rint((values_CN - low_C1) / np.where(step_C1 > 0, step_C1, 1)) - 128
    scale_2C = np.stack([step_C1[:, 0], low_C1[:, 0] + 128 * step_C1[:, 0]])
    return {"npy": _npy(levels_CN.astype(np.int8).reshape(latent.shape)), "scale.npy": _npy(scale_2C)}


def decode_latent(members: Mapping[str, bytes], dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """latent_CTHW, writable: float16 where `dtype` is float16, else float32.

    Raises:
        ValueError: a member is missing, or no array of this type and shape.
    """
    if dtype not in LATENT_DTYPES:
        raise ValueError(f"stored as {dtype!r}, which this version does not know")
    payload = members.get("npy", b"")
    if dtype == "float16":
        return _array(bytearray(payload), _NPY_DTYPES[dtype], shape)
    stored = _array(payload, _NPY_DTYPES[dtype], shape)
    if dtype == "bfloat16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    scale_2C = _array(members.get("scale.npy", b""), "<f4", (2, shape[0]))
    latent_CN = stored.reshape(shape[0], -1).astype(np.float32)  # two axes: a fifth faster than four
    latent_CN *= scale_2C[0][:, None]
    latent_CN += scale_2C[1][:, None]
    return latent_CN.reshape(shape)


def _upper_half(values: np.ndarray) -> np.ndarray:
    """uint16: bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    with np.errstate(over="ignore"):
        rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (rounded >> 16).astype(np.uint16)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _array(payload: bytes | bytearray, descr: str, shape: tuple[int, ...]) -> np.ndarray:
    header = _npy_header(descr, shape)
    itemsize = np.dtype(descr).itemsize
    if payload.startswith(header) and len(payload) == len(header) + itemsize * prod(shape):
        return np.frombuffer(payload, descr, offset=len(header)).reshape(shape)
    try:
        array: np.ndarray = np.load(io.BytesIO(payload), allow_pickle=False)
    except EOFError as error:
        raise ValueError(str(error)) from error
    if array.shape != shape or array.dtype != np.dtype(descr):
        raise ValueError(f"{array.dtype} {array.shape} where the index says {np.dtype(descr)} {shape}")
    return array


@cache
def _npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    """The header that `np.save` writes for this type and shape; comparing it is much faster than parsing."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()
