"""Text of unknown encoding: bytes of side texts and lists -> text, or None where they are no text for certain.

    decode_text("A café.".encode("cp1252"))        # "A café."
    decode_text("一只狗在海滩上奔跑。".encode("gbk"))  # "一只狗在海滩上奔跑。"
    decode_text(jpeg_bytes)                        # None

A byte order mark decides; bytes that are valid UTF-8 are UTF-8; what else there is, chardet ranks, and the first of its
encodings is taken that makes plausible text. Measured on 94 short texts of 20 languages in 24 encodings: 91 right, the
others of one or two odd letters; charset-normalizer had 22 of 37 right.
"""

from __future__ import annotations

import codecs
import re

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ENCODINGS = (
    *("gb18030", "big5hkscs", "cp932", "euc_jis_2004", "cp949", "hz", "iso2022_jp_2", "iso2022_kr"),
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("koi8-r", "koi8-u", "cp866", "cp874", "utf-16-le", "utf-16-be"),
)
"""Those in which people save text files: the East Asian ones, the Windows code pages (supersets of most of ISO 8859),
KOI8, and UTF-16 without a byte order mark."""
MAX_CONTROL_FRACTION = 0.1
"""Of a text's characters; a binary file has more."""
MIN_LETTER_FRACTION = 0.3
"""Of its characters that are no spaces, for encodings that had to be guessed: letters, marks and digits."""
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_UTF8_PUNCTUATION = re.compile(rb"\xe2\x80[\x90-\xba]")
"""Dashes and quotation marks in UTF-8: beside bytes that are not UTF-8 they prove two encodings in one text."""
_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""What terminals colour logs with."""
_NUL_OFTEN = 0.2
"""Fraction of NUL bytes above which ASCII is UTF-16 without a byte order mark (there it is about half)."""
_ESCAPES = (b"\x1b$", b"\x1b(", b"~{")
"""Escape sequences of the 7-bit East Asian encodings, whose bytes are valid ASCII."""
WESTERN_PRIOR = 1.35
"""Windows-1252 wins over an encoding that chardet holds for up to so much likelier: the letters of a short text say little
("niño" and "nińo"), and it is the most frequent one by far."""
MIN_SCRIPT_FRACTION = 0.2
"""Letters of an alphabet beside Latin, of all letters, in a single-byte encoding of it: "fille а la" has fewer."""
MIN_COMMON_FRACTION = 0.8
"""Of the Chinese characters and Korean syllables of a guessed text: in GB 2312, JIS X 0208, KS X 1001 or Big5's level 1."""
BIG5_LEVEL_2 = 0xC9
"""First byte of the less frequent characters of Big5."""
_IMPLAUSIBLE = (
    r"[\p{Cn}\p{Co}\p{Cs}\p{Cc}--[\t-\r]]",  # not assigned, private use
    r"[ÃÂ][\u0080-\u00bf]|â€|ï»¿|\ufffd",  # UTF-8 read as Windows-1252: bytes of two encodings in one text
    r"\p{L}[\p{Sc}\p{So}\p{Sm}¡-¿×÷]\p{L}",  # a symbol inside a word
    r"\p{Ll}\p{Lu}\p{Ll}",  # a capital inside a word
    r"[ˇ˘˙˛˝]",  # accents without a letter
)
"""What a text in its right encoding does not have (patterns of the `regex` module)."""
_SCRIPTS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}ー",
    *(r"\p{Hangul}", r"\p{Cyrillic}", r"\p{Greek}", r"\p{Hebrew}", r"\p{Arabic}", r"\p{Thai}"),
)
"""Alphabets that stand beside Latin in one text, but not beside each other."""


