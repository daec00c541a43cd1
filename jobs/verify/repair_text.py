"""`recaption verify --repair` of RUN/text/: damaged parts of encoded texts are removed and encoded anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.encode.texts import encode_texts
from recaption.errors import UsageError
from recaption.ledger.encoded_texts import ENCODER_FILE, text_folder

if TYPE_CHECKING:
    from jobs.verify.repair_scope import Repair


def remake_texts(job: Repair, folder: str, names: set[str]) -> None:
    """A part whose list of texts is lost too gets the same texts back only where it was the last one."""
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
        if name.endswith(".parquet"):  # what was encoded from a list that is lost cannot be told apart
            job.run.remove(name.removesuffix(".parquet") + ".safetensors")
        job.remade.append(name)
    _close_gaps(job, folder)
    encode_texts(job.run, job.recipe, job.cluster)
    job.remade.append(f"{folder}/{ENCODER_FILE}")


def _close_gaps(job: Repair, folder: str) -> None:
    """Parts are numbered without gaps: those after a lost list are made anew with it."""
    names = job.run.list(f"{folder}/part-*.parquet")
    for number, name in enumerate(names):
        if name != f"{folder}/part-{number:05d}.parquet":
            for late in names[number:]:
                job.run.remove(late.removesuffix(".parquet") + ".safetensors")
                job.run.remove(late)
            return
