"""Instructions for vision-language models, one per caption kind."""

from __future__ import annotations

from recaption.errors import UsageError

_TEXT_ONLY = "Answer with the text alone, without introduction."
INSTRUCTIONS = {
    "descriptive": (
        "Describe this video clip in one paragraph of at most 80 words: the main object and what it does, its colours, "
        "the surroundings, the background, any text that can be read, the style, and how the camera moves. Say only what "
        f"can be seen. {_TEXT_ONLY}"
    ),
    "short": (
        "Describe the main object of this video clip and what it does, in one sentence of at most 15 words. "
        f"{_TEXT_ONLY}"
    ),
    "main_object": f"What is the main object of this video clip? {_TEXT_ONLY}",
    "action": f"What does the main object of this video clip do? {_TEXT_ONLY}",
    "surroundings": f"What is around the main object of this video clip? {_TEXT_ONLY}",
    "background": f"What is the background of this video clip? {_TEXT_ONLY}",
    "text": f"Which text can be read in this video clip? {_TEXT_ONLY}",
    "style": f"What is the visual style of this video clip? {_TEXT_ONLY}",
    "colour": f"Which colours does this video clip have? {_TEXT_ONLY}",
}


def instruction_for(kind: str, user_instruction: str) -> str:
    """The instruction of a caption kind; `user_instruction`, where not empty, replaces that of descriptive captions."""
    if kind not in INSTRUCTIONS:
        raise UsageError(f"no instruction for captions of kind {kind!r}; kinds are {', '.join(INSTRUCTIONS)}")
    return user_instruction if user_instruction and kind == "descriptive" else INSTRUCTIONS[kind]
