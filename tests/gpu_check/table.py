"""Rows of the check, the sizes it runs at, and what a section needs: time, memory, comparisons."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

RIGHT, WRONG, NOT_HERE = "right", "WRONG", "not here"
COLUMNS = ("check", "result", "tokens/s", "TFLOP/s", "MFU", "peak GB", "estimate GB", "note")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; None: does not apply."""

    check: str
    status: str
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    mfu: float | None = None
    peak_bytes: float | None = None
    estimate_bytes: float | None = None
    note: str = ""

    @property
    def is_wrong(self) -> bool:
        return self.status == WRONG

    def cells(self) -> list[str]:
        def number(value: float | None, form: str, scale: float = 1.0) -> str:
            return "" if value is None else format(value * scale, form)

        return [
            self.check,
            self.status,
            number(self.tokens_per_second, ",.0f"),
            number(self.flops_per_second, ".1f", 1e-12),
            number(self.mfu, ".1%"),
            number(self.peak_bytes, ".2f", 1e-9),
            number(self.estimate_bytes, ".2f", 1e-9),
            self.note,
        ]


def as_markdown(rows: Sequence[Row]) -> str:
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is."""

    is_small: bool
    width: int
    depth: int
    lengths: tuple[int, ...]
    """Tokens of the samples of a pack."""
    text_tokens: int
    text_width: int
    rounds: int
    """Timed repetitions."""
    num_steps: int
    """Optimizer steps of the short training, before and after the resume each."""

    @classmethod
    def full(cls) -> Size:
        """DiT-XL, for one H200 and a few minutes."""
        lengths = (8192, 4096, 2048, 1024, 512, 384, 128)
        return cls(
            is_small=False, width=1152, depth=28, lengths=lengths, text_tokens=64, text_width=2048, rounds=5, num_steps=20
        )  # fmt: skip

    @classmethod
    def small(cls) -> Size:
        lengths = (48, 16, 5)
        return cls(
            is_small=True, width=64, depth=2, lengths=lengths, text_tokens=4, text_width=16, rounds=1, num_steps=2
        )


@dataclass
class Check:
    """The run of all sections on one device."""

    device: torch.device
    size: Size
    compiles: bool = True
    rows: list[Row] = field(default_factory=list)

    _printed: list[Row] = field(default_factory=list)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def section(self, name: str, run: Callable[[Check], None]) -> None:
        """Run a section; what it raises is a row. Each row is printed as it comes: the machine's time is short."""
        before, start = len(self.rows), time.perf_counter()
        try:
            run(self)
        except Absent as reason:
            self.rows.append(Row(check=name, status=NOT_HERE, note=str(reason)))
        except ModuleNotFoundError as error:
            self.rows.append(Row(check=name, status=NOT_HERE, note=f"needs the package {error.name}"))
        except Exception as error:  # whatever goes wrong on a machine nobody has seen: a row, and the rest goes on
            traceback.print_exc()
            message = str(error).strip().split("\n", 1)[0][:160]
            self.rows.append(Row(check=name, status=WRONG, note=f"{type(error).__name__}: {message}"))
        finally:
            self.free()
        for row in self.rows[before:]:
            if row not in self._printed:
                self._printed.append(row)
                print(f"{time.perf_counter() - start:6.1f} s  {row.status:9} {row.check}: {row.note}", flush=True)

    def one(self, name: str, run: Callable[[], Row]) -> None:
        """One row of a section, guarded like the section itself."""
        self.section(name, lambda check: check.rows.append(run()))

    def free(self) -> None:
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def synchronize(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def peak_bytes(self) -> float | None:
        return float(torch.cuda.max_memory_allocated(self.device)) if self.is_cuda else None

    def seconds(self, run: Callable[[], object]) -> float:
        """Median seconds of `rounds` calls, after one that warms up."""
        spent = []
        for number in range(self.size.rounds + 1):
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            if number:
                spent.append(time.perf_counter() - start)
        return sorted(spent)[len(spent) // 2]

    def mfu(self, flops_per_second: float) -> float | None:
        from train.engine.device_peak import peak_flops

        peak = peak_flops(self.device)
        return flops_per_second / peak if peak else None


class Absent(Exception):
    """Something that this machine does not have, in words."""


def worst_error(got: Tensor, expected: Tensor, lengths: Sequence[int]) -> float:
    """The largest relative error (of the norm) over the samples of a pack: a small sample counts like a large one."""
    pairs = zip(got.double().split(list(lengths)), expected.double().split(list(lengths)), strict=True)
    return max(float((one - other).norm() / other.norm().clamp(min=1e-12)) for one, other in pairs)
