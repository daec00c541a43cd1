"""Plans a film from a text: shots with lengths and transitions, and one subject that stays.

    plan = plan_story("A red circle crosses the sand, then rests. Finally it glows.", examples, "embedded", fps=8, ...)
    [shot.text for shot in plan.shots]    # ["a red circle crosses the sand", "a red circle rests", ...]
    plan.shots[2].transition              # "dissolve"

The prompt expander's language model plans where there is one, and its answer is checked. Otherwise, and where the answer is
no plan, templates do: every sentence and every "then" of the text is a shot, and a text of fewer than four gets shots with
what the same subject does in captions of the training set.

After MovieFactory (arXiv 2306.07257) and Vlogger (arXiv 2401.09414): a script of shots with lengths, and a protagonist.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from recaption.captions.text import find_fault
from recaption.errors import UsageError
from recaption.prompts.expand import load_expander
from recaption.prompts.script import DETERMINERS, PRONOUNS, TRANSITIONS, Shot, parse_shot
from recaption.prompts.style import Example, Style, content_words, find_contradiction

MIN_SHOTS = 4
"""Shots of a film whose text has fewer."""
MAX_PLANNED_SHOTS = 24
MAX_SUBJECT_WORDS = 6
NUM_STYLE_CAPTIONS = 4
"""Captions in the language model's prompt: the style its prompts are to have."""
MAX_PLAN_TOKENS = 2048
_MORE_VIEWS = ("seen from afar", "seen from close up", "seen from above", "seen from behind")
"""Prompts of shots for which the captions have nothing."""
_LAST_WORDS = "finally|later|at last|in the end|afterwards|meanwhile"
_BREAKS = re.compile(
    rf"(?<=[.!?;。！？])\s*|\n+|\s*,?\s+(?:and\s+)?then\s+|,\s+and\s+|,\s+(?=(?:{_LAST_WORDS})\b)", re.IGNORECASE
)
_LAST_START = re.compile(rf"(?:and\s+)?(?:{_LAST_WORDS})\b,?\s*", re.IGNORECASE)
_JOINING = (
    "in on at to from with by for of and or over under near into onto through across above behind before after along around "
    "is are was were has have had who that which while as"
)
_NO_SUBJECT_WORDS = frozenset(_JOINING.split())
_PLURAL_DETERMINERS = frozenset(["two", "three", "four", "five", "some", "many", "several"])
_SINGULAR = ("ss", "us", "is")
"""Endings of nouns that look like those of verbs."""
_NOUNS_IN_ING = frozenset(["string", "spring", "building", "ceiling", "morning", "evening", "painting", "wedding"])
SYSTEM_PROMPT = (
    "You plan short films for a text-to-video model that makes each shot alone. Answer with {shots} lines, one shot a line, "
    'each a JSON object: {{"prompt": what happens in this shot, "seconds": its length, "transition": {transitions}}}. The '
    'first line also has "subject": the main subject in a few words, such as "a small brown dog", which is put in front of '
    "every prompt; so no prompt names the subject, and each starts with what it does. The first transition is cut. continue "
    "goes on from the frames before, in the same place; dissolve blends two places. Keep everything that the story says. "
    "Answer with the lines alone."
)


@runtime_checkable
class LanguageModel(Protocol):
    """An expander that also answers chat messages."""

    name: str

    def answer(self, messages: Sequence[dict[str, str]], max_tokens: int) -> str:
        """Its answer; "" where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class StoryPlan:
    """The shots of a film, and who planned them."""

    shots: tuple[Shot, ...]
    planner: str
    """`templates`, or the name of the language model."""
    notes: tuple[str, ...] = ()
    """For the user: why the language model's plan was not taken, words that no caption has."""


@dataclass(frozen=True, kw_only=True)
class FilmLengths:
    """How long the shots of a planned film are."""

    fps: int
    shot_frames: int
    """Of a shot, where nothing else is asked for."""
    film_frames: int = 0
    """Of all shots together; 0: their own lengths."""


def plan_story(
    text: str,
    examples: Sequence[Example],
    planner: str | LanguageModel | None,
    lengths: FilmLengths,
    *,
    transitions: Sequence[str] = TRANSITIONS,
) -> StoryPlan:
    """A film of a text; deterministic.

    Args:
        examples: captions of the training set, whose words the prompts should have.
        planner: an expander's SPEC, or a language model; templates plan where it is none.
        transitions: those that the model can make; others become cuts.

    Raises:
        UsageError: a blank text, an unknown planner, or a film too short for its shots.
    """
    if not content_words(text):
        raise UsageError(f"the story {text!r} says nothing: describe what happens in a sentence or more")
    model = load_expander(planner) if isinstance(planner, str) else planner
    style = Style(tuple(example.caption for example in examples))
    notes: list[str] = []
    shots, name = None, "templates"
    if isinstance(model, LanguageModel):
        shots, reason = _ask(model, text, style, lengths, transitions)
        if shots:
            name = model.name
        else:
            notes.append(f"the plan by {model.name} was rejected, templates plan instead: {reason}")
    shots = shots or plan_by_templates(text, examples)
    made = {shot.transition for shot in shots}
    if missing := [name for name in TRANSITIONS if name in made and name not in transitions]:
        shots = [dataclasses.replace(shot, transition="cut") if shot.transition in missing else shot for shot in shots]
        notes.append(f"the model was not trained for {' and '.join(missing)}, so these transitions are cuts")
    notes += vocabulary_notes(shots, style)
    return StoryPlan(shots=tuple(_timed(shots, lengths)), planner=name, notes=tuple(notes))


