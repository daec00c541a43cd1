"""Scripts of films: one shot per line, with its length, the transition to it and the subject that stays.

    {"prompt": "moves left over the sand", "seconds": 2, "subject": "a red circle"}
    {"prompt": "stays still on the grass", "seconds": 1.5, "transition": "dissolve"}
    {"prompt": "it moves right", "frames": 17, "transition": "continue", "seed": 3}

    shots = read_script("film.jsonl")
    shots[1].text              # "a red circle stays still on the grass"
    shots[1].num_frames(8, 9)  # 12

A subject stays until a later line sets another; "" ends it. It is put in front of every prompt of its shots, in equal words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recaption.captions.text import tokenize_words
from recaption.errors import UsageError
from recaption.prompts.style import content_words

TRANSITIONS = ("cut", "continue", "dissolve")
"""cut: the shot starts anew. continue: it goes on from the last frames of the shot before. dissolve: the two are blended."""
MAX_SHOTS = 999
PRONOUNS = frozenset(["it", "he", "she", "they"])
_DETERMINERS = "a an the one two three four five some many several his her its their my our this that"
DETERMINERS = frozenset(_DETERMINERS.split())


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """A line of a script."""

    prompt: str = ""
    """What happens in it; blank where the subject says it all."""
    seconds: float = 0.0
    frames: int = 0
    """Length, in seconds or in frames; neither: as long as the videos of the training."""
    transition: str = "cut"
    """To this shot, from the one before."""
    subject: str = ""
    """What stays in this shot and those after it."""
    seed: int | None = None
    """Of its noise; None: that of the sampling plus the number of the shot."""

    @property
    def text(self) -> str:
        """The prompt with the subject in front."""
        return with_subject(self.prompt, self.subject)

    def num_frames(self, fps: int, default: int) -> int:
        """Exact length in frames, at least 1."""
        if self.seconds:
            return max(1, round(self.seconds * fps))
        return self.frames or default


def with_subject(prompt: str, subject: str) -> str:
    """The subject in front of a prompt, in place of a pronoun; a prompt that names the subject itself stays as it is.

    "moves left", "a red circle" -> "a red circle moves left"; "the sea at night" -> "a red circle, the sea at night"
    """
    prompt, subject = prompt.strip(), subject.strip().rstrip(",.")
    if not subject or not prompt:
        return prompt or subject
    if content_words(subject) <= content_words(prompt):
        return prompt
    first, _, rest = prompt.partition(" ")
    word = first.lower().rstrip(",")
    if word in PRONOUNS:
        return f"{subject} {rest}".strip()
    if word in DETERMINERS:
        return f"{subject}, {prompt[0].lower()}{prompt[1:]}"
    return f"{subject} {prompt[0].lower()}{prompt[1:]}"


def read_script(path: str) -> tuple[Shot, ...]:
    """The shots of a script, each with the subject that it has by then. Blank lines are skipped.

    Raises:
        UsageError: no such file, no shots, or an invalid line (the message has its number).
    """
    import fsspec

    fs, inner = fsspec.url_to_fs(path)
    if not fs.isfile(inner):
        raise UsageError(f"no such script: {path}")
    try:
        lines = fs.cat_file(inner).decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text in UTF-8: {error}") from error
    shots: list[Shot] = []
    for number, line in ((number, line) for number, line in enumerate(lines, 1) if line.strip()):
        try:
            fields = json.loads(line)
            shots.append(parse_shot(fields, after=shots[-1] if shots else None))
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from error
    if not 0 < len(shots) <= MAX_SHOTS:
        raise UsageError(f"{path} has {len(shots)} shots: a film has 1 to {MAX_SHOTS}")
    return tuple(shots)


def write_script(shots: Sequence[Shot]) -> str:
    """The lines of a script that `read_script` reads as these shots."""
    lines, subject = [], ""
    for shot in shots:
        fields = {name: value for name, value in dataclasses.asdict(shot).items() if value or name == "prompt"}
        if shot.seed is not None:
            fields["seed"] = shot.seed
        fields.pop("subject", None)
        if shot.subject != subject:
            fields["subject"] = subject = shot.subject
        lines.append(json.dumps(fields, ensure_ascii=False))
    return "\n".join(lines) + "\n"


def parse_shot(fields: Any, *, after: Shot | None) -> Shot:
    """A shot from a JSON object.

    Args:
        after: the shot before it, whose subject stays; None for the first one.

    Raises:
        UsageError: not an object, an unknown field, or a value that does not fit.
    """
    if not isinstance(fields, dict):
        raise UsageError('not an object, such as {"prompt": "waves", "seconds": 2, "transition": "cut"}')
    known = {field.name for field in dataclasses.fields(Shot)}
    for name, value in fields.items():
        if name not in known:
            raise UsageError(
                f"unknown field {name!r} (known: {', '.join(field.name for field in dataclasses.fields(Shot))})"
            )
        if not _FITS[name](value):
            raise UsageError(f"{name} = {json.dumps(value)} is not {_EXPECTED[name]}")
    values: dict[str, Any] = {"subject": after.subject if after else ""} | fields
    shot = Shot(**values)
    if shot.seconds and shot.frames:
        raise UsageError(f"a shot has a length in seconds ({shot.seconds:g}) or in frames ({shot.frames}), not in both")
    if after is None and shot.transition != "cut":
        raise UsageError(f"the first shot has nothing before it to {shot.transition} from: leave its transition out")
    if not tokenize_words(shot.text):
        raise UsageError("a shot needs a prompt, or a subject")
    return shot


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


_FITS: Mapping[str, Any] = {
    "prompt": lambda value: isinstance(value, str),
    "subject": lambda value: isinstance(value, str),
    "seconds": lambda value: _is_number(value) and 0 < value <= 36_000,
    "frames": lambda value: _is_whole(value) and value > 0,
    "transition": lambda value: value in TRANSITIONS,
    "seed": _is_whole,
}
_EXPECTED = {
    "prompt": "a text",
    "subject": "a text",
    "seconds": "a number above 0 and up to 36000",
    "frames": "a whole number above 0",
    "transition": f"one of {', '.join(TRANSITIONS)}",
    "seed": "a whole number",
}
