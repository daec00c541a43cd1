"""Takes a caption out of what language models wrap around it: reasoning, chat markers, code fences, JSON, Markdown, HTML.

unwrap("<think>Let me see.</think>**Caption:** A dog runs.<|im_end|>")       "A dog runs."
unwrap('```json\n{"caption": "A dog runs."}\n```')                           "A dog runs."
unwrap("<think>The user wants")                                             unchanged: see `is_unfinished_reasoning`

Templates differ from model to model, so the patterns are general: anything of the form of a marker is one. Text without
markup is not changed, but for line ends.
"""

from __future__ import annotations

import ast
import html
import json
import re
from typing import Any

import regex

from recaption.captions.words import UNSPACED

MAX_CHARACTERS = 20_000
"""A longer text is no caption (2,000 words are 12,000 characters): what is in it is not looked for."""
_FLAGS = re.IGNORECASE | re.DOTALL
_REASONING_NAME = (
    r"(?:\w+[:_])?(?:(?:begin|start|end)_?(?:of_?)?)?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflect(?:ion)?|analysis|"
    r"analyze|scratch_?pad|plan(?:ning)?|inner_?monologue|rationale)"
)
"""`<think>`, `<seed:think>`, `<|begin_of_thought|>`, `<|START_THINKING|>`, `[THINK]`, `◁think▷`, `<reasoning>` ..."""
_REASONING_OPEN = re.compile(rf"[<◁\[]\|?(?!\|?(?:end|/)){_REASONING_NAME}\|?[>▷\]]", _FLAGS)
_REASONING_CLOSE = re.compile(
    rf"[<◁\[]\|?(?:/{_REASONING_NAME}|end_?(?:of_?)?(?:think(?:ing)?|thoughts?|reason(?:ing)?))\|?[>▷\]]", _FLAGS
)
_CHANNELS = re.compile(
    r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>(.*?)(?=<\|(?:end|return|start|call|channel)\|>|\Z)", _FLAGS
)
"""Channels of OpenAI's harmony format; the caption is in `final`."""
_UNUSED_REASONING = re.compile(r"<unused94>.*?<unused95>", _FLAGS)
"""Gemma writes its thoughts between two tokens without a name."""
_SPOKEN_REASONING = re.compile(
    r"\A\s*(?:here is my thought process|(?:\*\*|#+ *)?(?:reasoning|thinking|thought process|analysis)(?:\*\*)?)\s*:.*?"
    r"(?:here is my response|(?:\*\*|#+ *)?(?:final |the )?(?:answer|caption|response|description|output|conclusion)"
    r"(?:\*\*)?)\s*:\s*(?:\*\*)?",
    _FLAGS,
)
"""Reasoning with headings in place of markers: "Reasoning: ... Final answer: ..."."""
_QUESTION = re.compile(r"\A\s*(?:Q|Question|问题?|質問)\s*[:：].*?\b(?:A|Answer|答案?|回答)\s*[:：]\s*", re.DOTALL)
"""The question before its answer."""
_ANSWER = re.compile(
    r"<\|?(answer|caption|response|output|description|final(?:_answer)?|result|conclusion|begin_of_(?:solution|box|answer)|"
    r"start_response)\|?>(.*?)(?:</?\|?/?(?:\1|end_of_(?:solution|box|answer)|end_response)\|?>|\Z)",
    _FLAGS,
)
"""`<answer>...</answer>` and its kin: the caption is inside."""
_ROLE = r"(?:system|user|human|assistant|model|bot|gpt|ai|developer|tool)"
_TURN = re.compile(
    rf"<\|?(?:im_start|start_of_turn|start_header_id|start_of_role|start|role_start|turn|header_start)\|?>\s*({_ROLE})[^\S\n]*"
    rf"(?:<\|?(?:end_header_id|end_of_role|message|role_end|im_middle|im_sep|header_end)\|?>)?"
    rf"|<[|｜]\s*({_ROLE})\s*[|｜]>"
    rf"|(?:\A|(?<=\n)|(?<=[.!?>]\s))(?:###\s*)?({_ROLE.upper()}|Human|User|Assistant|"
    r"(?:GPT4 Correct |AI )Assistant)\s*[:：](?!\w)",
)
"""Where a turn of a chat begins, with its role."""
_ROLE_LINE = re.compile(r"\A\s*(?:assistant|model|gpt|bot|ai)\s*\n", re.IGNORECASE)
"""A role whose markers the tokenizer has left out."""
_OTHER_ROLES = ("system", "user", "human", "developer", "tool")
_END = re.compile(
    r"<\|(?:im_end|endoftext|eot_id|eom_id|end|end_of_text|eos|return|end_of_turn|eot|END_OF_TURN_TOKEN|end_of_sentence|"
    r"endofturn|end_of_role|end_of_utterance|eod|eoa|EOT)\|>|<｜end▁of▁sentence｜>|<(?:end_of_turn|end_of_utterance|eos|"
    r"im_end|end_of_text|endoftext|eot|eod|turn\|)>|</s>|\[/?EOS\]|\[/?eos\]"
)
"""What a model ends its turn with; what follows is another document."""
_MARKER = re.compile(
    r"<[|｜][^<>\n]{0,60}[|｜]>|<\|[^<>\n]{0,60}>|<[\w▁ ]{0,40}\|>"  # <|anything|>, and halves of it
    r"|</?\w*(?:_of_|_start|start_|_end|end_|_token|_id|image|video|audio|vision|img|frame)\w*/?>"
    r"|</?[a-z]\w*[_\d]\w*/?>"  # <row_1_col_1>: no word has an underscore or a digit in it
    r"|</?(?:s|pad|sot|eot|bos|eos|unk|sep|cls|mask|eod|eoa|eoc|bot|sop|eop|grounding|ref|box|quad|obj|patch)>"
    r"|<(?:unused|extra_id_|extra_|reserved_|special_|loc|seg|unk|0x)[\w-]*>|<\w+:[^<>\n]{0,60}>"  # <unused12>, <lora:x:1>
    r"|<</?SYS>>|\[/?(?:INST|SYS|CLS|SEP|PAD|UNK|MASK|BOS|EOS|gMASK|sMASK|IMG|VIDEO|IMAGE|AVAILABLE_TOOLS|TOOL_CALLS)\w*\]"
    r"|</?(?:human|user|assistant|system|model)>|\[\|[^\[\]\n]{0,40}\|\]"  # [|assistant|]
    r"|\[/?[A-Z]+_(?:START|END|TOKEN|CONTENT|PROMPT|RESULTS)\w*\]",
    re.IGNORECASE,
)
"""Tokens with a meaning for the model only, of any template."""
_HALF_MARKER = re.compile(r"<[|｜][\w▁ ]{0,30}\Z|\A[\w▁ ]{0,30}[|｜]>")
_TOKENIZER_SIGNS = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n", "ĉ": " "})
"""Spaces and line ends as byte-level tokenizers write them."""
_FENCE = re.compile(r"(?:```|~~~)[ \t]*([\w+-]*)[ \t]*\n?(.*?)(?:```|~~~|\Z)", re.DOTALL)
_COORDINATES = re.compile(r"<(\w+)>[\s\d(),.;<>\[\]]*</\1>")
"""Boxes and points beside what they locate: "<ref>a dog</ref><box>(1,2),(3,4)</box>"."""
_BOXED = re.compile(r"\\(?:boxed|text|textbf|mathrm)\{((?:[^{}]|\{[^{}]*\})*)\}")
_HTML_BREAK = re.compile(r"<(?:br|/p|/li|/div|/h[1-6]|/tr|hr)\b[^<>]*>", re.IGNORECASE)
_HTML_TAG = re.compile(
    r"</?(?:a|abbr|article|b|blockquote|body|br|center|cite|code|div|em|figcaption|figure|font|footer|h[1-6]|head|header|"
    r"hr|html|i|img|ins|kbd|label|li|link|main|mark|meta|ol|p|pre|q|section|small|span|strong|style|sub|summary|sup|table|"
    r"tbody|td|th|thead|title|tr|tt|u|ul|var|video|wbr|details|caption|description|answer|response|output|text|result)"
    r"(?:\s[^<>]*)?/?>|<!--.*?-->|<!doctype[^<>]*>|<(script|style|head)\b.*?</\1>",
    _FLAGS,
)
_HTML_PAGE = re.compile(r"\s*<(?:!doctype|html|head|body|script|\?xml)\b", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)
CAPTION_KEYS = (
    *("caption", "video_caption", "detailed_caption", "final_caption", "dense_caption", "long_caption", "clip_caption"),
    *("description", "video_description", "detailed_description", "clip_description", "scene_description"),
    *(
        "text",
        "answer",
        "final_answer",
        "response",
        "output",
        "result",
        "content",
        "summary",
        "value",
        "message",
        "title",
    ),
    *(
        "描述",
        "视频描述",
        "字幕",
        "标题",
        "説明",
        "キャプション",
        "설명",
        "캡션",
        "descripción",
        "beschreibung",
        "описание",
    ),
)
"""Keys of a JSON object that hold its caption, the likeliest first; compared in lower case, with "_" for spaces."""
MAX_BRACKETS = 200
"""Of a structured answer: more are nesting for its own sake."""
_CAPTION_VALUE = re.compile(
    r"""["']?\b(?:\w+[ _])?(?:caption|description)["']?\s*[:=]\s*"((?:[^"\\]|\\.)+)"\s*(?:[,}\]]|\Z)""", re.IGNORECASE
)
_NEWLINE_SIGN = re.compile(r"(?<=[.!?:;,。！？\s*])\\n|\\n(?=\\n|\s|[A-Z*#>\d-]|$)")
"""A line end that was escaped twice."""
_FRAME_LABEL = (
    r"(?:(?:the\s+)?(?:video\s+)?(?:frame|image|picture|photo|scene|shot|segment|clip|option|caption|version|frames|step|part)"
    r"|fotograma|imagen|escena|imagem|cena|quadro|immagine|scena|plan|bild|szene|кадр|сцена|изображение|フレーム|画像|シーン|場面"
    r"|프레임|이미지|장면|图|图片|帧|画面|镜头|场景|视频)"
)
_FRAME_NUMBER = re.compile(
    rf"(?:\A|\n|[.!?;,:。！？；，、]\s*|\s[-–—*]\s+)[\s>*#_\[(【-]*(?:{_FRAME_LABEL}\s*#?\s*(\d{{1,3}}|[A-D一二三四五六七八九十])"
    r"(?:\s*[-–~]\s*\d{1,3})?|第\s*([\d一二三四五六七八九十]{1,3})\s*(?:帧|幀|张图?片?|張|幅|个画面|幕|镜头|フレーム|コマ|枚)"
    r"|프레임\s*(\d+))[\])】]?\s*(?:\([^()\n]{0,20}\)\s*)?(?:\*\*|__)?\s*[:：.)–—-]",
    re.IGNORECASE,
)
"""The number of a frame, shot or suggestion before a text about it: "Frame 2:", "**Image 3** -", "第二帧："."""
_TIMESTAMP = re.compile(
    r"(?:\A|\n|[.!?;。！？]\s+)[\s>*#_-]*[\[(<]?(\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?|\d{1,3}(?:\.\d+)?\s?s(?:ec(?:onds)?)?)"
    r"(?:\s*(?:-->|-|–|—|to|~)\s*\d{1,3}(?::\d{2}){0,2}(?:[.,]\d{1,3})?\s?(?:s|sec|seconds)?)?[\])>]?(?:\*\*|__)?\s*[:：\])–—-]?(?=\s|\S)(?<=[:：\])>–—-])"
)
"""A time before the text about it: "[00:02] ...", "0:00-0:04: ..."."""
_ORDINAL_FRAME = re.compile(
    r"\b(first|second|third|fourth|fifth|sixth|seventh|eighth|next|last|final)\s+(?:frame|image|photo|picture|shot)\b",
    re.IGNORECASE,
)
_SUGGESTIONS = re.compile(
    r"\A\W*(?:sure\W+|certainly\W+|of course\W+)?(?:here are|below are|i (?:have|can offer))\s+(?:\w+\s+){0,3}?"
    r"(?:\d+|two|three|four|five|some|several|few|possible|different|alternative|potential)\s+(?:\w+\s+){0,3}?"
    r"(?:captions|options|descriptions|suggestions|versions|alternatives|ideas|variations)\b",
    re.IGNORECASE,
)
"""The opening of several captions to choose from."""
_SEVERAL, _SEVERAL_ORDINALS = 2, 3
"""From so many numbered frames, times or suggestions on, or frames named by their place, a text is a list of them."""
_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t#]*$", re.MULTILINE)
_RULE = re.compile(r"^[ \t]*(?:[-*_=][ \t]*){3,}$", re.MULTILINE)
_BOLD_LABEL = re.compile(
    r"^([ \t>]*(?:[-*+•‣▪●○◦·]|\d{1,2}[.)])?[ \t]*)(?:\*\*|__)[ \t]*([^*_\n:：]{1,40})[ \t]*"
    r"(?:[:：][ \t]*(?:\*\*|__)|(?:\*\*|__)[ \t]*[:：])[ \t]*",
    re.MULTILINE,
)
_PLAIN_LABEL = re.compile(
    r"^([ \t>]*(?:[-*+•‣▪●○◦·]|\d{1,2}[.)])?[ \t]*)([^\W\d][\w /&'-]{1,30})[:：][ \t]+(?=\S)", re.MULTILINE
)
MAX_LABEL_WORDS = 4
_BULLET = re.compile(
    r"^[ \t>]*(?:[-*+•‣▪●○◦·–—][ \t]+|\(?\d{1,2}[.)][ \t]+|[①-⑳]|[一二三四五六七八九十]、)", re.MULTILINE
)
_QUOTE = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_EMPHASIS = re.compile(r"(\*\*\*|\*\*|__|~~|\*)(?=\S)([^*\n]*?\S)\1(?!\w)|(?<!\w)_(?=[^\s_])([^_\n]*[^\s_])_(?!\w)")
_STRAY_SIGNS = re.compile(r"\*\*+|(?<!\w)__+|__+(?!\w)|\s#{2,}\s*\Z|(?<=[.!?])#{2,}\s*\Z")
_LINK = re.compile(r"!\[[^\[\]\n]{0,300}\]\([^()\n]{0,2000}\)|\[([^\[\]\n]{1,300})\]\((?:https?:|/|#)[^()\n]{0,2000}\)")
_CODE = re.compile(r"(?<!`)`++([^`\n]++)`++")
_ESCAPED = re.compile(r"\\([*_#`~>\[\]])")
_LINE_END = r"[.!?:;,…。！？：；，、।؟။]['\"”’」』)）*_]*\s*$"
_OPEN_QUOTES = {'"': '"', "“": "”", "«": "»", "「": "」", "『": "』", "„": "“", "‘": "’", "《": "》"}
LEFT_OVER = re.compile(
    r'\A\s*[\[{]\s*["\'{\[]|"\w+"\s*:\s*["\[{\d]|```|\|\s*:?-{3,}|</?(?:div|span|table|script|html|head|body|svg)\b|<!doctype|<\?xml|\A\s*</?\w+>\s*\Z'
)
"""Markup that no caption came out of: structured answers without a caption in them, code, tables."""


