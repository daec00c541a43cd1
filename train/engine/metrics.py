"""Training metrics: metrics.jsonl, TensorBoard, and the sums accumulated between two log lines.

    {"step": 20, "loss": 0.41, "lr": 0.001, "grad_norm": 0.9, "tokens_per_second": 8100.0, "fill": 0.97,
     "data_wait_share": 0.02, "tflops_per_second": 310.0, "mfu": 0.31, "seconds": 31.5}

One line per logged step, in step order, each step once: on resume, lines after the checkpoint's step are removed.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from recaption.run_folder import TEMPORARY_SUFFIX
from train.parallel.control import ControlGroup
from train.parallel.process_group import rank

UNSAFE_CHARACTERS = re.compile(r"[^A-Za-z0-9_-]+")


class LogWindow:
    """Sums over the steps since the last log line; they stay on the device until the line is written."""

    STEP_SUMS = ("loss", "weight", "tokens", "capacity", "flops", "skipped")

    def __init__(self, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(len(self.STEP_SUMS), dtype=dtype, device=device)
        self._logs: dict[str, Tensor] = {}
        self._num_logs: dict[str, int] = {}

    def zeros(self) -> Tensor:
        """A zero vector for the sums of one step."""
        return torch.zeros_like(self._sums)

    def add_step(self, step_sums: Tensor) -> None:
        """`step_sums` in the order of STEP_SUMS, already summed over accumulation and ranks."""
        self._sums += step_sums

    def add_logs(self, logs: Mapping[str, Any]) -> None:
        """Add one batch's scalars of this rank; the log line shows their mean."""
        for name, value in logs.items():
            value = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            self._logs[name] = self._logs[name] + value if name in self._logs else value.double().clone()
            self._num_logs[name] = self._num_logs.get(name, 0) + 1

    def read(self, control: ControlGroup) -> dict[str, float]:
        """The sums by name, and `log/<name>` averaged over the batches of all ranks. Synchronises with the device."""
        sums = dict(zip(self.STEP_SUMS, self._sums.tolist()))
        logs = self._logs_of_all_ranks(control)
        return sums | {f"log/{name}": total / count for name, (total, count) in logs.items()}

    def _logs_of_all_ranks(self, control: ControlGroup) -> dict[str, tuple[float, int]]:
        """Name -> sum and number of batches."""
        local = {name: (float(total), self._num_logs[name]) for name, total in self._logs.items()}
        totals: dict[str, tuple[float, int]] = {}
        for logs in control.gather(local):
            assert isinstance(logs, dict)
            for name, (total, count) in logs.items():
                before = totals.get(name, (0.0, 0))
                totals[name] = (before[0] + total, before[1] + count)
        return dict(sorted(totals.items()))

    def clear(self) -> None:
        self._sums.zero_()
        self._logs.clear()
        self._num_logs.clear()

    def state_dict(self, control: ControlGroup) -> dict[str, Any]:
        """JSON-serialisable and exact, over all ranks, so that a window interrupted by a checkpoint continues unchanged."""
        return {"sums": self._sums.tolist(), "logs": self._logs_of_all_ranks(control)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Called on every rank; rank 0 takes over the log sums of all ranks."""
        self._sums.copy_(torch.tensor(state["sums"], dtype=self._sums.dtype))
        logs = state["logs"] if rank() == 0 else {}
        self._logs = {
            name: torch.tensor(total, dtype=self._sums.dtype, device=self._sums.device)
            for name, (total, _) in logs.items()
        }
        self._num_logs = {name: count for name, (_, count) in logs.items()}


def read_lines(path: str) -> list[dict[str, Any]]:
    """Parse a metrics.jsonl; a truncated last line (killed process) is dropped."""
    if not os.path.exists(path):
        return []
    lines = []
    with open(path, encoding="utf-8") as file:
        for text in file:
            if not text.endswith("\n"):
                break
            lines.append(json.loads(text))
    return lines


class MetricsLog:
    """Writes metrics.jsonl and TensorBoard events of one train/<name> folder; rank 0 only."""

    def __init__(self, folder: str, *, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds of import, needed only while training

        os.makedirs(folder, exist_ok=True)
        self.folder = folder
        self.path = os.path.join(folder, "metrics.jsonl")
        lines = [line for line in read_lines(self.path) if line["step"] <= from_step]
        self.last_line: dict[str, Any] = lines[-1] if lines else {}
        temporary = self.path + TEMPORARY_SUFFIX
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(_to_json(line) for line in lines)
        os.replace(temporary, self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)
        self._events = SummaryWriter(
            os.path.join(folder, "tensorboard"), purge_step=from_step + 1 if from_step else None
        )

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(_to_json(line))
        self._file.flush()
        self.last_line = line
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self._events.add_scalar(name, value, line["step"])
        self._events.flush()

    def write_video(self, name: str, pixels_THWC: np.ndarray, *, step: int, fps: int) -> None:
        """Write a sampled video (uint8 RGB) to samples/step-<step>/<name>.gif and to TensorBoard's images."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        first, *rest = [Image.fromarray(frame) for frame in pixels_THWC]
        gif = io.BytesIO()
        first.save(gif, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
        path = os.path.join(self.folder, "samples", f"step-{step:06d}", f"{UNSAFE_CHARACTERS.sub('-', name)}.gif")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + TEMPORARY_SUFFIX, "wb") as file:
            file.write(gif.getvalue())
        os.replace(path + TEMPORARY_SUFFIX, path)
        image = Summary.Image(height=first.height, width=first.width, colorspace=3, encoded_image_string=gif.getvalue())
        # SummaryWriter.add_video would need moviepy to encode the same GIF.
        self._events.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _to_json(line: dict[str, Any]) -> str:
    """One JSON line; NaN and infinity become null, which JSON lacks."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(plain) + "\n"
