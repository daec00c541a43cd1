"""Captions of rendered scenes: the attributes and their values, caption templates, and parsing captions back to fields.

scene = SceneAttributes(main_object="circle", colour="red", action="moves left", background="sea", ...)
short_caption(scene, rng)         "a red circle moves left over the sea"
fields_in(long_caption(scene, rng)) == scene.fields
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache

import numpy as np

from recaption.records import CaptionFields

ATTRIBUTE_VALUES: dict[str, tuple[str, ...]] = {
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
"""Attribute -> its possible values, in the exact words that captions use. No value is part of another one.

The first seven attributes are the fields of `CaptionFields`. `text` may also be "" (no text), `size` is "" where it changes
during the shot (grows, shrinks, zooms).
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneAttributes:
    """The content of one shot: one value of `ATTRIBUTE_VALUES` per attribute."""

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
        """The attributes that captions are evaluated on."""
        return CaptionFields(**{f.name: getattr(self, f.name) for f in dataclasses.fields(CaptionFields)})


_LOCATION_PHRASES = {
    "sky": ("in the sky", "up in the sky"),
    "sea": ("over the sea", "above the sea"),
    "sand": ("on the sand", "over the sand"),
    "grass": ("on the grass", "over the grass"),
    "night": ("at night", "in the dark of the night"),
    "ice": ("on the ice", "over the ice"),
    "brick wall": ("in front of a brick wall", "before a brick wall"),
    "road": ("on the road", "over the road"),
}
_BACKGROUND_PHRASES = {
    "sky": "a wide sky that fades downwards",
    "sea": "the sea with rows of thin waves",
    "sand": "bare sand with soft ripples",
    "grass": "a field of short grass",
    "night": "the dark night with tiny lights",
    "ice": "a sheet of ice with cracks",
    "brick wall": "a brick wall with rows of joints",
    "road": "a grey road with dashed lane lines",
}
"""None of these phrases may contain a value of another attribute: `fields_in` takes the first match."""
_WEATHER_PHRASES = {
    "clear": ("The air is clear", "The weather is clear"),
    "sunny": ("It is sunny", "The weather is sunny"),
    "rainy": ("It is rainy", "The weather is rainy, with drops falling"),
    "snowy": ("It is snowy", "The weather is snowy, with flakes falling"),
    "foggy": ("It is foggy", "The weather is foggy and pale"),
    "dusk": ("It is dusk", "The light is that of dusk"),
}
_CAMERA_PHRASES = {
    "fixed": "the camera is fixed",
    "pans left": "the camera pans left",
    "pans right": "the camera pans right",
    "zooms in": "the camera zooms in",
    "zooms out": "the camera zooms out",
}


def short_caption(scene: SceneAttributes, rng: np.random.Generator) -> str:
    """A caption like a user's prompt: one clause that names some of the attributes."""
    location = _pick(_LOCATION_PHRASES[scene.background], rng)
    subject = f"{scene.colour} {scene.main_object}"
    endings = [location]
    if scene.surroundings != "empty":
        endings += [f"{location} near some {scene.surroundings}", f"near some {scene.surroundings}"]
    if scene.text:
        endings.append(f'{location} under the word "{scene.text}"')
    text = f"{_article(subject)} {subject} {scene.action} {_pick(endings, rng)}"
    if scene.camera != "fixed":
        text += f" as {_CAMERA_PHRASES[scene.camera]}"
    return text


def long_caption(scene: SceneAttributes, rng: np.random.Generator) -> str:
    """A caption of 25 to 60 words that names all attributes; `rng` varies the wording, never the attribute values."""
    adjectives = " ".join(word for word in (scene.size, scene.texture, scene.colour) if word)
    subject = f"{_article(adjectives)} {adjectives} {scene.main_object}"
    location = _pick(_LOCATION_PHRASES[scene.background], rng)
    background = _BACKGROUND_PHRASES[scene.background]
    weather = _pick(_WEATHER_PHRASES[scene.weather], rng)
    style = f"{_article(scene.style)} {scene.style}"
    camera = _CAMERA_PHRASES[scene.camera]
    templates = (
        f"In {style} video, {subject} {scene.action} {location}. {_surroundings_sentence(scene, rng)} "
        f"The background is {background}. {weather}, and {camera}. {_text_sentence(scene, rng)}",
        f"{_capitalised(subject)} {scene.action} {location}, and {camera}. {_surroundings_sentence(scene, rng)} "
        f"Behind it lies {background}. {_text_sentence(scene, rng)} {weather}. The picture has {style} look.",
        f"{_capitalised(style)} clip shows {subject} that {scene.action}. {weather}. {_surroundings_sentence(scene, rng)} "
        f"Further back there is {background}. {_text_sentence(scene, rng)} All along, {camera}.",
        f"{weather}. Against {background}, {subject} {scene.action} while {camera}. {_surroundings_sentence(scene, rng)} "
        f"The drawing style is {scene.style}. {_text_sentence(scene, rng)}",
    )
    return _pick(templates, rng)


def fields_in(text: str) -> CaptionFields:
    """Parse the caption fields from any text: the first whole-word match per field, case-insensitive.

    A field that the text does not name is "". Works on the captions above and on those of a captioner trained on them.
    """
    return CaptionFields(**{f.name: attribute_in(text, f.name) for f in dataclasses.fields(CaptionFields)})


def describes_scene(text: str) -> bool:
    """Whether `text` describes a rendered scene: it names a shape followed by one of the actions.

    A caption of real footage may contain red, road or heart too; parsed as fields of a scene they would be wrong.
    """
    return _subject_pattern().search(text) is not None


@cache
def _subject_pattern() -> re.Pattern[str]:
    shapes, actions = ("|".join(map(re.escape, ATTRIBUTE_VALUES[key])) for key in ("main_object", "action"))
    return re.compile(rf"\b(?:{shapes}) (?:that )?(?:{actions})\b", re.IGNORECASE)


def attribute_in(text: str, key: str) -> str:
    """First value of the attribute `key` that `text` names; "" if it names none."""
    match = _value_pattern(key).search(text)
    return _value_of_lower_case(key)[match.group(0).lower()] if match else ""


@cache
def _value_pattern(key: str) -> re.Pattern[str]:
    return re.compile(r"\b(?:" + "|".join(map(re.escape, ATTRIBUTE_VALUES[key])) + r")\b", re.IGNORECASE)


@cache
def _value_of_lower_case(key: str) -> dict[str, str]:
    return {value.lower(): value for value in ATTRIBUTE_VALUES[key]}


def _surroundings_sentence(scene: SceneAttributes, rng: np.random.Generator) -> str:
    if scene.surroundings == "empty":
        return _pick(("The surroundings are empty.", "The place around it is empty."), rng)
    return _pick((f"Around it there are {scene.surroundings}.", f"It is surrounded by {scene.surroundings}."), rng)


def _text_sentence(scene: SceneAttributes, rng: np.random.Generator) -> str:
    if not scene.text:
        return _pick(("No text is shown.", "There is no writing."), rng)
    return _pick((f'The word "{scene.text}" is written over the picture.', f'The text reads "{scene.text}".'), rng)


def _pick(options: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
