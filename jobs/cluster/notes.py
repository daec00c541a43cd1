"""A small key-value store on the cluster, one actor: what workers tell the driver while a stage runs."""

from __future__ import annotations

import json
from typing import Any


class _Notes:
    """A few bytes per part in Ray's own table, which lives as long as the cluster: they outlive a worker."""

    def __init__(self, run_id: str) -> None:
        self.prefix = f"recaption/{run_id}/"

    def read(self, key: str) -> dict[str, Any]:
        from ray.experimental.internal_kv import _internal_kv_get

        return json.loads(_internal_kv_get(self.prefix + key) or b"{}")

    def write(self, key: str, note: dict[str, Any]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.prefix + key, json.dumps(note).encode())

    def clear(self, key: str | None = None) -> None:
        """One note, or all of the run."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self.prefix + (key or ""), del_by_prefix=key is None)
