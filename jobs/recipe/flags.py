"""Flags that several commands have, and how flags become settings."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import tyro

from jobs.cluster.cluster import Cluster
from jobs.recipe import presets as recipes
from jobs.recipe.settings import Recipe
from recaption.folder_lock import FolderLock
from recaption.run_folder import RunFolder

Settings = Annotated[Recipe, tyro.conf.arg(name="")]
"""The recipe's settings as flags: `--shard.buckets.fps 12`."""
SAMPLING = "num_steps guidance num_frames height_px width_px"
MIXTURE_RULES = "sampling_weights max_latent_frames too_long token_keep_rate"
"""Settings that the short help of several commands lists."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every command."""

    example: ClassVar[str]
    """A command line that works."""
    shown: ClassVar[tuple[str, ...]] = ()
    takes: ClassVar[tuple[str, ...]] = ()
    json: bool = False
    """Print one machine-readable JSON object on stdout."""
    address: str | None = None
    """Ray cluster to run on (`auto`, `ray://host:10001`); default: a local Ray, started and stopped here."""
    num_workers: int | None = None
    """Worker processes; default: one per core."""
    progress: bool = True
    """Progress bars on stderr."""

    def cluster(self) -> Cluster:
        return Cluster(address=self.address, num_workers=self.num_workers, progress=self.progress)

    @contextmanager
    def working_on(self, uri: str) -> Iterator[Cluster]:
        """The cluster, while the run folder is locked: one command at a time writes there.

        Raises:
            FolderInUseError: another command works on it.
        """
        run = RunFolder(uri)
        verb = re.sub(r"(?<!^)(?=[A-Z])", " ", type(self).__name__.removesuffix("Verb")).lower()
        with FolderLock(run, f"recaption {verb}") as lock, self.cluster() as cluster:
            if lock.taken_over is not None:
                print(f"recaption: {lock.taken_over} was killed; going on after it", file=sys.stderr)
                run.remove_temporary_files()
            cluster.check_folder = lock.check if run.is_local else None
            yield cluster
            if getattr(cluster, "num_deaths", 0):  # a worker that died may have left half a file
                run.remove_temporary_files()

    def __call__(self) -> dict[str, Any]:
        """Run the command; its summary, as `--json` prints it."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OfVideos(Common):
    """Flags of the commands that read videos."""

    videos: tuple[str, ...]
    """Files, folders, globs, tars, URIs, lists (.txt, CSV, TSV, JSON, JSON Lines, Parquet, Arrow)."""
    columns: tuple[str, ...] = ()
    """Columns of lists whose names are not known: video=clip caption=text start=from end=to (docs/inputs.md)."""
    video_root: str = ""
    """Folder or URI in which names of lists are looked up, before that of the list."""


@dataclass(frozen=True, kw_only=True)
class OnRun(Common):
    """Flags of the commands on an existing run folder; defaults come from its run.yaml."""

    run: str
    """The run folder."""
    settings: Settings = field(default_factory=recipes.quickstart)


def under(group: str, *names: str) -> tuple[str, ...]:
    """Paths of settings of one group."""
    return tuple(f"{group}.{name}" for name in " ".join(names).split())


def changed(settings: Any, group: str, **flags: Any) -> Any:
    """The settings with the flags that were given set in one group, `train_dit.dit`."""
    flags = {name: value for name, value in flags.items() if value is not None and value != ()}
    if not group:
        return dataclasses.replace(settings, **flags)
    name, _, below = group.partition(".")
    return dataclasses.replace(settings, **{name: changed(getattr(settings, name), below, **flags)})
