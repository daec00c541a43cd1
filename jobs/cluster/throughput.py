"""Throughput of a stage: wall, busy and CPU time per part, summed by the driver."""

from __future__ import annotations

import os
import resource
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from recaption.video_io import process as decoder_process


def cpu_seconds() -> float:
    """CPU seconds of this process, its decoder children and its finished children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        own.ru_utime
        + own.ru_stime
        + reaped.ru_utime
        + reaped.ru_stime
        + sum(map(_live_process_cpu_seconds, decoder_process.child_pids()))
    )


def _live_process_cpu_seconds(pid: int) -> float:
    """CPU seconds of a running child process; `getrusage` counts only children that have ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # no child, or a system without /proc
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Throughput:
    """Running totals of one stage."""

    unit: str = "parts"
    """Key of the worker summaries that counts the work: clips, captions, num_samples."""
    wall_seconds: float = 0.0
    busy_seconds: float = 0.0
    """Wall time that workers spent inside parts."""
    cpu_seconds: float = 0.0
    num_parts: int = 0
    num_units: int = 0
    workers: set[str] = field(default_factory=set)
    decoder_fallbacks: Counter[str] = field(default_factory=Counter)
    """Reason -> requests for frames that PyAV answered in the place of another decoding backend."""

    def add(self, usage: dict[str, Any], num_units: int) -> None:
        self.num_parts += 1
        self.num_units += num_units
        self.busy_seconds += usage["wall_seconds"]
        self.cpu_seconds += usage["cpu_seconds"]
        self.workers.add(usage["worker"])
        self.decoder_fallbacks.update(usage.get("decoder_fallbacks", {}))

    def summary(self) -> dict[str, Any]:
        """JSON-able totals and rates; {} if no part was computed."""
        if not self.num_parts:
            return {}
        available = self.wall_seconds * len(self.workers)
        fallbacks = dict(sorted(self.decoder_fallbacks.items()))
        return ({"decoder_fallbacks": fallbacks} if fallbacks else {}) | {
            "parts": self.num_parts,
            "unit": self.unit.removeprefix("num_"),
            "units": self.num_units,
            "workers": len(self.workers),
            "wall_seconds": round(self.wall_seconds, 3),
            "busy_seconds": round(self.busy_seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "utilisation": round(self.busy_seconds / available, 4) if available else 0.0,
            "per_second": round(self.num_units / self.wall_seconds, 4) if self.wall_seconds else 0.0,
            "cpu_seconds_each": round(self.cpu_seconds / self.num_units, 4) if self.num_units else 0.0,
        }
