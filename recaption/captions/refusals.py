"""Recognizes refusals: texts in which a model says that it cannot describe the clip, or asks for it.

is_refusal("I'm sorry, but I can't help with that.")    True
is_refusal("抱歉，我无法查看视频。")                         True
is_refusal('The text reads "I can\'t see you".')        False: quoted

Captions have no first person and do not ask for files, so an apology, "I cannot", or "no video was provided" at the start
of a sentence is a refusal in any language. One row per language, in the order apology; inability; nothing was given;
request.
"""

from __future__ import annotations

import re
from functools import cache

_MEDIA = (
    r"(?:videos?|clips?|images?|pictures?|photos?|frames?|footage|files?|attachments?|links?|visuals?|media|content|"
    r"caption|description)"
)
_SENTENCE_START = (
    r"(?:\A[^\w\"“«「『„']{0,3}(?:(?:hello|hi|你好|您好|好的|hola|bonjour|hallo|olá|ciao|привет|здравствуйте)[,，!！.。]\s*)?"
    r"|(?<=[.!?…।۔])\s+(?:but\s+|however,?\s+)?|(?<=[。！？])\s*(?:但是?|不过)?)"
)
"""Of the text or after another sentence, a greeting left out; never inside quotation marks."""

_BY_LANGUAGE = {
    # "I'm sorry", "Unfortunately, the video is not clear.", "As an AI", "There is no video attached", "Please upload it."
    "en": rf"""
      as\s+an?\s+(?:ai|artificial\s+intelligence|(?:large\s+)?language\s+model|text-based|assistant)\b
    | (?:i['’]?m|i\s+am)\s+(?:so\s+|very\s+|really\s+|truly\s+)?(?:sorry|unable|not\s+able|afraid
        |having\s+(?:trouble|difficulty)|just\s+an?\s+(?:ai|language)
        |an?\s+(?:ai|language|text-based|large)\b|not\s+(?:capable|sure|programmed|designed|equipped)
        |currently\s+unable|incapable)\b
    | i\s+(?:sincerely\s+)?apologi[sz]e\b | (?:my\s+)?(?:sincere\s+)?apologies\b | (?:i\s+)?regret(?:fully)?\b
        | regrettably\b | forgive\s+me\b
    | sorry\b(?:\s*[,.!:;–—]|\s+-|\s+(?:but|for|i|about|the|we|that)\b)
    | unfortunately\b,?\s+(?:but\s+)?(?:i|we|no|there|it|my|this|your|without|as|since|because|(?:the|these
        |this)\s+(?:\w+\s+){{0,2}}{_MEDIA})\b
    | (?:i|we)\s+(?:currently\s+|still\s+|actually\s+|really\s+|just\s+|simply\s+)?(?:can\s?not|can['’]?t
        |could\s+not|couldn['’]t|am\s+unable|['’]m\s+unable|are\s+unable|was\s+unable|was\s?n[o'’]t\s+able
        |won['’]?t|will\s+not|must\s+decline|would\s+need|need\s+(?:to\s+see|more|the|a|you|access)
        |do(?:\s+not|n['’]t)\s+(?:\w+\s+)?(?:have|see|know|possess|support|receive|feel|think\s+i|recognize)
        |did(?:\s+not|n['’]t)\s+(?:receive|get|see|find)|have\s+no\s+(?:way|access|ability|video|image)
        |lack\s+the|only\s+see\s+text|have\s?n[o'’]t\s+(?:received|been)|see\s+no\s+(?:video|image|attach|frame))\b
    | (?:there\s+(?:is|are|was|were|seems?\s+to\s+be|appears?\s+to\s+be|does\s?n[o'’]t\s+(?:seem
        |appear)\s+to\s+be)\s+)?(?:no|not\s+any|any)\s+(?:\w+\s+)?{_MEDIA}\s+
        (?:(?:was|were|is|are|has\s+been|have\s+been|to|that|seems?|appears?|could\s+be)\s+)*(?:provided|given
        |attached|uploaded|included|shared|available|visible\s+to\s+me|received|found|detected|loaded|sent
        |describe|displayed|accessible|present\s+in\s+(?:the|your)\s+(?:message|request|prompt|conversation))\b
    | (?:the|this|your|these|it\s+(?:seems|appears|looks\s+like)\s+(?:that\s+)?(?:the|your|there
        |no))\s+(?:\w+\s+){{0,2}}{_MEDIA}\s+(?:you\s+\w+\s+)?
        (?:(?:was|were|is|are|has|have|could|can|did|does|do|seems?\s+to\s+be|appears?\s+to\s+be)\s?(?:not
        |n['’]t)(?:\s+(?:been|be|get|seem|appear|to|properly|currently|fully))*\s+(?:attached|provided|included
        |uploaded|loaded?|clear(?:\s+enough)?|available|visible|accessible|shared|processed|received|supported
        |opened?|displayed?|rendered?|played?|accessed|viewed|working|show(?:ing)?\s+up|contain\s+(?:any
        |enough)|come\s+through)
        |(?:is|are|was|were|appears?\s+to\s+be|seems?\s+to\s+be)\s+(?:currently\s+|completely\s+
        |entirely\s+)?(?:too\s+(?:blurry|dark|unclear|small|low|short|grainy
        |pixelated)[^.]{{0,30}}\bto\s+(?:\w+\s+)?(?:describe|see|make|determine|identify|tell|caption|discern
        |recogni[sz]e|provide)
            |missing|corrupt(?:ed)?|unavailable|inaccessible|unreadable|blank(?:\s+or\s+\w+)?|unsupported
        |unviewable|private|restricted|broken)
        |(?:failed|fails)\s+to\s+(?:load|upload|open|play|render)|violates?\b|cannot\s+be\b|can['’]t\s+be\b
        |may\s+not\s+have\s+(?:been\s+)?(?:uploaded|attached|loaded))\b
    | (?:it\s+(?:seems|appears|looks)(?:\s+like)?\s+(?:that\s+)?(?:you|there|the\s+{_MEDIA})\s+(?:(?:may
        |might)\s+have\s+)?(?:have\s?n[o'’]t|did\s?n[o'’]t|forgot|(?:is|was|are)\s?(?:no\b|n[o'’]t)|has\s?n[o'’]t))
    | there\s+(?:does|do|is|are|did)\s?(?:n[o'’]t)\s+(?:(?:seem|appear)\s+to\s+be\s+)?(?:an?
        |any)\s+(?:\w+\s+)?{_MEDIA}\b
    | (?:since|because|as|given\s+that)\s+(?:i\s+(?:can\s?not|can['’]?t|am\s+unable|do\s?n[o'’]t)
        |(?:there\s+(?:is|are|was|were)\s+)?no\s+(?:\w+\s+)?{_MEDIA})\b
    | [^.\"“]{{0,80}}\b(?:cannot|can['’]t|could\s+not)\s+be\s+(?:described|captioned|displayed|viewed|processed
        |played|loaded|provided|accessed)\b
    | you\s+(?:have\s?n[o'’]t|did\s?n[o'’]t|have\s+not|forgot)\b[^.]{{0,30}}{_MEDIA}
    | without\s+(?:(?:direct|any|the|actual|more|further|additional|being\s+able\s+to|access|a
        |actually)\s+)*(?:access|see|seeing|view|viewing|watch|watching|context|information
        |{_MEDIA})\b[^.]{{0,60}},?\s*(?:i|it|we|no)\b
    | it(?:\s+is|['’]s)\s+(?:not\s+possible|impossible|difficult|hard
        |challenging)\s+(?:for\s+me\s+)?to\s+(?:describe|caption|provide|generate|give|analy[sz]e
        |determine\s+what|say\s+what|tell\s+what|view|access|accurately)\b
    | (?:cannot|can['’]t|unable\s+to|not\s+able\s+to|could\s+not|failed\s+to|impossible\s+to)\s+(?:view|process
        |describe|determine|generate|identify|see|access|load|open|watch|analy[sz]e|provide|display|play
        |caption|create|complete|retrieve|fetch|parse)\b
    | (?:please|could\s+you|can\s+you|would\s+you)\s+(?:please\s+|kindly\s+|try\s+to\s+)?(?:provide|upload
        |share|attach|send|re-?upload|resend|re-?send|try|check|give\s+me|supply|clarify|describe\s+(?:it|what
        |the\s+video)|refer|make\s+sure|ensure|specify|wait|note\s+that\s+i)\b
    | (?:i['’]d|i\s+would|i\s+will|i['’]ll)\s+(?:\w+\s+){{0,2}}(?:happy|glad|love|like
        |need)\b[^.!]{{0,60}}\b(?:if|once|but|when|please|more\s+(?:information|context|details))\b
    | (?:this|the)\s+(?:content|request|material|video|image)\s+(?:\w+\s+){{0,2}}(?:violates|against
        |may\s+violate|cannot\s+be|is\s+not\s+(?:appropriate|allowed|permitted)|goes\s+against
        |contains\s+(?:inappropriate|sensitive|explicit)\s+(?:content|material))\b
    | (?:\[|\()?\s*(?:no\s+(?:caption|description|video|answer|content|image|output|response
        |text)(?:\s+(?:available|provided|generated|found|detected|possible))?
        |(?:caption|description|content|video|response|output|image)\s+(?:is\s+)?(?:not\s+available|unavailable
        |removed|blocked|filtered|redacted|not\s+found|not\s+generated|could\s+not\s+be\s+generated)|n/?a|none
        |null|nil|nan|undefined|not\s+applicable|not\s+available|unknown|\[?error\]?(?:\s*[:!\]].*
        |\s+(?:processing|generating|loading|occurred|code|\d).*)?
        |(?:an?\s+)?(?:internal\s+)?(?:server\s+)?error\s+(?:occurred|while)\b.*|content\s+(?:filter|policy
        |warning).*|todo|tbd|placeholder|(?:insert|your)\s+(?:\w+\s+)?(?:caption|description|text)(?:\s+here)?
        |(?:processing|loading|generating)\b[^.]{{0,20}}(?:\.{{3}}|…)
        |(?:\d{{3}}\s+)?(?:internal|bad|service|gateway|request)\s+(?:server\s+)?(?:error|gateway|unavailable|timeout
        |timed\s+out).*)\s*[.!]?\s*(?:\]|\))?\s*\Z""",
    "zh": r"""
      (?:很|非常|十分|真的?|实在|實在|万分)?(?:抱歉|对不起|對不起|不好意思|遗憾|遺憾|对此?感到抱歉) | 请(?:原谅
        |见谅|谅解)
    | (?:我|本?人工智能|作为[^，。]{1,12}，?我)(?:目前|暂时|暫時|现在|現在|还|還|实际上|并|並)*(?:无法|無法
        |不能|没法|沒法|不可以|看不到|看不见|看不見|看不清|没有办法|沒有辦法|没有能力|没有看到|沒有看到|没看到
        |没有收到|沒有收到|没收到|不具备|不具備|不支持|无权|未能|不会看|不知道|不确定)
    | 我(?:是|叫)[^。]{1,20}[，,]我?(?:无法|無法|不能|没法)
    | (?:作为|作為|身为|身為|我(?:是|只是))(?:一个|一個|一名|一款|一种)?(?:AI|人工智能|人工智慧|语言模型
        |語言模型|大型?语言|大模型|文本|虚拟|智能)
    | (?:由于|因为|因為|鉴于)?(?:您|你)?(?:似乎|好像|可能|目前|这里|這裡)*(?:没有|沒有|未|并未|並未|尚未
        |没)(?:有)?(?:提供|上传|上傳|附上|附加|附带|收到|检测到|看到|发送|分享|显示|找到|任何)[^。]{0,6}(?:视频
        |視頻|影片|图片|圖片|图像|圖像|画面|文件|附件|链接|内容|帧)
    | (?:该|該|这个?|這個?|您的?|你的?|此)?(?:段|个)?(?:视频|視頻|影片|图片|圖片|图像|文件|链接|画面)(?:内容
        |文件|链接)?(?:似乎|好像|可能|太|过于|过|已|并|無|无法|未能|没有|沒有|未|暂时|暫時)+(?:成功)?(?:不?清晰
        |不清楚|模糊|上传|上傳|提供|加载|載入|打开|播放|显示|顯示|查看|观看|观察|附上|损坏|失效|识别|描述|访问
        |辨认|看清)
    | (?:视频|視頻|画面|图像|图片)(?:内容)?(?:不(?:够|太)?清[晰楚]|损坏|缺失|不可用|不存在)
    | (?:请|請)(?:您|你)?(?:先|重新|再次|再|确保|確保|确认|检查|尝试|直接)*(?:提供|上传|上傳|分享|发送|發送
        |附上|尝试|检查|描述一下|重试|稍后|补充|确认|说明|告诉我)
    | (?:目前|暂时|暫時|现在|這裡|这里)?(?:无法|無法|不能|难以|未能|没法)(?:直接|准确|確切|具体|正常|清楚地?
        |为您)*(?:查看|观看|觀看|访问|訪問|描述|识别|識別|确定|確定|提供|处理|處理|生成|打开|播放|获取|分析
        |看到|加载|判断|回答|完成|满足)
    | (?:暂无|暫無|没有|沒有|无|無)(?:描述|字幕|内容|內容|视频|影片|答案|结果|可用)\s*[。.]?\s*\Z""",
    "es": r"""
      (?:lo\s+(?:siento|lamento)|perd[óo]n(?:a|e)?|disc[úu]lp[ae](?:me|s)?|mis\s+disculpas|lamento
        |lamentablemente|desafortunadamente|desgraciadamente|por\s+desgracia|me\s+temo)\b
    | (?:yo\s+)?no\s+(?:me\s+|te\s+|le\s+|se\s+)?(?:puedo|podr[ée]|pude|soy\s+capaz|tengo|logro|consigo
        |veo\s+(?:ning|el\s+v|la\s+im|v[ií]d)|estoy|es\s+posible|ha(?:s|n
        |y)?\s+(?:sido\s+)?(?:ning[úu]n[ao]?\s+)?(?:v[ií]deo|imagen|archivo|adjunt|proporcion|compart|sub|recib
        |carg|envi))
    | no\s+(?:se\s+)?(?:puede|pudo|ha|han|incluy[óo]|adjunt[óo]|proporcion[óo]|recib[íi])\b[^.]{0,20}(?:ver
        |acceder|describir|v[ií]deo|imagen|archivo|proporcion|adjunt|carg|determinar|reproducir)
    | como\s+(?:un[a]?\s+)?(?:modelo|ia\b|inteligencia|asistente) | soy\s+(?:un[a]?\s+)?(?:modelo|ia\b
        |inteligencia|asistente)
    | (?:el|este|tu|su|la)\s+(?:v[ií]deo|imagen|archivo|clip|enlace)\s+(?:\w+\s+)?no\s+(?:se\s+)?(?:est[áa]|es
        |fue|pudo|puede|ha|carg|aparece|contiene)
    | (?:por\s+favor|podr[íi]as?|puedes?),?\s+(?:por\s+favor\s+)?(?:proporcion|sub|compart|env[íi]|adjunt|carg
        |vuelv|intent|aseg)""",
    "fr": r"""
      (?:je\s+(?:suis\s+)?(?:vraiment\s+|sincèrement\s+)?(?:désolée?|navrée?|regrette|m['’]excuse)|désolée?
        |navrée?|pardon(?:nez)?|malheureusement|excusez|toutes\s+mes\s+excuses|mes\s+excuses)\b
    | (?:je|nous)\s+(?:ne\s+|n['’])\s*(?:\w+\s+)?(?:peux|puis|suis|vois|dispose|ai|parviens|pouvons|pourrai
        |arrive|sais|possède)
    | en\s+tant\s+qu['’e]\s*(?:une?\s+)?(?:ia|ai|intelligence|assistant|modèle) | je\s+suis\s+(?:une?\s+)?(?:ia
        |ai|intelligence|assistant|modèle)\b
    | (?:aucune?|pas\s+de)\s+(?:vidéo|image|fichier|contenu|pièce|média) | il\s+n['’]y\s+a\s+(?:pas
        |aucune?)\s+(?:de\s+|d['’])?(?:vidéo|image|fichier|pièce|contenu)
    | (?:la|cette|votre|l['’])\s*(?:vidéo|image|fichier)\s+(?:\w+\s+)?(?:n['’]|ne\s)
    | (?:il\s+(?:m['’])?est|il\s+m['’]est)\s+(?:impossible|difficile)\s+(?:pour\s+moi\s+)?(?:de
        |d['’])\s*(?:décrire|voir|visionner|accéder|fournir|déterminer)
    | (?:veuillez|merci\s+de|pourriez-vous|pouvez-vous)\s+(?:\w+\s+)?(?:fournir|télécharger|téléverser|partager
        |joindre|envoyer|réessayer|importer|préciser)""",
    "de": r"""
      (?:es\s+)?tut\s+mir\s+(?:sehr\s+|wirklich\s+)?leid\b | (?:entschuldig(?:ung|en|e)|verzeihung|verzeihen
        |bedauerlicherweise|ich\s+bedaure|ich\s+bitte\s+um\s+entschuldigung)\b
    | leider\s+(?:kann|konnte|ist|sind|ich|habe|wurde|wurden|liegt|fehlt|sehe|gibt|bin|das|es|war|nicht|kein)
    | ich\s+(?:kann|bin|habe|sehe|konnte|darf|verfüge|besitze|erkenne)\b[^.!?]{0,60}\b(?:nicht|kein|keine
        |keinen|keinerlei|außerstande)\b
    | als\s+(?:eine?\s+)?(?:ki\b|ai\b|künstliche|sprachmodell|ki-|assistent)
        | ich\s+bin\s+(?:nur\s+)?(?:eine?\s+)?(?:ki\b|künstliche|sprachmodell|ki-|textbasiert)
    | (?:es\s+(?:wurde|gibt|ist|liegt)\s+)?kein(?:e|en)?\s+(?:video|bild|datei|anhang|videodatei|inhalt
        |aufnahme)[^.]{0,30}(?:vorhanden|angehängt|bereitgestellt|hochgeladen|verfügbar|gefunden|beigefügt
        |übermittelt|gesendet)
    | (?:das|dieses|ihr|dein)\s+(?:video|bild)\s+(?:ist|wurde|konnte|kann|lässt|scheint)\s+(?:\w+\s+)?(?:nicht
        |leider|zu\s+(?:unscharf|dunkel|undeutlich))
    | (?:bitte|könnten\s+sie|kannst\s+du|können\s+sie)\s+(?:\w+\s+){0,4}(?:laden|lade|hochladen|stellen|stelle
        |teilen|teile|geben|gib|senden|sende|fügen|füge|versuchen|bereitstellen|schicken)\b""",
    "pt": r"""
      (?:(?:me\s+)?desculp[ae](?:-me|s)?|sinto\s+(?:muito|informar)|lamento|lamentavelmente|infelizmente
        |peço\s+desculpas?|perdão|perdoe)\b
    | (?:eu\s+)?não\s+(?:me\s+|te\s+|lhe\s+)?(?:posso|consigo|consegui|pude|sou\s+capaz|tenho|vejo\s+(?:nenhum
        |o\s+v|a\s+im|v[ií]d)|estou|é\s+possível|foi\s+(?:possível|fornecid|anexad|enviad|carregad)
        |há\s+(?:nenhuma?\s+)?(?:v[ií]deo|imagem|arquivo|ficheiro|anexo)|recebi)
    | (?:nenhuma?)\s+(?:v[ií]deo|imagem|arquivo|ficheiro|conteúdo)\s+(?:foi|está|disponível|fornecid)
    | como\s+(?:uma?\s+)?(?:modelo|ia\b|inteligência|assistente) | sou\s+(?:apenas\s+)?(?:uma?\s+)?(?:modelo
        |ia\b|inteligência|assistente)
    | (?:o|este|esse|seu|a)\s+(?:v[ií]deo|imagem|arquivo)\s+(?:\w+\s+)?não\s+(?:está|é|foi|pôde|pode|carreg
        |aparece|parece)
    | (?:por\s+favor|poderia|pode|você\s+pode(?:ria)?),?\s+(?:\w+\s+)?(?:forne[cç]|envi|carreg|compartilh|anex
        |partilh|faça\s+o\s+upload|tent|verifi)""",
    "it": r"""
      (?:mi\s+(?:dispiace|spiace|scuso)|spiacente|purtroppo|sfortunatamente|scus(?:a|ami|ate|atemi|i)
        |chiedo\s+scusa|sono\s+spiacente)\b
    | (?:io\s+)?non\s+(?:posso|riesco|sono\s+in\s+grado|ho|vedo\s+(?:alcun|nessun|il\s+v|l['’]imm)
        |sono\s+capace|è\s+(?:stato|stata|possibile)|c['’]è\s+(?:alcun|nessun)\w*\s+(?:video|immagine|file
        |contenuto|allegato)|mi\s+è\s+possibile|potendo)
    | nessun[ao]?\s+(?:video|immagine|file|contenuto)\s+(?:è|fornit|allegat|disponibile)
    | (?:in\s+quanto|come|essendo)\s+(?:una?\s+)?(?:ia\b|ai\b|modello|intelligenza|assistente)
        | sono\s+(?:solo\s+)?(?:una?\s+)?(?:ia\b|modello\s+ling|intelligenza|assistente\s+virt)
    | (?:il|questo|tuo|l['’])\s*(?:video|immagine|file)\s+(?:\w+\s+)?non\s+(?:è|può|si|sembra|risulta|contiene)
    | (?:per\s+favore|si\s+prega\s+di|ti\s+prego\s+di|puoi|potresti|può),?\s+(?:\w+\s+)?(?:fornir|fornisc|caric
        |condivid|alleg|invia|riprov)""",
    "ru": r"""
      (?:извините|извини|простите|прости|к\s+сожалению|сожалею|прошу\s+прощения|приношу\s+(?:свои\s+)?извинения
        |мне\s+(?:очень\s+)?жаль|увы)\b
    | (?:я|мы)\s+(?:пока\s+|сейчас\s+|всё\s+ещё\s+)?не\s+(?:могу|вижу|имею|способ|в\s+состоянии|смог|умею
        |получил|располагаю|можем|знаю|обладаю) | у\s+меня\s+нет\s+(?:доступа|возможности|видео)
    | (?:как|являясь|будучи|я\s*[-–—]?\s*(?:всего\s+лишь\s+)?)\s*(?:ии\b|искусственн|языков\w+\s+модел|нейросет
        |ai\b|виртуальн)
    | (?:видео|изображени[ея]|файл|кадры?|ролик)\s+(?:\w+\s+)?не\s+(?:был[оаи]?|прикреп|загру|предостав|отображ
        |ч[её]тк|доступ|видн|откры|воспроизв)
    | (?:нет|отсутствует|отсутствуют)\s+(?:видео|изображени|файл|вложени|прикреп) | (?:никакого
        |никаких)\s+(?:видео|изображени|файл)
    | (?:пожалуйста|прошу|не\s+могли\s+бы\s+вы|можете),?\s+(?:\w+\s+)?(?:загруз|предостав|прикреп|отправ|пришл
        |подел|попроб|провер)
    | не\s+(?:могу|удалось|получается|удаётся|представляется\s+возможным|в\s+состоянии)\s+(?:увид|просмотр
        |посмотр|опис|откры|загруз|получ|определ|воспроизв|обработ)""",
    "ja": r"""
      (?:大変|誠に|本当に)?(?:申し訳|すみません|すいません|ごめん|恐れ入りますが|残念ながら|残念ですが|あいにく|お詫び)
    | [^。]{0,24}(?:動画|ビデオ|映像|画像|フレーム|ファイル|リンク|内容)[^。]{0,16}(?:(?:見る|確認|視聴|閲覧
        |アクセス|再生|分析|説明|表示|認識|判別|読み込|提供|描写|お答え)[^。]{0,10}(?:でき(?:ません|ない(?=。
        |です|ため|\Z)|ず)|かね)|見えません|(?:添付|提供|アップロード|送信|共有|表示)され(?:て(?:い
        |お)(?:ません|りません|ない)|ませんでした)|が?ありません(?:でした)?\s*。?\s*\Z|不鮮明)
    | (?:私は)?(?:AI|人工知能|言語モデル|大規模言語)[^。]{0,12}(?:なので|であるため|として|ですので|のため|です)
    | (?:私は|私には)[^。]{0,30}(?:できません|見えません|かねます|わかりません)
    | [^。]{0,24}(?:アップロード|提供|共有|送信|添付|再送)して(?:ください|いただ|もら)""",
    "ko": r"""
      (?:정말\s|대단히\s)?(?:죄송|미안(?:합니다|해요|하지만)|유감|안타깝게도|아쉽게도|사과드|양해)
    | [^.]{0,24}(?:비디오|동영상|영상|이미지|사진|프레임|파일|내용)[^.]{0,16}(?:(?:볼|확인할|접근할|시청할|열
        |분석할|설명할|재생할|처리할|파악할|제공할|열람할|식별할)\s?수\s?(?:가\s|는\s)?없(?:습니다|어요|네요|음
        |다(?=\.|\Z))|(?:없습니다|없어요|없네요)\s*\.?\s*\Z|(?:제공|첨부|업로드|전송|표시|선명|공유)(?:되
        |하)지\s?(?:않|못)|보이지\s?않|못\s?했습니다|불가능)
    | (?:저는|나는|제가)\s[^.]{0,30}(?:수\s?없(?:습니다|어요|네요)|못합니다|않습니다|AI|인공지능|언어\s?모델)
    | (?:AI|인공지능|언어\s?모델)[^.]{0,10}(?:로서|이기\s?때문|이므로|라서|입니다)
    | [^.]{0,24}(?:업로드|제공|공유|첨부|전송|다시\s?시도)(?:해|하여)?\s?(?:주|주시|보내)(?:세요|시|십|면)""",
    "ar": r"""
      (?:أنا\s+)?(?:آسف|اسف|أعتذر|اعتذر|عذرا|عذراً|عذرًا|للأسف|المعذرة|معذرة|متأسف|يؤسفني|مع\s+الأسف|نأسف)
    | (?:أنا\s+|إنني\s+|لكنني\s+)?(?:لا|لم|لست)\s+(?:أستطيع|يمكنني|أتمكن|أرى|أملك|استطيع|قادر|قادرا|أستطع
        |يمكن\s+(?:عرض|وصف|مشاهدة|الوصول)|أجد|لدي|تتوفر\s+لدي|أتلق) | ليس\s+(?:لدي|بإمكاني|بوسعي)
        | لا\s+(?:تتوفر|يتوفر|توجد|يوجد)\s+لدي
    | (?:بصفتي|كوني|باعتباري|كنموذج|كمساعد|أنا\s+(?:مجرد\s+)?(?:نموذج|ذكاء|مساعد))
    | (?:لا\s+يوجد|لم\s+يتم|ليس\s+هناك|لا\s+توجد|لم\s+تقم)\s+(?:\w+\s+){0,2}(?:ال)?(?:فيديو|مقطع|صورة|صور|ملف
        |إرفاق|ارفاق|تحميل|تقديم|مرفق|رفع|توفير|إطارات)
    | (?:يرجى|من\s+فضلك|الرجاء|رجاء|رجاءً|هل\s+يمكنك)\s+(?:\w+\s+)?(?:تحميل|إرفاق|تقديم|مشاركة|إرسال|رفع|تزويد
        |توفير|إعادة|المحاولة|التأكد)
    | (?:ال)?(?:فيديو|مقطع|صورة)\s+غير\s+(?:واضح|متاح|متوفر|مرفق|موجود)""",
    "hi": r"""
      (?:क्षमा\s+(?:करें|कीजिए|चाहता|चाहती|करना)|माफ़?\s?(?:कीजिए|कीजिये|करें|करना|करिए|ी\s+चाहता)
        |मुझे\s+(?:खेद|माफ़?|अफ़?सोस)|खेद\s+है|दुर्भाग्य(?:वश|\s?से)|अफ़?सोस|सॉरी)
    | (?:मैं|मुझे|मुझसे)\s+[^।.]{0,60}(?:नहीं|असमर्थ|सक्षम\s+नहीं)
    | (?:कोई|एक\s+भी)\s+(?:भी\s+)?(?:वीडियो|छवि|चित्र|तस्वीर|फ़?ाइल|फ्रेम)[^।.]{0,30}नहीं
    | (?:एक\s+)?(?:एआई|AI|भाषा\s+मॉडल|कृत्रिम)[^।.]{0,24}(?:के\s+रूप\s+में|होने\s+के|हूँ|हूं)
    | (?:वीडियो|छवि|चित्र)\s+(?:स्पष्ट|उपलब्ध|साफ़?|संलग्न|अपलोड|दिखाई|लोड)[^।.]{0,20}नहीं
    | कृपया\s+[^।.]{0,30}(?:अपलोड|प्रदान|साझा|भेज|संलग्न|दोबारा|पुनः)""",
    "vi": r"""(?:rất\s+)?(?:xin\s+lỗi|tiếc|rất\s+tiếc|thật\s+không\s+may|đáng\s+tiếc)\b
        | tôi\s+(?:\w+\s+)?(?:không\s+(?:thể|có|nhìn|xem|thấy)|chưa|là\s+(?:một\s+)?(?:mô\s+hình|ai\b
        |trợ\s+lý)) | vui\s+lòng\s+(?:cung\s+cấp|tải|gửi|chia\s+sẻ|thử) | không\s+(?:có|tìm\s+thấy)\s+(?:video
        |hình\s+ảnh|tệp)\s+(?:nào|được|đính) | là\s+một\s+(?:mô\s+hình|ai\b|trợ\s+lý)""",
    "id": r"""(?:mohon\s+)?maaf\b | (?:sayangnya|saya\s+menyesal|kami\s+mohon)
        | saya\s+(?:\w+\s+)?(?:tidak\s+(?:dapat|bisa|memiliki|melihat|mampu)|belum|adalah\s+(?:model|ai\b
        |asisten)|hanya) | sebagai\s+(?:sebuah\s+)?(?:model|ai\b|asisten) | tidak\s+ada\s+(?:video|gambar|file
        |berkas|lampiran)\s+(?:yang|terlampir|dilampirkan) | (?:tolong|silakan|silahkan|mohon)\s+(?:unggah
        |berikan|kirim|bagikan|lampirkan|coba)""",
    "tr": r"""(?:üzgünüm|maalesef|özür\s+dilerim|ne\s+yazık\s+ki|kusura\s+bakma|malesef)\b
        | (?:ben\s+)?bir\s+(?:yapay\s+zeka|dil\s+modeli)\w*\s+(?:olarak|olduğum|olduğumdan|im|yim)
        | lütfen\s+[^.]{0,40}(?:yükle|sağla|paylaş|gönder|ekle|dene) | [^.]{0,30}(?:video|görüntü|görsel|resim
        |dosya)\w*\s+[^.]{0,20}(?:göremiyorum|izleyemiyorum|erişemiyorum|açamıyorum|bulunamadı|bulunmuyor
        |eklenmemiş|yüklenmemiş|net\s+değil|sağlanmamış)""",
    "pl": r"""(?:przepraszam|przykro\s+mi|niestety|wybacz)\b | nie\s+(?:mogę|jestem\s+w\s+stanie
        |widzę\s+(?:żadn|film|wideo|obraz)|mam\s+(?:dostępu|możliwości)|otrzymał|udało) | jako\s+(?:model|ai\b
        |sztuczna|asystent) | (?:brak|nie\s+ma)\s+(?:wideo|filmu|obrazu|nagrania|pliku|załącznika) | (?:proszę
        |czy\s+możesz)\s+(?:\w+\s+)?(?:przesł|prześlij|udostępni|załącz|dostarcz|podaj|spróbuj|wgraj)""",
    "nl": r"""(?:het\s+spijt\s+(?:me|mij)|helaas|excuses|mijn\s+excuses)\b | sorry(?=[,.!]) | ik\s+(?:kan|ben
        |heb|zie|kon)\b[^.]{0,40}\b(?:niet|geen)\b | als\s+(?:een\s+)?(?:ai\b|taalmodel|kunstmatige)
        | (?:er\s+is\s+)?geen\s+(?:video|afbeelding|bijlage|bestand)\s+(?:\w+\s+)?(?:bijgevoegd|geüpload
        |beschikbaar|gevonden|verstrekt|meegestuurd) | (?:kunt\s+u|kun\s+je|gelieve|upload
        |deel)\s+[^.]{0,30}(?:video|bestand|uploaden|delen|sturen)""",
    "th": r"""(?:ขออภัย|ขอโทษ|เสียใจ(?:ด้วย)?|น่าเสียดาย) | (?:ฉัน|ผม|ดิฉัน|เรา)?(?:ไม่สามารถ|มองไม่เห็น
        |ไม่เห็น(?:วิดีโอ|ภาพ))(?:ดู|เข้าถึง|อธิบาย|เห็น|ให้|เปิด|วิดีโอ|ภาพ|บอก|ระบุ|ประมวล)? | ไม่มี(?:วิดีโอ
        |วีดีโอ|คลิป|รูปภาพ|ภาพ|ไฟล์)[^ ]{0,12}(?:แนบ|อัป|ให้|ที่) | (?:กรุณา|โปรด)(?:อัป|ส่ง|ให้|แชร์|แนบ
        |ลอง) | ในฐานะ(?:ที่เป็น)?(?:AI|เอไอ|โมเดล|ปัญญา)""",
    "fa": r"""(?:متأسفم|متاسفم|متأسفانه|متاسفانه|ببخشید|عذر\s?خواهی|با\s+عرض\s+پوزش|پوزش)
        | (?:من\s+)?(?:نمی[\s\u200c]?توانم|قادر\s+(?:به|نیستم)|نمی[\s\u200c]?بینم)
        | لطفا\S?\s+(?:\w+\s+){0,3}(?:آپلود|ارسال|ارائه|بارگذاری) | (?:هیچ\s+)?(?:ویدیو|ویدئو
        |تصویر)\S*\s+(?:\w+\s+)?(?:وجود\s+ندارد|ارائه\s+نشده|پیوست\s+نشده)""",
    "uk": r"""(?:вибач(?:те)?|перепрошую|пробач(?:те)?|на\s+жаль|прошу\s+вибачення|мені\s+шкода)\b
        | я\s+не\s+(?:можу|бачу|маю|здат|в\s+змозі) | (?:як|я\s*[-–—]?)\s*(?:ші\b|штучн|мовна\s+модел)
        | (?:будь\s+ласка),?\s+(?:завантаж|надай|надішл|прикріп|поділ) | (?:немає|відсутнє)\s+(?:відео|зображен)""",
    "others": r"""
      (?:bohužel|omlouvám\s+se|promiňte|je\s+mi\s+líto|nemohu|nejsem\s+schop|tyvärr|jag\s+(?:är\s+ledsen
        |kan\s+(?:tyvärr\s+)?inte|beklagar|har\s+inte)|ursäkta|förlåt|beklager|dessverre|desværre|undskyld
        |jeg\s+(?:kan\s+(?:dessverre\s+|desværre\s+)?ikke|har\s+ikke)|valitettavasti|pahoittelen
        |olen\s+pahoillani|anteeksi|en\s+(?:voi|pysty|näe)\s|sajnálom|sajnos|elnézést|bocsánat|nem\s+(?:tudom
        |látom|tudok)\s|îmi\s+pare\s+rău|din\s+păcate|scuze|nu\s+pot\s|λυπάμαι|δυστυχώς|συγγνώμη|δεν\s+(?:μπορώ
        |βλέπω|έχω)|съжалявам|за\s+съжаление|žao\s+mi|nažalost|ho\s+sento|ho\s+lamento|ez\s+dut)(?!\w)
    | (?:מצטער(?:ת)?|אני\s+מצטער(?:ת)?|לצערי|סליחה|אני\s+לא\s+יכול(?:ה)?|איני\s+יכול(?:ה)?|אין\s+(?:לי|סרטון
        |וידאו))(?!\w)
    | (?:দুঃখিত|আমি\s+দুঃখিত|দুর্ভাগ্যবশত|আমি\s+[^।]{0,40}(?:পারছি\s+না|পারি\s+না)|মাফ\s+করবেন)
        | (?:மன்னிக்கவும்|துரதிர்ஷ்டவசமாக) | (?:క్షమించండి|దురదృష్టవశాత్తు) | (?:माफ\s+करा|क्षमस्व|दुर्दैवाने)
        | (?:معذرت|افسوس|بدقسمتی\s+سے|میں\s+[^۔]{0,40}(?:نہیں|قاصر))
    | (?:សូមអភ័យទោស|សូមទោស|ខ្ញុំមិនអាច) | (?:ຂໍອະໄພ|ຂໍໂທດ|ຂ້ອຍບໍ່ສາມາດ) | (?:တောင်းပန်ပါတယ်|ဝမ်းနည်းပါတယ်
        |တောင်းပန်ပါသည်|ဝမ်းနည်းပါသည်)
    | (?:samahani|pole\s+sana|siwezi)\b | (?:paumanhin|pasensya|ikinalulungkot|hindi\s+ko\s+(?:maaaring|kaya
        |makita))\b""",
}


@cache  # compiled with the first caption: a fifth of a second, which `--help` need not wait for
def _pattern() -> re.Pattern[str]:
    phrases = "|".join(f"(?:{pattern})" for pattern in _BY_LANGUAGE.values())
    return re.compile(rf"{_SENTENCE_START}(?:{phrases})", re.IGNORECASE | re.VERBOSE)


def is_refusal(text: str) -> bool:
    """Whether a sentence of the text refuses; text inside a clip or speech may hold the same words in quotation marks."""
    return bool(_pattern().search(text))
