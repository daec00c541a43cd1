"""Files that accompany videos: texts, pictures, audio tracks, unfinished downloads, and what systems leave in folders.

A folder or a glob is read without them, and they are counted. A file of unknown type is no companion but an input, which
fails later with a reason; and what is named itself, or in a list, is an input whatever its name.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Iterable

_GROUPS = {
    "texts": (
        ".txt .json .jsonl .json3 .csv .tsv .parquet .md .rst .yaml .yml .toml .ini .cfg .xml .html .htm .nfo .log .pdf "
        ".doc .docx .xls .xlsx .description .url .webloc .lnk .torrent .license .annotations .xmp"
    ),
    "subtitles": ".srt .vtt .ass .ssa .sbv .ttml .srv1 .srv2 .srv3 .lrc .sub .idx .sup .smi",
    "audio": ".m4a .mp3 .aac .wav .flac .opus .oga .wma .ac3 .eac3 .dts .mka .aiff",
    "stills": ".jpg .jpeg .jpe .jfif .bmp .tif .tiff .heic .heif .avif .jxl .svg .ico .psd .raw .dng .cr2 .nef .thm",
    "unfinished downloads": ".part .ytdl .crdownload .download .partial .aria2 .tmp .temp .filepart .opdownload",
    "databases and arrays": ".db .sqlite .sqlite3 .lock .npy .npz .pt .pth .safetensors .pkl .h5",
    "code": ".py .pyc .sh .bat .ps1 .ipynb .js",
    "archives": ".tgz .zip .gz .xz .bz2 .zst .7z .rar .par2 .md5 .sha1 .sha256 .sfv",
}
SIDECAR_EXTENSIONS = frozenset(extension for group in _GROUPS.values() for extension in group.split())
"""Extensions, in lower case."""
PICTURE_EXTENSIONS = (".png", ".webp")
"""Stills or animations: the head of the file says which."""
COMPANION_FOLDERS = frozenset(
    {
        ".ipynb_checkpoints",
        "__macosx",
        "@eadir",
        ".git",
        ".svn",
        ".cache",
        ".huggingface",
        ".thumbnails",
        ".appledouble",
    }
    | {".trash", ".trashes", ".spotlight-v100", ".fseventsd", ".stfolder", ".stversions", ".snapshot", ".dropbox.cache"}
    | {"#recycle", "#snapshot", "$recycle.bin", "lost+found", "system volume information"}
)
"""Folders of Jupyter, macOS, NAS, version control and file systems, in lower case: all that is below them."""
_PART_OF_DOWNLOAD = re.compile(r"\.part(-frag\d+)?(\.part)?$", re.IGNORECASE)
_HEAD_BYTES = 4096
"""An animated PNG says so before its first picture data, an animated WebP in its 21st byte."""


def is_companion_folder(name: str) -> bool:
    """Whether all files below a folder of this name are companions."""
    return name.lower() in COMPANION_FOLDERS


def is_companion(name: str, stems: Collection[str], read_head: Callable[[int], bytes]) -> bool:
    """Whether a file is a companion, by its name; pictures by their first bytes, unless they are named like a video.

    Args:
        name: without its folder.
        stems: `video_stems` of the same folder.
        read_head: gives that many bytes of the file, or raises OSError.
    """
    stem, extension = posixpath.splitext(name)
    extension = extension.lower()
    if name.startswith(".") or extension in SIDECAR_EXTENSIONS or _PART_OF_DOWNLOAD.search(name):
        return True
    if extension not in PICTURE_EXTENSIONS:
        return False
    if stem in stems:  # its thumbnail
        return True
    try:
        return not is_animated(read_head(_HEAD_BYTES))
    except OSError:
        return False  # an input, whose row says why it cannot be read


def video_stems(names: Iterable[str]) -> frozenset[str]:
    """Names, without extension, of the files that may be videos."""
    pairs = (posixpath.splitext(name) for name in names)
    others = SIDECAR_EXTENSIONS.union(PICTURE_EXTENSIONS)
    return frozenset(stem for stem, extension in pairs if extension.lower() not in others)


def is_animated(head: bytes) -> bool:
    """Whether the head of a PNG or WebP file is that of an animation; True for other files, which are not judged here."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        first_data = head.find(b"IDAT")
        return 0 < head.find(b"acTL") < (first_data if first_data > 0 else len(head))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return head[12:16] == b"VP8X" and len(head) > 20 and bool(head[20] & 2)
    return True
