"""The command `recaption export`: its flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jobs.recipe.flags import OnRun, under
from jobs.recipe.run_inputs import open_run


@dataclass(frozen=True, kw_only=True)
class Export(OnRun):
    """Write the kept clips and their captions as files for another trainer."""

    example: ClassVar[str] = "recaption export --run runs/a --to folder --out exports/a --fit --model wan2.1"
    shown = under("shard.buckets", "max_samples_per_shard max_shard_bytes")
    takes = ("filters", "prepare.decode", *under("shard.buckets", "max_samples_per_shard max_shard_bytes"))
    to: str
    """Layout: folder, jsonl, hf, webdataset, energon, fastvideo, ltx, diffsynth, automodel, cosmos, lance or fiftyone."""
    out: str
    """Folder of the export: a local path or a fsspec URI."""
    captions: str = ""
    """The caption set; default: the set of the shards, else the last."""
    kinds: tuple[str, ...] = ("descriptive",)
    """The caption is the first of these that a clip has: descriptive, short, original, main_object, ..."""
    model: str = ""
    """Model for --fit and the configs: wan2.1, wan2.2-5b, ltx, hunyuan, ...; default: the layout's."""
    fit: bool = False
    """Give clips the rate, frame count and size of the model; default: native."""
    fps: int = 0
    """Another rate than the model's."""
    max_frames: int = 0
    """Another longest clip than the model's."""
    area_px: int = 0
    """Another area, height x width, than the model's."""
    cut: str = "auto"
    """auto: without encoding where keyframes allow; encode: every clip is encoded."""
    quality: int = 12
    """CRF of encoded clips (x264): 0 lossless, 12 hard to tell from the source, 18 half the bytes."""
    audio: str = "keep"
    """keep: clips have the audio of their span; drop: they are silent."""
    licence: str = ""
    """Licence of the clips for the card, as the Hub names it: cc-by-4.0."""
    local_paths: bool = False
    """Name local sources by their whole path; default: by the name of the file."""
    dry_run: bool = False
    """Only count clips, and estimate their bytes."""

    def __call__(self) -> dict[str, Any]:
        from jobs.export.export import export
        from jobs.export.settings import ExportSettings

        settings = ExportSettings(
            layout=self.to,
            captions=self.captions,
            kinds=self.kinds,
            model=self.model,
            fit=self.fit,
            fps=self.fps,
            max_frames=self.max_frames,
            area_px=self.area_px,
            cut=self.cut,
            quality=self.quality,
            audio=self.audio,
            licence=self.licence,
            local_paths=self.local_paths,
        )
        run = open_run(self.run)[0]
        if self.dry_run:
            with self.cluster() as cluster:
                return export(run, self.settings, settings, self.out, cluster, dry_run=True)
        with self.working_on(self.out) as cluster:
            return export(run, self.settings, settings, self.out, cluster)