def vocabulary_notes(shots: Sequence[Shot], style: Style) -> list[str]:
    """A note per subject with words that no training caption has: the video model has never read them."""
    if not style.captions:
        return []
    notes = []
    for subject in dict.fromkeys(shot.subject for shot in shots):
        if unknown := sorted(word for word in content_words(subject) if word not in style.idf):
            notes.append(f"the subject {subject!r} has words that no training caption has: {', '.join(unknown)}")
    return notes


def _timed(shots: Sequence[Shot], lengths: FilmLengths) -> list[Shot]:
    """With lengths in seconds that are whole frames; of all shots together `film_frames`, where that is asked for."""
    frames = np.array([shot.num_frames(lengths.fps, lengths.shot_frames) for shot in shots])
    if lengths.film_frames:
        if lengths.film_frames < len(shots):
            raise UsageError(f"a film of {lengths.film_frames} frames is too short for {len(shots)} shots")
        edges = np.cumsum(1 + frames * (lengths.film_frames - len(shots)) / frames.sum()).round().astype(int)
        frames = np.diff(edges, prepend=0)
    return [
        dataclasses.replace(shot, seconds=round(int(count) / lengths.fps, 4), frames=0)
        for shot, count in zip(shots, frames)
    ]


# --- a language model -------------------------------------------------------------------------------------------------


def _ask(
    model: LanguageModel, text: str, style: Style, lengths: FilmLengths, transitions: Sequence[str]
) -> tuple[list[Shot] | None, str]:
    """The model's shots, or None and why its answer is no plan."""
    system = SYSTEM_PROMPT.format(shots=f"{MIN_SHOTS} to {2 * MIN_SHOTS}", transitions=" or ".join(transitions))
    captions = [style.captions[index] for index in style.nearest(text, NUM_STYLE_CAPTIONS)]
    if captions:
        system += " The model was trained on captions such as these; use their words:\n" + "\n".join(captions)
    asked = f"{text.strip()}\n(A shot takes about {lengths.shot_frames / lengths.fps:g} seconds"
    asked += f", the film {lengths.film_frames / lengths.fps:g}.)" if lengths.film_frames else ".)"
    messages = [{"role": "system", "content": system}, {"role": "user", "content": asked}]
    answer = model.answer(messages, MAX_PLAN_TOKENS)
    try:
        return parse_plan(answer, text), ""
    except ValueError as error:
        return None, str(error)


def parse_plan(answer: str, story: str) -> list[Shot]:
    """The shots of a language model's answer: JSON lines, a JSON array, or an object with `shots`, fenced or not.

    Raises:
        ValueError: no plan of that story.
    """
    shots: list[Shot] = []
    for fields in _objects(answer):
        known = {field.name for field in dataclasses.fields(Shot)} - {"seed"}
        fields = {name: value for name, value in fields.items() if name in known}
        if not shots:
            fields.pop("transition", None)
        shots.append(parse_shot(fields, after=shots[-1] if shots else None))
    if not 2 <= len(shots) <= MAX_PLANNED_SHOTS:
        raise ValueError(f"{len(shots)} shots")
    subject = shots[0].subject
    if not content_words(subject):
        raise ValueError("no subject")
    if contradiction := find_contradiction(story, subject):
        raise ValueError(f"its subject is {contradiction[1]} where the story says {contradiction[0]}")
    for shot in shots:
        if fault := find_fault(shot.text):
            raise ValueError(f"the prompt {shot.text[:60]!r} is {fault}")
    return shots


def _objects(answer: str) -> list[dict[str, Any]]:
    text = re.sub(r"^```\w*\s*|\s*```$", "", answer.strip())
    try:
        tree = json.loads(text)
        found = tree.get("shots", [tree]) if isinstance(tree, dict) else tree
        if (
            isinstance(tree, dict)
            and isinstance(found, list)
            and found
            and isinstance(found[0], dict)
            and "subject" in tree
        ):
            found[0].setdefault("subject", tree["subject"])
    except (ValueError, RecursionError):
        found = []
        for line in text.splitlines():
            try:
                found.append(json.loads(line.strip().rstrip(",")))
            except (ValueError, RecursionError):
                continue  # a sentence around the lines
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


