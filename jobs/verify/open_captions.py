"""Captions that are open (their endpoint gave no answer) are asked for again by `verify --repair`.

    names = ask_again(job)          # ["captions/main/part-00003.parquet"]: parts that have fewer open captions now

They are no damage: `verify` counts them and says what asks again. Shards and latents of the set are brought up to date
where they were.
"""

from __future__ import annotations

from jobs.caption.caption import caption
from jobs.caption.open_captions import num_open
from jobs.encode.encode import encode
from jobs.recipe.part_names import part_number
from jobs.recipe.settings import stage_hashes
from jobs.shard import shard
from jobs.verify.repair_scope import RepairJob
from recaption.captions.sets import REJECTED_CLIPS, caption_sets
from recaption.errors import UsageError


def ask_again(job: RepairJob) -> list[str]:
    """Ask again for the open captions of every set; parts in which some were answered, by name.

    To be called when nothing is damaged. What is refused is noted in `job.refused`.
    """
    answered: list[str] = []
    for set_name in caption_sets(job.run):
        before = num_open(job.run, set_name)
        if not before:
            continue
        expected = stage_hashes(job.recipe)["caption"]
        if any(job.run.table_metadata(name).get("recipe_hash") != expected for name in before):
            why = "written with other settings than run.yaml has now: run `recaption caption` with them"
            job.refused |= dict.fromkeys(before, why)
            continue
        try:
            caption(job.run, job.recipe, set_name, job.cluster, only=[part_number(name) for name in before])
        except UsageError as error:  # the endpoint is still down
            job.refused |= dict.fromkeys(before, str(error))
            continue
        after = num_open(job.run, set_name)
        names = [name for name, count in before.items() if after.get(name, 0) < count]
        if names:
            _update_shards(job, set_name)
        answered += names
    return answered


def _update_shards(job: RepairJob, set_name: str) -> None:
    """Put the newly captioned clips into the shards of this set, and their latents beside the others."""
    run = job.run
    if not run.exists(REJECTED_CLIPS) or run.table_metadata(REJECTED_CLIPS).get("set") != set_name:
        return
    if shard(run, job.recipe, set_name, job.cluster)["computed_parts"] and run.list("latents/*/index.parquet"):
        encode(run, job.recipe, job.cluster)
