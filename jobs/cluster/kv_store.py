"""A small key-value store in Ray's internal KV: state that has to survive a worker."""

from __future__ import annotations

import json
from typing import Any


class KVStore:
    """JSON values of one run under a common prefix; they live as long as the cluster."""

    def __init__(self, run_id: str) -> None:
        self.prefix = f"recaption/{run_id}/"

    def read(self, key: str) -> dict[str, Any]:
        from ray.experimental.internal_kv import _internal_kv_get

        return json.loads(_internal_kv_get(self.prefix + key) or b"{}")

    def write(self, key: str, value: dict[str, Any]) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(self.prefix + key, json.dumps(value).encode())

    def clear(self, key: str | None = None) -> None:
        """Delete one key, or all keys of the run."""
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(self.prefix + (key or ""), del_by_prefix=key is None)