def unwrap(text: str) -> str:
    """The caption inside of its markup, on lines; see the module. Idempotent together with `text.normalize_text`."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if is_unfinished_reasoning(text):
        return text
    text = _without_reasoning(text)
    if len(text) > MAX_CHARACTERS:
        return text
    text = _ROLE_LINE.sub("", text)
    if "<" in text or "[" in text or ":" in text or "：" in text or "|>" in text:
        text = _without_chat(text)
    if any(sign in text for sign in "ĠĊ▁") and not regex.search(r"[ĠĊ]\w*[ġċ]", text):
        text = text.translate(_TOKENIZER_SIGNS)
    text = _NEWLINE_SIGN.sub("\n", text)
    text = _without_html(text)
    text = _without_fence(text)
    text = _BOXED.sub(r"\1", text)
    text = _without_json(text)
    text = _without_quotes(_without_markdown(text))
    return _joined(text)


def is_unfinished_reasoning(text: str) -> bool:
    """Whether the text is thoughts to its end: the model reached its length limit before the caption."""
    opened = list(_REASONING_OPEN.finditer(text))
    if not opened:
        return False
    closed = list(_REASONING_CLOSE.finditer(text))
    is_open = not closed or closed[-1].start() < opened[-1].start()
    return (is_open and not _MARKER.sub("", text[: opened[-1].start()]).strip()) or (
        is_open and bool(closed) and not text[closed[-1].end() : opened[-1].start()].strip()
    )


def is_list(text: str) -> bool:
    """Whether the text describes frames one by one, or offers several captions."""
    numbers = {next(filter(None, found.groups())) for found in _FRAME_NUMBER.finditer(text)}
    times = {found.group(1) for found in _TIMESTAMP.finditer(text)}
    ordinals = {found.group(1).lower() for found in _ORDINAL_FRAME.finditer(text)}
    is_numbered = len(numbers) >= _SEVERAL or len(times) >= _SEVERAL
    return is_numbered or len(ordinals) >= _SEVERAL_ORDINALS or bool(_SUGGESTIONS.match(text))


def _without_reasoning(text: str) -> str:
    """What follows the last closing tag, or stands before an open one."""
    channels = _CHANNELS.findall(text)
    if channels:
        finals = [content for name, content in channels if name.lower() == "final"]
        return finals[-1] if finals else ""
    text = _UNUSED_REASONING.sub(" ", text)
    while closes := list(_REASONING_CLOSE.finditer(text)):
        after = text[closes[-1].end() :]
        opens = [found for found in _REASONING_OPEN.finditer(text) if found.start() < closes[0].start()]
        before = text[: opens[0].start()] if opens else ""
        text = after if _MARKER.sub("", after).strip() else before
    opened = _REASONING_OPEN.search(text)
    if opened and text[: opened.start()].strip():
        text = text[: opened.start()]
    answers = [content for _, content in _ANSWER.findall(text) if content.strip()]
    if answers:
        text = answers[-1]
    return _QUESTION.sub("", _SPOKEN_REASONING.sub("", text))


def _without_chat(text: str) -> str:
    """The assistant's first turn, up to its end, without markers."""
    turns = list(_TURN.finditer(text))
    if turns:
        roles = [next(filter(None, found.groups())).lower() for found in turns]
        bounds = [found.start() for found in turns[1:]] + [len(text)]
        answer = next((i for i, role in enumerate(roles) if role not in _OTHER_ROLES), None)
        if text[: turns[0].start()].strip(" \n") and _MARKER.sub("", text[: turns[0].start()]).strip():
            text = text[: turns[0].start()]
        elif answer is not None:
            text = text[turns[answer].end() : bounds[answer]]
    if "[/INST]" in text:
        text = text.rsplit("[/INST]", 1)[1] if text.rsplit("[/INST]", 1)[1].strip() else text
    for found in _END.finditer(text):
        if _MARKER.sub("", text[: found.start()]).strip():
            text = text[: found.start()]
            break
    text = _COORDINATES.sub(" ", text)
    return _HALF_MARKER.sub("", _MARKER.sub(" ", text))


