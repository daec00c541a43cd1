"""Phrases around a caption that describe no clip: "The video shows", "Here is a caption:", "Let me know if".

leading().match("In this video, we see a dog.").end()         # 22: what follows is the caption
closing().search("A dog runs. Let me know if you need more!") # from "Let me know" to the end

One table per place, one row per kind of phrase and language. Only the medium itself is boilerplate: "A flat clip shows",
"The drone footage shows" and "A black and white photo of" describe the style of the clip.
"""

from __future__ import annotations

import re
from functools import cache

_MEDIUM_NOUN = r"video|clip|footage|image|photo|photograph|picture|visual"
_MEDIUM = (
    rf"(?:(?:short|brief|given|provided|attached|uploaded|shared|following|above|entire|whole|same)\s+)?"
    rf"(?:(?:sequence|series|set|collection|succession)\s+of\s+)?(?:(?:the|these|video|film|still|consecutive|\d+|{{numbers}})\s+)*"
    rf"(?:video\s+clip|(?:image|frame|video)\s+(?:sequence|segment|frame)|{_MEDIUM_NOUN}|frame|scene|sequence)s?"
    rf"(?:\s+(?:provided|given|sequence|you\s+(?:have\s+)?(?:provided|shared|sent|uploaded)))?"
).replace("{numbers}", "two|three|four|five|six|seven|eight|nine|ten|sixteen")
_SEES = (
    r"(?:we|you|one|viewers?|the\s+viewer)\s+(?:can\s+)?(?:clearly\s+)?"
    r"(?:see|sees|observe|observes|watch|watches|are\s+shown)"
)
_SHOWS = (
    r"(?:(?:appears?|seems?)\s+to\s+)?(?:primarily\s+|mainly\s+|simply\s+|clearly\s+)?"
    r"(?:shows?|showcases?|depicts?|displays?|features?|captures?|presents?|portrays?|contains?|illustrates?|showing)"
)
_TEXT_NOUN = r"(?:caption|description|summary|answer|response|breakdown|analysis|overview|rewrite|narration)"