def decode_text(data: bytes) -> str | None:
    """The text in `data`, without byte order mark, control characters but tabs and line ends as spaces; None if it is none.

    UTF-8 that was cut inside its last character is read up to there.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _readable(_decode(data, encoding))
    is_7_bit = any(escape in data for escape in _ESCAPES)
    utf8 = _readable(_decode_utf8(data))
    if utf8 is not None and not (is_7_bit and utf8.isascii()):
        return utf8
    if _UTF8_PUNCTUATION.search(data):
        return None
    utf16 = ["utf-16-le", "utf-16-be"] if data[1::2].count(0) >= data[0::2].count(0) else ["utf-16-be", "utf-16-le"]
    if data.count(0) > _NUL_OFTEN * len(data):
        return _readable(_decode(data, utf16[0]))
    may_be_utf16 = not len(data) % 2 and _CONTROL.search(data.decode("latin-1"))  # as Cyrillic and "。" are there
    for encoding in _ranked_encodings(data) + (utf16 if may_be_utf16 else []):
        text = _readable(_decode(data, encoding))
        if text is not None and _is_plausible(text):
            return text
    return utf8


def likely_encoding(head: bytes) -> str | None:
    """The encoding of a text whose beginning this is, by Python's name; None where it is none."""
    if decode_text(head) is None:
        return None
    if _decode_utf8(head) is not None:
        return "utf-8"
    return next((one for one in _ranked_encodings(head) if (text := _decode(head, one)) and _is_plausible(text)), None)


def _ranked_encodings(data: bytes) -> list[str]:
    """Encodings that the text may have, the likeliest first."""
    import chardet

    confidence = {
        str(found["encoding"]).lower(): found["confidence"]
        for found in chardet.detect_all(data, include_encodings=ENCODINGS, ignore_threshold=True)
        if found["encoding"]
    }
    if "windows-1252" in confidence:
        confidence["windows-1252"] *= WESTERN_PRIOR
    return sorted(confidence, key=lambda encoding: -confidence[encoding])


def _decode(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except (UnicodeError, LookupError):
        return None


def _decode_utf8(data: bytes) -> str | None:
    """None where it is not UTF-8; an incomplete last character is left out."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(data)
    except UnicodeDecodeError:
        return None
    is_cut = bool(decoder.getstate()[0])
    return None if is_cut and text[-1:].isascii() else text  # after ASCII, an odd byte is a letter of another encoding


def _readable(text: str | None) -> str | None:
    """Control characters as spaces; None where they are many, as in a binary file."""
    if text is None:
        return None
    readable, num_controls = _CONTROL.subn(" ", _ANSI_COLOUR.sub("", text).lstrip("\ufeff").rstrip("\0"))
    return None if num_controls > MAX_CONTROL_FRACTION * len(readable) else readable


def _is_common_east_asian(characters: list[str]) -> bool:
    """Whether most characters are among the common ones: of random characters, some 40 % of the Chinese ones are."""

    def is_common(character: str) -> bool:
        big5 = character.encode("big5", "ignore")
        in_others = any(character.encode(encoding, "ignore") for encoding in ("gb2312", "shift_jis", "euc_kr"))
        return in_others or (bool(big5) and big5[0] < BIG5_LEVEL_2)

    return sum(map(is_common, characters)) >= MIN_COMMON_FRACTION * len(characters)


def _is_plausible(text: str) -> bool:
    """Whether a guessed encoding makes words: of one alphabet beside Latin, without what no text has."""
    import regex

    visible = "".join(text.split())
    letters = regex.findall(r"[\p{L}\p{M}]", visible)
    num_letters = len(letters) + len(regex.findall(r"\p{N}", visible))
    if num_letters < max(1, MIN_LETTER_FRACTION * len(visible)):
        return False
    if any(regex.search(pattern, text, regex.VERSION1) for pattern in _IMPLAUSIBLE):
        return False
    counts = [len(regex.findall(f"[{script}]", visible)) for script in _SCRIPTS]
    is_east_asian = bool(counts[0] or counts[1])
    if is_east_asian and not _is_common_east_asian(regex.findall(r"[\p{Han}\p{Hangul}]", visible)):
        return False
    if sum(count > 0 for count in counts) > 1 and not (is_east_asian and not any(counts[2:])):
        return False
    return is_east_asian or not any(counts) or sum(counts) >= MIN_SCRIPT_FRACTION * len(letters)
