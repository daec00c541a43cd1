"""Asynchronous checkpointing: tensors are copied to CPU memory, and a thread writes the copies during training.

    checkpointer = AsyncCheckpointer("RUN/train/dit/checkpoints", keep_last=2, is_sharded=False)
    checkpointer.save(tensors, step=500, config=config, state=state)     # waits for the previous save, copies, returns
    checkpointer.wait()                                                  # until the checkpoint is on disk

A run killed during a save leaves a folder under a temporary name and the previous checkpoint.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from train.checkpoint import step_folder
from train.checkpoint.safetensors_storage import TensorShard, copy_to_cpu
from train.parallel.control import new_cpu_group
from train.parallel.process_group import DEFAULT_TIMEOUT_MINUTES, rank

CLOSE_TIMEOUT_SECONDS = 60.0
"""How long `close` waits: if another rank has died, a save never ends."""


class AsyncCheckpointer:
    """Saves one checkpoint at a time. All ranks call all methods, in the same order."""

    def __init__(
        self,
        folder: str,
        *,
        keep_last: int,
        is_sharded: bool,
        timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES,
    ) -> None:
        self.folder, self.keep_last = folder, keep_last
        # A separate group: the thread's collectives must not interleave with those of the training steps.
        self._group = new_cpu_group(timeout_minutes) if is_sharded else None
        self._writes = is_sharded or rank() == 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last_path = ""
        self._copies: dict[str, TensorShard] = {}

    def save(
        self, tensors: Mapping[str, Tensor | TensorShard], *, step: int, config: dict[str, Any], state: dict[str, Any]
    ) -> None:
        """Copy the tensors and start writing them; raises the error of the previous save, if it failed."""
        self.wait()
        path = os.path.join(self.folder, f"step-{step:06d}")
        if not self._writes or path == self._last_path:
            return
        self._last_path = path
        # Buffers are reused: allocating fresh memory would cost as much again as the copy.
        self._copies = {key: copy_to_cpu(tensor, self._copies.get(key)) for key, tensor in tensors.items()}
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

        def write() -> None:
            try:
                step_folder.write(
                    self.folder,
                    step=step,
                    config=config,
                    state=state,
                    tensors=self._copies,
                    keep_last=self.keep_last,
                    group=self._group,
                )
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Block until the current save is on disk; raises its error, if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Let a running save finish, up to a timeout; for use when training ended with an error."""
        if self._thread is not None:
            self._thread.join(timeout=CLOSE_TIMEOUT_SECONDS)