_LEADING_BY_LANGUAGE = {
    # "Sure!", "Certainly, I'd be happy to help.", "Okay,"
    "en agreement": r"""
      (?:sure(?:\s+thing)?|certainly|of\ course|okay|ok|alright|absolutely|got\ it|great|understood|no\ problem
        |yes|gladly
        |(?:great|good|nice|excellent)\ (?:question|video|clip|choice))
        \s*[,.!:]+\s*
    | (?:i\ would|i['’]d|i\ will|i['’]ll|i['’]m|i\ am)\s+(?:be\s+)?(?:happy|glad|delighted
        |pleased)\s+to\s+[^.!:\n]{0,60}[.!:]\s*
    | thank(?:s|\ you)\s+for\s+[^.!:\n]{0,60}[.!:]\s*""",
    # "Here's a detailed description of the video:", "Here is the caption you asked for - ", "Below is a caption:"
    "en introduction": rf"""
      here\s+you\s+(?:go|are)\s*[:!.]\s*
    | (?:in\ (?:summary|short|brief)|to\ summari[sz]e|overall|in\ conclusion)\s*,\s*
    | here(?:\ is|\ are|['’]s)\s+[^:.\n]{{0,80}}:\s*
    | (?:here(?:\ is|['’]s)|below\ is|the\ following\ is|this\ is)\s+(?:an?|the|my
        |your)\s+[^:.\n]{{0,40}}?{_TEXT_NOUN}\b[^:.\n–—-]{{0,50}}
        (?:\s*:\s*|\s+[-–—]\s+|\.\s+)
    | (?:the|this)\s+{_MEDIUM}\s+(?:can|could|may|might)\s+be\s+(?:described|summari[sz]ed
        |captioned)\s*(?:as(?:\s+follows)?)?\s*:\s*
    | (?:my|the|this)\s+(?:\w+\s+)?{_TEXT_NOUN}(?:\s+(?:of|for)\s+(?:the|this)\s+{_MEDIUM})?\s+(?:is
        |would\ be)\s*(?:as\ follows)?\s*:\s*
    | (?:let\ me|i['’]ll|i\ will|i\ would)\s+(?:describe|caption|summari[sz]e)\s+[^:.\n]{{0,60}}[:.]\s*
    | these\s+are\s+\d+\s+frames\s+of\s+one\s+video\s+clip[^.\n]{{0,20}}\.\s*
    | (?:please\s+)?(?:describe|caption)\s+(?:this|the|these)\s+{_MEDIUM}[^:.\n]{{0,40}}[:.]\s*""",
    # "Caption:", "Video description -", "Final answer:"
    "en label": rf"""
      (?:(?:the|a|an|my|video|clip|image|scene|frame|short|long|brief|detailed|dense|concise|generated|final
        |suggested|possible|proposed|
          english|alternative|full|one-sentence|training|text)\s+)*
        (?:{_TEXT_NOUN}|output|assistant|result|ai|title|subtitle
        |headline)s?\s*(?:\(\w[^()\n]{{0,30}}\)\s*)?(?::|\s[-–—]\s)\s*""",
    # "We can see", "Here you see"
    "en viewer": rf"(?:here\s*,?\s+)?{_SEES}\s+(?:that\s+|how\s+)?",
    # "In this video, we see", "In the frames you provided, there is", "Throughout the clip,"
    "en place": rf"""
      (?:in|throughout|across|over|during|from|within)\s+(?:(?:the|this|these|all|each|of)\s+)+{_MEDIUM}\s*,\s*
        (?:it\s+(?:appears|seems)\s+that\s+)?(?:{_SEES}\s+|there(?:\s+(?:is|are)|['’]s)\s+)?
    | (?:in|throughout|across|over|during|from|within)\s+(?:(?:the|this|these|all|each
        |of)\s+)+{_MEDIUM}\s+(?:{_SEES}|there\s+(?:is|are))\s+
    | as\s+(?:seen|shown|depicted|can\s+be\s+seen)\s+in\s+(?:(?:the|this|these)\s+)+{_MEDIUM}\s*,\s*
    | (?:based\ on|judging\ (?:by|from)|according\ to|looking\ at|from\ what\ i\ can\ see\ in)\s+(?:(?:the|this
        |these)\s+)+
        {_MEDIUM}(?:\s+provided)?\s*,\s*(?:it\s+(?:appears|seems)(?:\s+that)?\s+|{_SEES}\s+
        |here\s+is\s+[^:.\n]{{0,60}}:\s*)?""",
    # "The video shows", "These frames depict", "The sequence of images appears to show", "This is a video of"
    "en medium": rf"""
      (?:the|this|these|each|both|all\ (?:of\ )?(?:the|these))\s+{_MEDIUM}\s+
        (?:{_SHOWS}|(?:begins|starts|opens)\s+(?:with|by\s+showing)|(?:is|are)\s+(?:about|of|showing
        |depicting))\b\s*(?:that\s+)?(?::\s*)?
        (?:(?:a|the)\s+(?:scene|moment|situation)\s+(?:where|in\s+which|of)\s+)?
    | (?:this|it)\s+(?:is|appears\ to\ be|seems\ to\ be)\s+(?:an?|the)\s+(?:short\s+
        |brief\s+)?(?:{_MEDIUM_NOUN})(?:\s+(?:clip|footage|sequence))?
        \s+(?:of|showing|depicting|that\s+shows|featuring)\b\s*
    | (?:an?\s+)?(?:{_MEDIUM_NOUN}|(?:frames|images)(?=\s+(?:showing|depicting)))(?:\s+(?:clip
        |footage))?\s+(?:of|showing|depicting)\b\s*
        (?![^,.;]{{0,50}}?(?<!that)(?<!who)(?<!which)\s(?:is|are|was|were|hangs?|appears?|lies)\s)
    | an?\s+(?:sequence|series|set|collection)\s+of\s+(?:\w+\s+)?(?:images|frames|photos|pictures
        |stills)\s+(?:of|showing|depicting|{_SHOWS})\b\s*""",
    # 好的，以下是视频的描述： / 这段视频展示了 / 视频中，我们可以看到 / 画面中
    "zh": r"""
      (?:好的|当然|當然|没问题|沒問題|可以|明白了|收到)[，,。!！、]+\s*
    | (?:以下|下面|这里|這裡)是[^：:。\n]{0,24}[：:]\s*
    | (?:(?:视频|視頻|影片|图片|圖片|画面|画面内容|详细|簡短|简短|短片)的?)*(?:描述|字幕|标题|標題|说明|說明
        |回答|答案|答|文案|摘要|总结)\s*[：:]\s*
    | (?:在)?(?:(?:这|這|该|該|此|本|整)(?:段|个|個|部|张|張|组|組|幅|些|系列)?|一段|一组|以上|提供的)?(?:短)?
        (?:视频|視頻|影片|短片|录像|錄像|片段|图片|圖片|图像|圖像|照片|画面|畫面|镜头画面|帧|幀)(?:片段|画面
        |畫面|内容|內容|序列|帧|截图)?
        (?:
          (?:中|里|裡|裏|内|內|当中)(?:\s*[，,：:]\s*|(?=我们|我們|可以|能看|展示|显示|顯示|出现|出現|呈现|呈現))
            (?:(?:我们|我們)?(?:可以|能够|能)?(?:看到|看見|看见|观察到)(?:了)?[，,：:]?\s*)?
            (?:(?:主要)?(?:展示|显示|顯示|呈现|呈現|出现|出現)(?:了|的是|着)?[，,：:]?\s*)?
        | (?:主要|首先|依次|生动地|清晰地)*(?:展示|展现|展現|显示|顯示|描绘|描繪|呈现|呈現|描述|记录|記錄|捕捉
        |拍摄|拍攝|讲述|講述|介绍|介紹)
            (?:了|的是|着|出|到)?(?:的是)?[，,：:]?\s*
        )""",
    # 動画では、 / この映像には / 動画の説明：
    "ja": r"""
      (?:はい|もちろんです|承知しました|かしこまりました)[、。,!！]+\s*
    | (?:以下|こちら)(?:は|が)[^：:。\n]{0,24}(?:です)?[：:。]\s*
    | (?:(?:この)?(?:動画|ビデオ|映像|画像)の)?(?:説明|キャプション|字幕|回答|答え|要約|描写)\s*[：:]\s*
    | (?:この|その|提供された)?(?:短い)?(?:動画|ビデオ|映像|クリップ|画像|フレーム)(?:の中)?(?:では|には|で、
        |に、|の中で、)\s*、?\s*""",
    # 이 영상에서는 / 비디오 설명:
    "ko": r"""
      (?:네|물론입니다|물론이죠|알겠습니다)[,.!]+\s*
    | (?:다음은|아래는)\s[^:.\n]{0,24}(?:입니다)?\s*[:.]\s*
    | (?:(?:비디오|동영상|영상|이미지)\s*)?(?:설명|캡션|자막|답변|요약)\s*[:：]\s*
    | (?:(?:이|해당|본|제공된)\s?)?(?:짧은\s)?(?:비디오|동영상|영상|클립|이미지|화면|프레임)(?:\s?속)?(?:에서는
        |에는|에서)\s*,?\s*""",
    # Este vídeo muestra a / En el video se ve a / Descripción del video:
    "es": r"""
      (?:claro|por\ supuesto|desde\ luego|de\ acuerdo|aquí\ (?:tienes|está)[^:.\n]{0,60})\s*[,.!:]+\s*
    | (?:descripción|leyenda|subtítulo|respuesta|resumen|pie\ de\ foto)(?:\s+(?:del?|de\ la)\s+(?:v[ií]deo
        |imagen|clip))?\s*:\s*
    | en\s+(?:el|este|la|esta|las|estas|los|estos)\s+(?:v[ií]deo|clip|imagen|secuencia|im[áa]genes|fotogramas
        |escena)s?\s*,?\s*
        (?:(?:se\s+(?:puede\s+)?(?:ver?|observar?|muestran?)|(?:podemos\s+)?(?:vemos|ver|observamos)
        |aparecen?)(?:\s+(?:cómo|que|a))?(?=\s)|(?<=,)|(?<=,\s))\s*
    | (?:el|este|la|esta|las|estas|los|estos)\s+(?:v[ií]deo|clip|imagen|secuencia|im[áa]genes|fotogramas)s?\s+
        (?:muestran?|presentan?|capturan?|retratan?|describen?)(?:\s+(?:cómo|a))?\s+""",
    # Cette vidéo montre / Dans la vidéo, on voit / Légende :
    "fr": r"""
      (?:bien\ sûr|certainement|d['’]accord|voici\ [^:.\n]{0,60})\s*[,.!:]+\s*
    | (?:description|légende|réponse|résumé)(?:\s+de\s+la\s+vidéo)?\s*:\s*
    | dans\s+(?:la|cette|les|ces|le|l['’]|cet)\s*(?:vidéo|séquence|image|clip|extrait)s?\s*,?\s*(?:(?:on|nous
        |l['’]on)\s+(?:peut\s+|pouvons\s+)?(?:voit|voir|voyons|observe|observer)\s+|(?<=,\s))
    | (?:la|cette|les|ces|le|ce|l['’]|cet)\s*(?:vidéo|séquence|image|clip|extrait)s?\s+(?:montre(?:nt)?
        |présente(?:nt)?|représente(?:nt)?|capture(?:nt)?|dépeint)\s+""",
    # Das Video zeigt / In diesem Video sieht man / Beschreibung:
    "de": r"""
      (?:natürlich|gerne|selbstverständlich|okay|hier\ ist\ [^:.\n]{0,60})\s*[,.!:]+\s*
    | (?:(?:video|bild)?beschreibung|bildunterschrift|untertitel|antwort|zusammenfassung)(?:\s+des\s+videos)?\s*:\s*
    | (?:im|in\s+dem|in\s+diesem|auf\s+dem|auf\s+diesem)\s+(?:video|clip|bild)\s+(?:sieht\s+man|sehen\s+wir|ist
        |sind|wird|kann\s+man|können\s+wir)\s+(?=\S+\s+\S+)(?!.{0,80}\b(?:zu\ sehen|gezeigt)\b)
    | (?:das|dieses|die|diese|der)\s+(?:video|clip|bild|videoclip|bilder|sequenz|aufnahmen?)\s+(?:zeigt|zeigen
        |stellt|präsentiert)\s+""",
    # O vídeo mostra / Neste vídeo, vemos / Descrição do vídeo:
    "pt": r"""
      (?:claro|com\ certeza|certamente|aqui\ está\ [^:.\n]{0,60})\s*[,.!:]+\s*
    | (?:descrição|legenda|resposta|resumo)(?:\s+d[oae]\s+(?:vídeo|imagem|clipe))?\s*:\s*
    | (?:no|neste|nesse|na|nesta|nas|nos)\s+(?:v[ií]deo|clipe|imagem|imagens|sequência
        |quadros)\s*,?\s*(?:(?:podemos\s+)?(?:vemos|ver|vê-se|é\ possível\ ver|observamos)\s+|(?<=,\s))
    | (?:o|este|esse|a|esta|as|os)\s+(?:v[ií]deo|clipe|imagem|imagens|sequência)\s+(?:mostram?|apresentam?
        |retratam?|capturam?)\s+""",
    # Il video mostra / Nel video si vede / Descrizione:
    "it": r"""
      (?:certo|certamente|ecco\ [^:.\n]{0,60})\s*[,.!:]+\s*
    | (?:descrizione|didascalia|risposta|riassunto)(?:\s+del\s+video)?\s*:\s*
    | (?:nel|in\s+questo|nella|in\s+questa|nelle|in\s+queste)\s+(?:video|filmato|clip|immagine|immagini
        |sequenza)\s*,?\s*(?:(?:si\s+(?:vede|vedono|può\s+vedere)|vediamo|possiamo\s+vedere)\s+|(?<=,\s))
    | (?:il|questo|la|questa|le|queste)\s+(?:video|filmato|clip|immagine|immagini|sequenza)\s+(?:mostra(?:no)?
        |presenta(?:no)?|ritraggono|ritrae|cattura(?:no)?)\s+""",
    # На видео показана / Видео показывает / Описание видео:
    "ru": r"""
      (?:конечно|хорошо|разумеется|вот\ [^:.\n]{0,60})\s*[,.!:]+\s*
    | (?:описание|подпись|ответ|заголовок)(?:\s+(?:видео|ролика|изображения))?\s*:\s*
    | (?:на|в)\s+(?:этом\s+|данном\s+|этих\s+)?(?:видео|видеоролике|ролике|кадре|кадрах|клипе|изображении
        |изображениях)\s*,?\s*
        (?:показан[аоы]?|изображен[аоы]?|мы\s+видим|(?:можно\s+)?(?:видно|увидеть)|видим)\s*,?\s*(?:как\s+)?
    | (?:это\s+|данное\s+|этот\s+)?(?:видео|видеоролик|ролик|клип)\s+(?:показывает|демонстрирует|изображает)\s*,?\s*""",
    # يظهر الفيديو / في هذا الفيديو، / وصف الفيديو:
    "ar": r"""
      (?:بالتأكيد|بالطبع|حسنا|حسنًا)\s*[،,.!:]+\s*
    | (?:(?:ال)?وصف|(?:ال)?تعليق|الإجابة|العنوان)(?:\s+(?:الفيديو|المقطع|الصورة))?\s*:\s*
    | (?:يظهر|يُظهر|يعرض|يصور|يوضح)\s+(?:هذا\s+)?(?:الفيديو|المقطع|مقطع\s+الفيديو)\s+
    | في\s+(?:هذا\s+)?(?:الفيديو|المقطع|مقطع\s+الفيديو)\s*[،,]\s*(?:نرى|يمكننا\s+رؤية|يمكن\s+رؤية|يظهر)?\s*""",
    # वीडियो में, / इस वीडियो में हम देखते हैं कि / विवरण:
    "hi": r"""
      (?:ज़?रूर|बिल्कुल|ठीक\ है)\s*[,.!:।]+\s*
    | (?:(?:वीडियो\s+का\s+)?(?:विवरण|वर्णन|कैप्शन|शीर्षक|उत्तर))\s*:\s*
    | (?:इस\s+)?(?:वीडियो|क्लिप|चित्र)\s+में\s*(?:[,،]\s*|हम\s+देख(?:ते\s+हैं|\s+सकते\s+हैं)\s+(?:कि\s+)?)""",
    # Video ini menampilkan / Video này cho thấy / Bu videoda, / วิดีโอนี้แสดงให้เห็น / De video toont / Film pokazuje
    "others": r"""
      (?:deskripsi|keterangan|mô\ tả|açıklama|opis|beschrijving|คำอธิบาย|คำบรรยาย|περιγραφή|תיאור|توضیحات|опис
        |popis|beskrivning)
        (?:\s*(?:video|filmu|วิดีโอ|відео))?\s*[:：]\s*
    | (?:video|klip|gambar)\s+(?:ini|tersebut)\s+(?:menunjukkan|menampilkan|memperlihatkan|menggambarkan)\s+
    | (?:dalam|di)\s+(?:video|klip)\s+(?:ini|tersebut)\s*,\s*(?:kita\s+(?:dapat\s+|bisa\s+)?melihat\s+|terlihat\s+)?
    | (?:đoạn\s+)?(?:video|clip|phim)\s+(?:này\s+)?(?:cho\s+thấy|mô\s+tả|quay\s+cảnh|ghi\s+lại)\s+
    | trong\s+(?:đoạn\s+)?(?:video|clip)(?:\s+này)?\s*,\s*(?:chúng\s+ta\s+(?:có\s+thể\s+)?(?:nhìn\s+)?thấy\s+)?
    | (?:bu\s+)?(?:videoda|videosunda|görüntüde|klipte)\s*,\s*
    | (?:ใน)?(?:วิดีโอ|วีดีโอ|คลิป)(?:นี้)?(?:แสดงให้เห็น(?:ถึง)?|แสดง(?:ภาพ)?)\s*
    | (?:de|deze)\s+(?:video|clip|beelden)\s+(?:toont|tonen|laat|laten)\s+(?!.{0,80}\bzien\b)
    | in\s+(?:de|deze)\s+video\s+(?:zien\s+we|is|zie\s+je)\s+(?!.{0,80}\bte\s+zien\b)
    | (?:ten\s+)?(?:film|klip|wideo)\s+(?:pokazuje|przedstawia|ukazuje)\s+
    | на\s+(?:цьому\s+)?відео\s+(?:показано|зображено|видно)\s*,?\s*""",
}


