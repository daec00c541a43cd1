"""Worker of the encode stage: encodes the clips of one video shard into one latent shard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from jobs.cluster import attempts
from packing.grid import Grid
from packing.shards.read import read_sample
from packing.shards.samples import Entry, failed_latent_entry, latent_entry
from packing.shards.write import write_latents_shard
from recaption.errors import VideoError
from recaption.records import Sample, from_table
from recaption.run_folder import RunFolder
from recaption.video_io.reader import decode_bytes


class EncodeWorker:
    """Encodes one shard per part. One per actor: the compressor is loaded once."""

    def __init__(self, run_uri: str, spec: str, device: str, grid: Grid, dtype: str) -> None:
        import torch

        from train.compressors.registry import load
        from train.parallel.process_group import choose_device

        torch.set_num_threads(1)
        self.run = RunFolder(run_uri)
        self.device = choose_device(device)
        self.compressor = load(spec, device=str(self.device))
        self.grid = grid
        self.dtype = dtype

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        table = self.run.read_table(part["shard"].removesuffix(".tar") + ".parquet")
        rows = [s for s, status in zip(from_table(table, Sample), table["status"].to_pylist()) if status == "ok"]
        report = write_latents_shard(self.run, part["name"], self._entries(rows), plan_hash=part["plan_hash"])
        return {"name": report.name, "samples": report.num_samples}

    def _entries(self, rows: list[Sample]) -> Iterator[Entry]:
        import torch

        from train.compressors.pixels import to_pixels

        for row in rows:
            try:
                attempts.begin(row.clip_id)
            except VideoError as error:
                yield failed_latent_entry(row, reason=error.reason, detail=error.detail)
                continue
            frames_THWC = decode_bytes(read_sample(self.run, row)["mp4"]).pixels_THWC
            pixels_BCTHW = to_pixels(torch.from_numpy(frames_THWC).to(self.device))[None]
            with torch.inference_mode():
                latent_BCthw = self.compressor.encode(pixels_BCTHW)
            yield latent_entry(
                row,
                latent_BCthw[0].float().cpu().numpy(),
                num_latent_tokens=self.grid.num_tokens(row.num_frames, row.height_px, row.width_px),
                dtype=self.dtype,
                measure=partial(self._round_trip_psnr_db, pixels_BCTHW),
                details={"compressor": self.compressor.name},
            )
        attempts.begin()

    def _round_trip_psnr_db(self, pixels_BCTHW: Any, latent_CTHW: np.ndarray) -> float:
        """PSNR of decoding the stored latent, with the rounding of its storage dtype."""
        import torch

        from train.compressors.picture_quality import psnr_db

        with torch.inference_mode():
            latent_BCthw = torch.from_numpy(latent_CTHW)[None].to(self.device).float()
            return psnr_db(self.compressor.decode(latent_BCthw), pixels_BCTHW)
