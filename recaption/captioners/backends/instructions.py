"""What captioners that are asked in words are asked, by kind of caption."""

from __future__ import annotations

from recaption.errors import UsageError

_PLAIN = "Answer with the text alone, without introduction."


QUESTIONS = {
    "descriptive": (
        "Describe this video clip in one paragraph of at most 80 words: the main object and what it does, its colours, "
        "the surroundings, the background, any text that can be read, the style, and how the camera moves. Say only what "
        f"can be seen. {_PLAIN}"
    ),
    "short": f"Describe the main object of this video clip and what it does, in one sentence of at most 15 words. {_PLAIN}",
    "main_object": f"What is the main object of this video clip? {_PLAIN}",
    "action": f"What does the main object of this video clip do? {_PLAIN}",
    "surroundings": f"What is around the main object of this video clip? {_PLAIN}",
    "background": f"What is the background of this video clip? {_PLAIN}",
    "text": f"Which text can be read in this video clip? {_PLAIN}",
    "style": f"What is the visual style of this video clip? {_PLAIN}",
    "colour": f"Which colours does this video clip have? {_PLAIN}",
}


def question_for(kind: str, own: str) -> str:
    """The question of a kind; `own`, the user's, is asked for descriptive captions."""
    if kind not in QUESTIONS:
        raise UsageError(f"there is no question for captions of kind {kind!r}; there are {', '.join(QUESTIONS)}")
    return own if own and kind == "descriptive" else QUESTIONS[kind]