@cache  # compiled with the first caption: a tenth of a second, which `--help` need not wait for
def leading() -> re.Pattern[str]:
    """Matches one phrase at the start of a text; several may follow each other."""
    phrases = "|".join(f"(?:{pattern})" for pattern in _LEADING_BY_LANGUAGE.values())
    return re.compile(rf"\s*(?:{phrases})", re.IGNORECASE | re.VERBOSE)


_CLOSING_BY_LANGUAGE = {
    # "Let me know if you need anything else!", "I hope this helps.", "Feel free to ask."
    "en": r"""
      (?:please\s+)?(?:let\s+me\s+know|feel\s+free\s+to|don['’]t\s+hesitate\s+to)\b
    | (?:i\s+)?hope\s+(?:this|that|it)\s+helps\b
    | (?:if|should)\s+you(?:['’]d|\s+would|\s+have|\s+need|\s+want|\s+like
        |\s+require)\b[^.!?]{0,80}\b(?:let\s+me|feel\s+free|ask|question|help|assist|further|please|i\s+can
        |tell\s+me|more\s+details?)
    | is\s+there\s+anything\s+else\b | (?:would|do)\s+you\s+(?:like|want|need)\s+(?:me|more|any|further|to)\b
        | can\s+i\s+help\b
    | (?:i['’]m|i\s+am)\s+(?:here|happy|glad|always\s+happy)\s+to\s+(?:help|assist|provide|answer)\b
        | happy\s+to\s+help\b
    | (?:please\s+)?note(?:\s+that)?\s*:?\s+(?:the|this|that|my|i|since|as
        |because)\b[^.!?]{0,120}\b(?:description|caption|frames?|images?|video|provided|based|visible|information)\b
    | this\s+(?:caption|description|summary|response|analysis)\s+(?:is|was|captures?|describes?|reflects?
        |focuses|aims|provides?|summari[sz]es)\b
    | (?:\(|\[)?\s*(?:word\s+count|words?|characters?|tokens?)\s*:\s*\d+ | \(\s*\d+\s+words?\s*\)
    | (?:tags|keywords|hashtags)\s*: | (?:\#\w+[ ,]*)+\Z | end\s+of\s+(?:\w+\s+)?(?:description|caption|video
        |text|response)\b | end\s*[\])]
    | thank(?:s|\s+you)\b[^.!?]{0,30}[.!]?\s*\Z | you['’]re\s+welcome\b | have\s+a\s+(?:great|nice|good
        |wonderful)\s+day\b | any\s+(?:other\s+)?questions\b
    | (?:i\s+)?(?:have\s+)?(?:tried|aimed|attempted)\s+to\s+(?:describe|provide|capture)\b""",
    # 希望这对您有帮助 / 如果您需要更多信息，请告诉我 / 以上是视频的描述
    "zh": r"""
      希望(?:这|這|以上|我的|对你|对您|能|可以)[^。！？]{0,16}(?:帮助|幫助|帮到|有用|满意)
    | (?:如果|如|若)(?:你|您|还|還|有|需要)[^。！？]{0,30}(?:请|請|随时|隨時|告诉我|告訴我|联系|聯繫|提问|帮助
        |問題|问题)
    | (?:请|請|欢迎|歡迎)(?:随时|隨時|告诉我|告訴我|让我知道|继续提问) | 还有什么(?:可以|需要|我能) | (?:还
        |還)需要(?:我|其他|更多)
    | 以上(?:就)?是(?:对|對|该|這|这|视频|我)[^。！？]{0,20}(?:描述|内容|說明|说明|总结)""",
    # お役に立てれば幸いです / 他にご質問があれば
    "ja": r"""
      [^。！？]{0,16}(?:お役に立て|参考になれば|参考になりましたら) | (?:他|ほか|何か|さらに
        |もし)[^。！？]{0,24}(?:お知らせ|ご質問|お気軽|教えてください|ございましたら)""",
    "ko": r"""(?:이\s|제\s)?[^.!?]{0,12}도움이\s?(?:되|될) | (?:더|다른|추가|혹시|궁금
        |필요)[^.!?]{0,24}(?:알려\s?주|말씀해|문의|질문|있으시면|있으면)""",
    "es": r"""(?:av[íi]same|h[áa]zme?lo\s+saber|d[íi]me\s+si|espero\s+que\s+(?:esto|esta|te|le)|no\s+dudes\s+en
        |si\s+(?:necesitas|quieres|deseas|tienes)\b[^.!?]{0,60}\b(?:dime|av[íi]same|ayuda|pregunta|detalles)
        |¿(?:hay\s+algo|necesitas|quieres\s+que|te\s+gustaría))""",
    "fr": r"""(?:n['’]hésitez\s+pas|faites-(?:le-)?moi\s+savoir|dites-moi\s+si|j['’]espère\s+que
        |si\s+vous\s+(?:avez|souhaitez|voulez|désirez)\b[^.!?]{0,60}\b(?:question|dites|savoir|détails|hésitez)
        |(?:souhaitez|voulez|avez)-vous\b|y\s+a-t-il\s+autre)""",
    "de": r"""(?:lass(?:en)?\s+(?:sie\s+)?(?:es\s+)?mich\s+wissen|ich\s+hoffe,?\s+(?:das|dies)
        |bei\s+(?:weiteren\s+)?fragen|wenn\s+(?:sie|du)\s+(?:weitere|noch|mehr|fragen)|falls\s+(?:sie|du)\b
        |kann\s+ich\s+(?:ihnen|dir|sonst)|möchten\s+sie\b|sag(?:en\s+sie)?\s+mir)""",
    "pt": r"""(?:(?:me\s+)?avise(?:-me)?\s+se|me\s+(?:diga|informe)|espero\s+que\s+(?:isso|isto|ajude|tenha)
        |se\s+(?:precisar|quiser|tiver|desejar)\b[^.!?]{0,60}|fique\s+à\s+vontade|não\s+hesite|posso\s+ajudar
        |gostaria\s+(?:que|de\s+mais))""",
    "it": r"""(?:fammi\s+sapere|fatemi\s+sapere|mi\s+faccia\s+sapere|spero\s+che\s+(?:questo|questa|ti|sia)
        |se\s+(?:hai|ha|avete|vuoi|desideri)\b[^.!?]{0,60}\b(?:domande|bisogno|chied|dettagli|sapere)
        |non\s+esitare|posso\s+aiutart?)""",
    "ru": r"""(?:дайте\s+(?:мне\s+)?знать|надеюсь,?\s+(?:это|что|помог)|если\s+(?:вам|у\s+вас|нужн|хотите|тебе
        |потребу)[^.!?]{0,60}|обращайтесь|сообщите\s+мне|чем\s+(?:ещё|еще)\s+(?:я\s+)?могу|хотите,\s+чтобы
        |буду\s+рад)""",
    "ar": r"""(?:أخبرني\s+إذا|أعلمني|آمل\s+أن|أتمنى\s+أن|إذا\s+كنت\s+(?:بحاجة|تحتاج|تريد|ترغب)|هل\s+(?:هناك
        |تريد|تحتاج|ترغب)|لا\s+تتردد)""",
    "hi": r"""(?:मुझे\s+बताएं?|कृपया\s+मुझे\s+बताएं|आशा\s+है|उम्मीद\s+है|यदि\s+आप(?:को|के)?|अगर\s+आप(?:को|के)?
        |क्या\s+आप)""",
    "others": r"""(?:hãy\s+cho\s+tôi\s+biết|hy\s+vọng\s+(?:điều|mô)|nếu\s+bạn\s+(?:cần|muốn|có)
        |beri\s+tahu\s+saya|semoga\s+(?:ini|membantu)|jika\s+anda\s+(?:membutuhkan|memerlukan|butuh|ingin)
        |umarım\s+bu|yardımcı\s+olabil|başka\s+bir\s+(?:şey|sorunuz)|daj\s+mi\s+znać|mam\s+nadzieję
        |jeśli\s+(?:potrzebujesz|masz)|laat\s+(?:het\s+)?(?:me|mij)\s+weten|ik\s+hoop\s+dat\s+dit|หวังว่า
        |หากคุณ(?:ต้องการ|มี)|ถ้าคุณต้องการ|แจ้งให้(?:ฉัน|ผม)ทราบ)""",
}


@cache
def closing() -> re.Pattern[str]:
    """Matches from the first closing phrase, at the start of a sentence, to the end of the text."""
    phrases = "|".join(f"(?:{pattern})" for pattern in _CLOSING_BY_LANGUAGE.values())
    start = r"(?:(?<=[.!?…।۔)\]\"”])\s+|(?<=[。！？」』）])\s*)(?:[-–—*(\[]+\s*)?"
    return re.compile(rf"{start}(?:{phrases}).*", re.IGNORECASE | re.VERBOSE | re.DOTALL)
