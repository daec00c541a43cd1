"""Prompts in the style of the captions that a checkpoint was trained on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import SampleSettings
from recaption.prompts.examples import read_examples
from recaption.prompts.expand import ExpandedPrompt, expand
from recaption.prompts.style import Example
from recaption.run_folder import RunFolder


def expanded_prompts(
    prompts: Sequence[str], checkpoint_path: str, settings: SampleSettings, *, is_shown: bool
) -> list[ExpandedPrompt]:
    """The prompts, each expanded by the expander of the settings.

    Args:
        is_shown: print what was changed, and why it was not.
    """
    examples = style_examples(checkpoint_path, settings) if settings.expander != "none" else []
    expanded = expand(prompts, examples, settings.expander)
    for one in expanded if is_shown else ():
        if one.text != one.prompt:
            print(f"prompt: {one.prompt}\nexpanded by {one.expander}: {one.text}", file=sys.stderr)
    for note in dict.fromkeys(one.note for one in expanded if one.note) if is_shown else ():
        print(f"note: {note}", file=sys.stderr)
    return expanded


def style_examples(checkpoint_path: str, settings: SampleSettings) -> list[Example]:
    """Captions of `settings.examples`, or of the run folder of the checkpoint; none elsewhere."""
    if settings.examples:
        return read_examples(open_run(settings.examples)[0])
    run_root = run_of(checkpoint_path)
    return read_examples(RunFolder(str(run_root))) if run_root else []


def run_of(checkpoint_path: str) -> Path | None:
    """RUN of RUN/train/NAME/checkpoints/step-000500; None elsewhere."""
    path = Path(checkpoint_path).resolve()
    is_inside = path.parent.name == "checkpoints" and path.parents[2].name == "train"
    return path.parents[3] if is_inside else None