def _without_html(text: str) -> str:
    """Without tags and with letters for entities; a whole page, which is no caption, stays as it is."""
    if _HTML_PAGE.match(text):
        return text
    text = _HTML_TAG.sub("", _HTML_BREAK.sub("\n", text)) if "<" in text else text
    return _ENTITY.sub(lambda found: html.unescape(found.group()), text) if "&" in text else text


def _without_fence(text: str) -> str:
    """The contents of a code fence in place of it; all around it is dropped where the contents are a structured answer."""
    found = _FENCE.search(text)
    if not found:
        return text
    inside = found.group(2).strip()
    if found.group(1).lower() in ("json", "yaml", "xml", "python") or inside[:1] in ("{", "["):
        return inside
    return text[: found.start()] + "\n" + inside + "\n" + text[found.end() :]


def _without_json(text: str) -> str:
    """The caption of a JSON answer; the text itself where it is none, or has no caption."""
    stripped = text.strip()
    has_key = re.match(r"""["']?caption["']?\s*[:=]\s*["']""", stripped)
    if not has_key and "{" not in stripped and not (stripped[:1] == "[" and stripped[-1:] == "]"):
        return text
    start = min((at for at in (stripped.find("{"), stripped.find("[")) if at >= 0), default=0)
    end = max(stripped.rfind("}"), stripped.rfind("]")) + 1
    tree = _parse(stripped[start:end])
    caption = None if tree is None else _caption_in(tree)
    if caption is None and (found := _CAPTION_VALUE.search(stripped)):
        value = _parse(f'"{found.group(1)}"')
        caption = value if isinstance(value, str) else found.group(1)
    return caption if caption else text