# --- templates --------------------------------------------------------------------------------------------------------


def plan_by_templates(text: str, examples: Sequence[Example]) -> list[Shot]:
    """Shots from the text's own sentences, then from captions about the same subject, without lengths."""
    shots: list[Shot] = []
    subject = ""
    for transition, beat in _beats(text):
        if not shots:
            subject, beat = split_subject(beat)
            transition = "cut"
        else:
            beat = _without_subject(beat, subject)
        shots.append(Shot(prompt=beat, transition=transition, subject=subject))
    seen = [shot.prompt for shot in shots]
    for prompt in (*_from_captions(subject, text, examples), *_views(seen[0])):
        if len(shots) >= MIN_SHOTS:
            break
        if prompt not in seen:
            seen.append(prompt)
            shots.append(Shot(prompt=prompt, subject=subject))
    return shots[:MAX_PLANNED_SHOTS]


def _beats(text: str) -> list[tuple[str, str]]:
    """(transition, clause): "then" and "and" continue a shot, a new sentence cuts, "finally" dissolves."""
    beats, start, transition = [], 0, "cut"
    for found in [*_BREAKS.finditer(text), None]:
        clause = text[start : found.start() if found else len(text)].strip(" ,;.!?。！？\n")
        last = _LAST_START.match(clause)
        if last:
            clause, transition = clause[last.end() :], "dissolve"
        if content_words(clause):
            beats.append((transition, clause))
        if found:
            transition = "continue" if re.search(r"then|and", found.group(), re.IGNORECASE) else "cut"
            start = found.end()
    return beats


def split_subject(clause: str) -> tuple[str, str]:
    """("a red circle", "moves left") of "A red circle moves left"; ("", clause) where the clause starts with no subject.

    Without a grammar: the words from an article or a number on, up to a word that joins, or that ends like a verb.
    """
    words = clause.split()
    if (
        len(words) > 1
        and words[0].lower() not in DETERMINERS | PRONOUNS | _NO_SUBJECT_WORDS
        and _ends_like_verb(words[1])
    ):
        return words[0], " ".join(words[1:])  # a name
    if not words or words[0].lower() not in DETERMINERS:
        return "", clause.strip()
    count = 1
    is_counted = words[0].lower() in _PLURAL_DETERMINERS
    while count < min(len(words), MAX_SUBJECT_WORDS + 1):
        is_like_verb = _ends_like_verb(words[count])
        if words[count].lower() in _NO_SUBJECT_WORDS or (is_like_verb and count > 1 and not is_counted):
            break
        count += 1
        if words[count - 1].endswith(",") or (is_like_verb and (is_counted or words[0].lower() == "the")):
            break  # a plural noun is the last word
    if count == 1 or count > MAX_SUBJECT_WORDS:
        return "", clause.strip()
    subject = " ".join(words[:count]).rstrip(",")
    return subject[0].lower() + subject[1:], " ".join(words[count:])


def _ends_like_verb(word: str) -> bool:
    word = word.lower().strip(",")
    if word.endswith("ing"):
        return len(word) > 5 and word not in _NOUNS_IN_ING
    return word.endswith("s") and not word.endswith(_SINGULAR)


def _without_subject(clause: str, subject: str) -> str:
    """The clause without its leading pronoun or subject, which `Shot.text` puts back."""
    first, _, rest = clause.partition(" ")
    if first.lower() in PRONOUNS and rest and subject:
        return rest
    own, rest = split_subject(clause)
    is_same = own and content_words(own) <= content_words(subject)
    return rest if is_same and rest else clause


def _from_captions(subject: str, story: str, examples: Sequence[Example]) -> list[str]:
    """What the subject does in captions of its kind (with the same noun), each doing something new where possible."""
    wanted = content_words(subject)
    noun = subject.split()[-1:]
    num_shared: dict[str, int] = {}
    for example in examples:
        for text in (example.prompt, example.caption):
            own, predicate = split_subject(re.split(r"[.,;!?]", text, maxsplit=1)[0])
            if predicate and own.split()[-1:] == noun:
                shared = len(content_words(own) & wanted)
                num_shared[predicate] = max(shared, num_shared.get(predicate, 0))
    seen = set(content_words(story))

    def merit(predicate: str) -> tuple[bool, int, int, int]:
        words, action = content_words(predicate), " ".join(predicate.split()[:2])
        is_new = not any(one.startswith(action) or action.startswith(one) for one in (*chosen, story.lower()))
        return is_new, num_shared[predicate], len(words - seen), -len(words)

    chosen: list[str] = []
    while len(chosen) < min(MIN_SHOTS, len(num_shared)):
        chosen.append(max((one for one in sorted(num_shared) if one not in chosen), key=merit))
        seen |= content_words(chosen[-1])
    return chosen


def _views(prompt: str) -> list[str]:
    return [f"{prompt}, {view}" if prompt else view for view in _MORE_VIEWS]
