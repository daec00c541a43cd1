"""The words of rendered scenes: the closed vocabulary, captions written from it, and the way back.

look = Look(main_object="circle", colour="red", action="moves left", background="sea", ...)
short_caption(look, rng)         "a red circle moves left over the sea"
fields_in(long_caption(look, rng)) == look.fields
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from recaption.records import CaptionFields

VOCABULARY: dict[str, tuple[str, ...]] = {
    "main_object": ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond", "crescent"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"),
    "action": (
        "moves left",
        "moves right",
        "moves up",
        "moves down",
        "loops around",
        "bounces",
        "grows",
        "shrinks",
        "rotates",
        "stays still",
    ),
    "surroundings": ("trees", "houses", "hills", "clouds", "flowers", "cacti", "rocks", "empty"),
    "background": ("sky", "sea", "sand", "grass", "night", "ice", "brick wall", "road"),
    "text": ("HELLO", "STOP", "TAXI", "NEWS", "JAZZ", "MILK", "GOAL", "SALE"),
    "style": ("flat", "outline", "pixelated", "noisy", "sepia"),
    "texture": ("plain", "striped", "dotted"),
    "size": ("small", "large"),
    "camera": ("fixed", "pans left", "pans right", "zooms in", "zooms out"),
    "weather": ("clear", "sunny", "rainy", "snowy", "foggy", "dusk"),
}
"""Every value a scene can take, as the exact words that its captions use. No value is part of another one.

The first seven keys are the fields of `CaptionFields`. `text` may also be "" (nothing is drawn), `size` is "" where it
changes during the shot (grows, shrinks, zooms).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What is seen in one shot: one value of `VOCABULARY` per key."""

    main_object: str
    colour: str
    action: str
    surroundings: str
    background: str
    text: str
    style: str
    texture: str
    size: str
    camera: str
    weather: str

    @property
    def fields(self) -> CaptionFields:
        return CaptionFields(**{f.name: getattr(self, f.name) for f in dataclasses.fields(CaptionFields)})


_OVER = {
    "sky": ("in the sky", "up in the sky"),
    "sea": ("over the sea", "above the sea"),
    "sand": ("on the sand", "over the sand"),
    "grass": ("on the grass", "over the grass"),
    "night": ("at night", "in the dark of the night"),
    "ice": ("on the ice", "over the ice"),
    "brick wall": ("in front of a brick wall", "before a brick wall"),
    "road": ("on the road", "over the road"),
}


_BACKDROP = {
    "sky": "a wide sky that fades downwards",
    "sea": "the sea with rows of thin waves",
    "sand": "bare sand with soft ripples",
    "grass": "a field of short grass",
    "night": "the dark night with tiny lights",
    "ice": "a sheet of ice with cracks",
    "brick wall": "a brick wall with rows of joints",
    "road": "a grey road with dashed lane lines",
}
"""None of these phrases may hold a word of another field: `fields_in` takes the first word it meets."""


_WEATHER = {
    "clear": ("The air is clear", "The weather is clear"),
    "sunny": ("It is sunny", "The weather is sunny"),
    "rainy": ("It is rainy", "The weather is rainy, with drops falling"),
    "snowy": ("It is snowy", "The weather is snowy, with flakes falling"),
    "foggy": ("It is foggy", "The weather is foggy and pale"),
    "dusk": ("It is dusk", "The light is that of dusk"),
}


_CAMERA = {
    "fixed": "the camera is fixed",
    "pans left": "the camera pans left",
    "pans right": "the camera pans right",
    "zooms in": "the camera zooms in",
    "zooms out": "the camera zooms out",
}


def short_caption(look: Look, rng: np.random.Generator) -> str:
    """What a person would type: one clause, not every field, nothing untrue."""
    over = _pick(_OVER[look.background], rng)
    subject = f"{look.colour} {look.main_object}"
    endings = [over]
    if look.surroundings != "empty":
        endings += [f"{over} near some {look.surroundings}", f"near some {look.surroundings}"]
    if look.text:
        endings.append(f'{over} under the word "{look.text}"')
    text = f"{_article(subject)} {subject} {look.action} {_pick(endings, rng)}"
    if look.camera != "fixed":
        text += f" as {_CAMERA[look.camera]}"
    return text


def long_caption(look: Look, rng: np.random.Generator) -> str:
    """Every field, the camera and the weather in 25 to 60 words; `rng` varies the wording, never the field words."""
    adjectives = " ".join(word for word in (look.size, look.texture, look.colour) if word)
    subject = f"{_article(adjectives)} {adjectives} {look.main_object}"
    over = _pick(_OVER[look.background], rng)
    backdrop = _BACKDROP[look.background]
    weather = _pick(_WEATHER[look.weather], rng)
    style = f"{_article(look.style)} {look.style}"
    camera = _CAMERA[look.camera]
    templates = (
        f"In {style} video, {subject} {look.action} {over}. {_around(look, rng)} "
        f"The background is {backdrop}. {weather}, and {camera}. {_writing(look, rng)}",
        f"{_capitalised(subject)} {look.action} {over}, and {camera}. {_around(look, rng)} Behind it lies {backdrop}. "
        f"{_writing(look, rng)} {weather}. The picture has {style} look.",
        f"{_capitalised(style)} clip shows {subject} that {look.action}. {weather}. {_around(look, rng)} "
        f"Further back there is {backdrop}. {_writing(look, rng)} All along, {camera}.",
        f"{weather}. Against {backdrop}, {subject} {look.action} while {camera}. {_around(look, rng)} "
        f"The drawing style is {look.style}. {_writing(look, rng)}",
    )
    return _pick(templates, rng)


def fields_in(text: str) -> CaptionFields:
    """Read the caption fields back out of any text: the first whole-word match per field, upper or lower case.

    A field that the text does not name is "". Works on the captions above and on what a captioner trained on them says.
    """
    return CaptionFields(**{f.name: word_in(text, f.name) for f in dataclasses.fields(CaptionFields)})


def is_of_scene(text: str) -> bool:
    """Whether `text` speaks of a scene: one of the shapes does one of the actions.

    A sentence about real footage may say red, road and heart too; read as fields of a scene they would be untrue.
    """
    return _subject().search(text) is not None


@cache
def _subject() -> re.Pattern[str]:
    shapes, actions = ("|".join(map(re.escape, VOCABULARY[key])) for key in ("main_object", "action"))
    return re.compile(rf"\b(?:{shapes}) (?:that )?(?:{actions})\b", re.IGNORECASE)


def word_in(text: str, key: str) -> str:
    """First value of `VOCABULARY[key]` that `text` names, "" where it names none."""
    match = _pattern(key).search(text)
    return _canonical(key)[match.group(0).lower()] if match else ""


@cache
def _pattern(key: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(map(re.escape, VOCABULARY[key])) + r")\b", re.IGNORECASE)


@cache
def _canonical(key: str) -> dict[str, str]:
    return {value.lower(): value for value in VOCABULARY[key]}


def _around(look: Look, rng: np.random.Generator) -> str:
    if look.surroundings == "empty":
        return _pick(("The surroundings are empty.", "The place around it is empty."), rng)
    return _pick((f"Around it there are {look.surroundings}.", f"It is surrounded by {look.surroundings}."), rng)


def _writing(look: Look, rng: np.random.Generator) -> str:
    if not look.text:
        return _pick(("No text is shown.", "There is no writing."), rng)
    return _pick((f'The word "{look.text}" is written over the picture.', f'The text reads "{look.text}".'), rng)


def _pick(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
