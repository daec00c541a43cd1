"""`recaption verify --repair` of RUN/text/: damaged parts of encoded texts are removed and encoded again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.encode.texts import encode_texts
from recaption.errors import UsageError
from recaption.ledger.encoded_texts import ENCODER_FILE, text_folder

if TYPE_CHECKING:
    from jobs.verify.repair_scope import RepairJob


def rebuild_texts(job: RepairJob, folder: str, names: set[str]) -> None:
    """Encode damaged parts again. If the text list of a part is lost, it gets the same texts only if it was the last one."""
    from train.text.towers import parse

    encoder = job.recipe.encode.text.encoder
    try:
        folders = {text_folder(f"{kind}:{name}") for kind, name in parse(encoder)} if encoder else set()
    except UsageError as error:
        job.refused[folder] = str(error)
        return
    if folder not in folders:
        why = "encoded by another text encoder than run.yaml has: run `recaption encode --encode.text.encoder` with it"
        job.refused |= dict.fromkeys(names, f"{why}, or remove {folder}")
        return
    for name in names:
        job.run.remove(name)
        if name.endswith(".parquet"):  # without the list, encoded texts cannot be assigned
            job.run.remove(name.removesuffix(".parquet") + ".safetensors")
        job.repaired.append(name)
    _close_gaps(job, folder)
    encode_texts(job.run, job.recipe, job.cluster)
    job.repaired.append(f"{folder}/{ENCODER_FILE}")


def _close_gaps(job: RepairJob, folder: str) -> None:
    """Part numbers have no gaps: parts after a lost text list are removed and encoded again too."""
    names = job.run.list(f"{folder}/part-*.parquet")
    for number, name in enumerate(names):
        if name != f"{folder}/part-{number:05d}.parquet":
            for late in names[number:]:
                job.run.remove(late.removesuffix(".parquet") + ".safetensors")
                job.run.remove(late)
            return