def _parse(text: str) -> Any:
    """The value of a JSON or Python literal; None where it is neither."""
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        return None
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _caption_in(tree: Any, depth: int = 0) -> str | None:
    """The one caption in a parsed answer; lists of sentences are joined."""
    if depth > 4:
        return None
    if isinstance(tree, str):
        return tree.strip() or None
    if isinstance(tree, list):
        found = [_caption_in(value, depth + 1) if not isinstance(value, (int, float)) else None for value in tree]
        return "\n".join(f"- {text}" for text in found if text) if found and all(found) else None
    if not isinstance(tree, dict):
        return None
    values = {str(key).strip().lower().replace(" ", "_").replace("-", "_"): value for key, value in tree.items()}
    for key in CAPTION_KEYS:
        if key in values and (text := _caption_in(values[key], depth + 1)):
            return text
    if len(values) == 1:
        return _caption_in(next(iter(values.values())), depth + 1)
    nested = [text for value in values.values() if isinstance(value, dict) and (text := _caption_in(value, depth + 1))]
    return nested[0] if len(nested) == 1 else None


def _without_markdown(text: str) -> str:
    if not text.strip():
        return text
    text = _LINK.sub(lambda found: found.group(1) or "", text)
    text = _RULE.sub("", text)
    text = _without_headings(text)
    text = _BOLD_LABEL.sub(_drop_label, text)
    if len(re.findall(_PLAIN_LABEL, text)) > 1:
        text = _PLAIN_LABEL.sub(_drop_label, text)
    if len(_BULLET.findall(text)) > 1 or re.match(r"\s*(?:[-*•][ \t]+|1[.)][ \t]+)\S", text):
        text = _BULLET.sub(_BULLET_SIGN, text)
    text = _QUOTE.sub("", text)
    for _ in range(3):  # bold around italics
        text = _EMPHASIS.sub(lambda found: found.group(2) or found.group(3), text)
    return _ESCAPED.sub(r"\1", _CODE.sub(r"\1", _STRAY_SIGNS.sub("", text)))


