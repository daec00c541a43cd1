"""The command `recaption export`: its flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from jobs.export.settings import ExportSettings
from jobs.recipe.flags import OnRun, under
from jobs.recipe.run_inputs import open_run


@dataclass(frozen=True, kw_only=True)
class Export(ExportSettings, OnRun):
    """Write the kept clips and their captions as files for another trainer."""

    example: ClassVar[str] = "recaption export --run runs/a --to folder --out exports/a --fit --model wan2.1"
    shown = under("shard.buckets", "max_samples_per_shard max_shard_bytes")
    takes = ("filters", "prepare.decode", *under("shard.buckets", "max_samples_per_shard max_shard_bytes"))
    out: str
    """Folder of the export: a local path or a fsspec URI."""
    dry_run: bool = False
    """Only count clips, and estimate their bytes."""

    def __call__(self) -> dict[str, Any]:
        from jobs.export.export import export

        settings = ExportSettings(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(ExportSettings)}
        )
        run = open_run(self.run)[0]
        if self.dry_run:
            with self.cluster() as cluster:
                return export(run, self.settings, settings, self.out, cluster, dry_run=True)
        with self.working_on(self.out) as cluster:
            return export(run, self.settings, settings, self.out, cluster)
