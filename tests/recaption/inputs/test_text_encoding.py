"""Side texts and lists in the encodings that people save them in."""

from __future__ import annotations

import io
import random

import pytest
from PIL import Image

from recaption.inputs.text_encoding import decode_text

CHINESE = [
    "一只狗在海滩上奔跑，镜头跟随着它。",
    "红色的圆圈向左移动",
    "一个小女孩在花园里追逐蝴蝶",
    "两个人在打篮球",
    "夜晚的城市街道，霓虹灯闪烁，行人撑着伞走过湿漉漉的路面。",
]
TRADITIONAL = ["一隻狗在海灘上奔跑。", "紅色的圓圈向左移動", "一個小女孩在花園裡追逐蝴蝶", "夜晚的城市街道"]
JAPANESE = [
    "犬が砂浜を走っている。",
    "赤いドレスの女性が街を歩いています。",
    "夕日の海",
    "男性が台所で野菜を切っている",
]
KOREAN = ["개가 해변을 달린다.", "빨간 원이 왼쪽으로 움직인다.", "남자가 부엌에서 요리를 한다"]
WESTERN = [
    "A café in Zürich.",
    "Un niño corre por la playa.",
    "Señor, ¿dónde está el niño?",
    "Ein Hund läuft über die Wiese.",
    "Le garçon mange une pêche à la crème.",
    "Une fille à la plage",
    "São Paulo à noite",
    "smørrebrød på bordet",
    "“A dog” runs – it’s fast…",
    "100° F, ½ cup",
    "DÉJÀ VU",
    "Straße in München",
]
CENTRAL = ["Pes běží po pláži a štěká.", "Żółty pies biegnie po plaży.", "Egy kutya fut a tengerparton, őszi fény."]
RUSSIAN = ["Собака бежит по пляжу.", "Женщина готовит суп на кухне, крупный план."]
ARABIC = ["كلب يركض على الشاطئ", "امرأة ترتدي فستانا أحمر تمشي في الشارع"]
HEBREW = ["כלב רץ על החוף.", "אישה בשמלה אדומה הולכת ברחוב"]
THAI = ["สุนัขวิ่งบนชายหาด", "ผู้หญิงใส่ชุดสีแดงเดินบนถนน"]
GREEK, TURKISH = ["Ένας σκύλος τρέχει στην παραλία."], ["Bir köpek sahilde koşuyor, güneş batıyor."]
LITHUANIAN = ["Šuo bėga paplūdimiu ir džiaugiasi."]
ALL = [*CHINESE, *TRADITIONAL, *JAPANESE, *KOREAN, *WESTERN, *CENTRAL, *RUSSIAN, *ARABIC, *HEBREW, *THAI, *GREEK]
TEXTS_BY_ENCODING = {
    **dict.fromkeys(["gbk", "gb18030", "hz"], CHINESE),
    "big5": TRADITIONAL,
    **dict.fromkeys(["cp932", "euc_jp", "iso2022_jp"], JAPANESE),
    **dict.fromkeys(["cp949", "euc_kr"], KOREAN),
    "cp1252": WESTERN,
    "latin-1": WESTERN[:8],
    "cp1250": CENTRAL,
    **dict.fromkeys(["cp1251", "koi8-r", "cp866"], RUSSIAN),
    "cp1253": GREEK,
    "cp1254": TURKISH,
    "cp1255": HEBREW,
    "cp1256": ARABIC,
    "cp1257": LITHUANIAN,
    "cp874": THAI,
    **dict.fromkeys(["utf-8", "utf-8-sig", "utf-16", "utf-32"], ALL),
    **dict.fromkeys(["utf-16-le", "utf-16-be"], ("/v/A dog runs.mp4", *CHINESE[:2], *JAPANESE[:1], *WESTERN[:3])),
}


@pytest.mark.parametrize("encoding", TEXTS_BY_ENCODING)
def test_text_is_decoded_by_detection(encoding):
    texts = TEXTS_BY_ENCODING[encoding]
    assert [decode_text(text.encode(encoding)) for text in texts] == list(texts)
    lines = "\r\n".join(texts)
    assert decode_text(lines.encode(encoding)) == lines
    assert decode_text("Собака бежит по пляжу.".encode("utf-16-le")) == "Собака бежит по пляжу."


def test_control_characters_become_spaces_and_cut_utf8_is_read_to_its_last_whole_character():
    assert decode_text(b"A dog\0runs\tand\njumps\0\0") == "A dog runs\tand\njumps"
    assert decode_text(b"") == ""
    assert decode_text("犬が走".encode()[:-1]) == "犬が"
    assert decode_text(b"\x1b[31mA red dog\x1b[0m") == "A red dog"
    assert decode_text(b"caf\xe9") == "café"


def test_bytes_that_are_no_text_are_refused():
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    rng = random.Random(1)
    binary = [
        picture.getvalue(),
        b"\0\0\0 ftypisom\0\0\2\0isomiso2mp41",
        b"PK\3\4\x14\0\0\0\x08\0",
        b"\x7fELF\2\1\1\0\0\0\0\0",
    ]
    binary += [rng.randbytes(size) for size in (50, 200, 2000) for _ in range(50)]
    assert [data[:20] for data in binary if decode_text(data) is not None] == []
    assert decode_text(b"it\xe2\x80\x99s a caf\xe9") is None  # two encodings in one text
