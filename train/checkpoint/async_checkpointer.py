"""Checkpoints are written while the training goes on: what is saved is copied, and a thread writes the copies.

    saver = Saver("RUN/train/dit/checkpoints", keep=2, is_sharded=False)
    saver.save(tensors, step=500, config=config, state=state)     # waits for the one before, copies, returns
    saver.wait()                                                  # until it is on disk

A run that is killed meanwhile leaves a folder under a temporary name, and the checkpoint before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from train.checkpoint import step_folder as checkpoint
from train.checkpoint.safetensors_storage import copy_to_cpu
from train.parallel import process_group as distributed

CLOSING_SECONDS = 60.0
"""Where another rank has died, a save can never end."""


class Saver:
    """One checkpoint at a time. All ranks call all methods, in the same order."""

    def __init__(self, folder: str, *, keep: int, is_sharded: bool) -> None:
        self.folder, self.keep = folder, keep
        # Its own group: the thread's messages must not mix with those of the steps.
        self._group = dist.new_group(backend="gloo") if is_sharded else None
        self._is_writing = is_sharded or distributed.rank() == 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._last = ""
        self._copies: dict[str, Tensor] = {}

    def save(self, tensors: Mapping[str, Tensor], *, step: int, config: dict[str, Any], state: dict[str, Any]) -> None:
        """Raises what the save before failed with."""
        self.wait()
        final = os.path.join(self.folder, f"step-{step:06d}")
        if not self._is_writing or final == self._last:
            return
        self._last = final
        # Kept from save to save: fresh memory would cost as much again as the copy.
        self._copies = {key: copy_to_cpu(tensor, self._copies.get(key)) for key, tensor in tensors.items()}
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

        def write() -> None:
            try:
                checkpoint.write_tensors(
                    self.folder,
                    step=step,
                    config=config,
                    state=state,
                    tensors=self._copies,
                    keep=self.keep,
                    group=self._group,
                )
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until this rank's part is on disk. Raises what the save failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Let a save that is under way end, whatever ended the training."""
        if self._thread is not None:
            self._thread.join(timeout=CLOSING_SECONDS)