_BULLET_SIGN = "\ue000"
"""Stands for the bullet of a list, so that `_joined` can end its sentences."""


def _without_headings(text: str) -> str:
    """Headings are dropped where other text is left; a heading alone loses its signs only."""
    rest = _HEADING.sub("", text)
    if rest.strip():
        return _HEADING.sub(lambda found: found.group(1) if _FRAME_NUMBER.match(found.group(1) + ":") else "", text)
    return _HEADING.sub(r"\1", text)


def _drop_label(found: re.Match[str]) -> str:
    label = found.group(2).strip()
    is_frame = bool(_FRAME_NUMBER.match(label + ":")) or bool(_TIMESTAMP.match(label + ":")) or label[:1].isdigit()
    if is_frame:
        return f"{_BULLET_SIGN}{label}: "
    if len(label.split()) > MAX_LABEL_WORDS:
        return found.group()
    return _BULLET_SIGN


def _without_quotes(text: str) -> str:
    """Without quotation marks around the whole text."""
    stripped = text.strip()
    close = _OPEN_QUOTES.get(stripped[:1])
    if close and len(stripped) > 2 and stripped[-1] == close:
        inside = stripped[1:-1]
        if close not in inside and stripped[0] not in inside:
            return inside
    return text


def _joined(text: str) -> str:
    """Lines joined: listed ones as sentences, and without a space between scripts that have none."""
    lines = [line.strip() for line in text.split("\n") if line.strip(" \t\ue000")]
    parts: list[str] = []
    for line in lines:
        is_listed = line.startswith(_BULLET_SIGN)
        if is_listed and parts and not re.search(_LINE_END, parts[-1]):
            parts[-1] += "。" if regex.search(rf"{UNSPACED}\Z", parts[-1], regex.VERSION1) else "."
        parts.append(line.replace(_BULLET_SIGN, "").strip())
    return regex.sub(
        rf"(?<=[{UNSPACED}。！？，、；：」』）])\n(?=[{UNSPACED}「『（])", "", "\n".join(parts), flags=regex.VERSION1
    )
