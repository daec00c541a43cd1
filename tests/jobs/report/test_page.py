"""The report page: numbers of the ledger, missing stages, escaping of untrusted text, reproducible bytes."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import io
import json
import os
import re
import select
import shutil
import subprocess
import tarfile
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.recipe.presets import quickstart
from jobs.report.charts import (
    Group,
    Marker,
    Segment,
    Series,
    histogram,
    line,
    nice_ticks,
    number,
    pack_columns,
    smooth,
    stacked_bar,
)
from jobs.report.gallery import choose_clips
from jobs.report.page import write_report
from jobs.report.tables import clock, duration
from jobs.report.what_if import what_if
from recaption.ledger.ledger import CLIPS_SCHEMA, REJECTED_SCHEMA, SHARD_SCHEMA, ClipState, build_ledger
from recaption.quality.filters import FilterThresholds
from recaption.records import Caption, CaptionFields, ClipPreview, Sample, Video, to_table
from recaption.run_folder import RunFolder
from recaption.video_io.writer import encode_video

THRESHOLDS = dataclasses.replace(
    FilterThresholds(**{field.name: None for field in dataclasses.fields(FilterThresholds)}), min_sharpness=20.0
)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
BUCKET = "9f-32x48-8fps"
TIMINGS = {
    "prepare": 2.5,
    "train": 61.0,
    "throughput": {
        "prepare": {
            "parts": 3,
            "unit": "clips",
            "units": 1412,
            "workers": 2,
            "wall_seconds": 2.0,
            "busy_seconds": 3.5,
            "cpu_seconds": 3.25,
            "utilisation": 0.875,
            "per_second": 706.0,
            "cpu_seconds_each": 0.0023,
        }
    },
}
STAGES = ("prepare", "caption", "shard", "plan", "train", "sample")


def moving_square(seed: int) -> bytes:
    frames = np.full((9, 32, 48, 3), 40 + 20 * (seed % 8), np.uint8)
    for t in range(9):
        frames[t, 8:20, 4 + 3 * t : 16 + 3 * t] = (200, 40 * (seed % 5), 90)
    return encode_video(frames, fps=8)


def picture(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (48, 32), (30 * (seed % 8), 90, 120)).save(sink, "JPEG")
    return sink.getvalue()


def clip_row(video_id: str, uri: str, index: int, sharpness: float) -> dict[str, object]:
    start, end = index * 24, (index + 1) * 24
    row: dict[str, object] = dict.fromkeys(CLIPS_SCHEMA.names)
    row |= {"clip_id": f"{video_id}-{start:07d}-{end:07d}", "video_id": video_id, "uri": uri, "shot_index": index}
    row |= {"start_frame": start, "end_frame": end, "start_seconds": index * 1.5, "end_seconds": (index + 1) * 1.5}
    return row | {"width_px": 96, "height_px": 64, "fps": 16.0, "sharpness": sharpness, "motion": 0.2 + index}


def write_shard(run: RunFolder, rows: list[Caption]) -> list[Sample]:
    sink, samples = io.BytesIO(), []
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number_, row in enumerate(rows):
            start, mp4 = tar.offset, moving_square(number_)
            for extension, payload in (("json", b"{}"), ("mp4", mp4), ("txt", row.text.encode())):
                member = tarfile.TarInfo(f"{row.clip_id}.{extension}")
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
            samples.append(
                Sample(
                    clip_id=row.clip_id,
                    shard=f"shards/{BUCKET}/000000.tar",
                    offset_bytes=start,
                    num_bytes=tar.offset - start,
                    bucket=BUCKET,
                    num_frames=9,
                    height_px=32,
                    width_px=48,
                    fps=8,
                    num_latent_tokens=72,
                    num_caption_tokens=5,
                    caption=row.text,
                    sha256=hashlib.sha256(mp4).hexdigest(),
                )
            )
    table = [dataclasses.asdict(sample) | {"status": "ok", "reason": None} for sample in samples]
    run.write_bytes(f"shards/{BUCKET}/000000.tar", sink.getvalue())
    run.write_table(f"shards/{BUCKET}/000000.parquet", pa.Table.from_pylist(table, schema=SHARD_SCHEMA))
    run.write_table("shards/rejected.parquet", REJECTED_SCHEMA.empty_table(), {"set": "main"})
    return samples


def evaluation_of(evil: str) -> dict[str, object]:
    fraction = {
        "value": 0.81,
        "num": 64,
        "unit": "clips",
        "definition": "fraction of samples",
        "chance": 0.1,
        "real": 0.95,
    }
    missing = {"value": None, "num": 0, "unit": "clips", "definition": "a distance", "chance": None, "real": None}
    return {
        "step": 39,
        "captioner": "tiny@0",
        "size": BUCKET,
        "num_steps": 30,
        "guidance": 3.0,
        "settings": {"held_out": ""},
        "prompts": [f"a prompt{evil}"],
        "sample_captions": [f"a caption{evil}"],
        "measures": {
            "prompt_following/colour": fraction | {"note": ""},
            "frechet_distance": missing | {"note": "too few clips"},
        },
    }


def make_run(root: Path, *, up_to: str = "sample", evil: str = "") -> RunFolder:
    """Three readable videos of two clips (the last clip blurry), one failed input; then the stages up to `up_to`."""
    done = STAGES[: STAGES.index(up_to) + 1] if up_to else ()
    run = RunFolder(str(root / "run"))
    uris = [f"/in/{name}{evil}.mp4" for name in "abc"]
    videos = [Video(video_id=u[4] * 16, uri=u, num_frames=48, duration_seconds=3.0, codec="h264") for u in uris]
    failed = Video(
        video_id="d" * 16,
        uri=f"/in/cut{evil}.mp4",
        duration_seconds=1.0,
        status="failed",
        reason="truncated",
        detail=f"ends in frame 9{evil}",
    )
    clips = [clip_row(u[4] * 16, u, i, 3.0 if u[4] == "c" and i else 99.0) for u in uris for i in range(2)]
    captions = [
        Caption(
            clip_id=str(c["clip_id"]),
            text=f"a red square moves right{evil}",
            fields=CaptionFields(colour=f"red{evil}", main_object="square"),
            clip_score=0.31,
        )
        for c in clips[:5]
    ]
    original = Caption(clip_id=captions[0].clip_id, text=f"IMG_0012{evil}", source="original")
    if "prepare" in done:
        run.write_yaml("run.yaml", {"recipe": {"name": f"test{evil}"}, "versions": {"recaption": f"0{evil}"}})
        run.write_table("videos/part-00000.parquet", to_table([*videos, failed], Video))
        run.write_table("clips/part-00000.parquet", pa.Table.from_pylist(clips, schema=CLIPS_SCHEMA))
        previews = [ClipPreview(clip_id=str(c["clip_id"]), jpeg=picture(i)) for i, c in enumerate(clips)]
        run.write_table("previews/part-00000.parquet", to_table(previews, ClipPreview))
    if "caption" in done:
        run.write_table("captions/main/part-00000.parquet", to_table([*captions, original], Caption))
        other = dataclasses.replace(captions[1], text=f"words of another set{evil}")
        run.write_table("captions/draft/part-00000.parquet", to_table([other], Caption))
    if "shard" in done:
        run.write_table("index.parquet", to_table(write_shard(run, captions), Sample))
    if "plan" in done:
        plan = {"num_samples": 5, "num_packs": 2, "num_steps": 2, "fill": 0.9, "rank_efficiency": 0.97}
        plan |= {"rejected": {"too_long": 3}, "policy": "first_fit", "capacity": 200, "pack_tokens": [216, 144]}
        plan |= {"rejected_seconds": {"too_long": 12.0}, "by_rule": {"split": 2}, "by_rule_seconds": {"split": 8.0}}
        plan |= {"num_segments": 7, "dropped_token_fraction": 0.25, "kept_tokens": 360}
        plan["epochs"] = [{**plan, "epoch": epoch, "num_steps": 2 + epoch} for epoch in (0, 1)]
        run.write_bytes("plan.json", json.dumps(plan).encode())
    if "train" in done:
        lines = [{"step": s, "loss": 1 / s, "fill": 0.9, "tokens_per_second": 800.0} for s in range(1, 40)]
        lines[3]["loss"] = None
        lines[20]["val/loss"] = lines[30]["val/loss"] = 0.2
        text = "\n".join(json.dumps(row) for row in lines) + '\n{"step": 41, "lo'
        run.write_bytes("train/main/metrics.jsonl", text.encode())
        run.write_bytes("report/timings.json", json.dumps(TIMINGS).encode())
        run.write_bytes("train/main/evaluation.json", json.dumps(evaluation_of(evil)).encode())
    if "sample" in done:
        run.write_bytes("samples/main/000.mp4", moving_square(3))
        sink = io.BytesIO()
        Image.new("RGB", (96, 32), (9, 90, 200)).save(sink, "PNG")
        run.write_bytes("samples/main/sheet.png", sink.getvalue())
        listing = {"videos": ["000.mp4", "../../run.yaml", "gone.mp4"], "contact_sheet": "sheet.png", "seed": 0}
        run.write_bytes("samples/main/samples.json", json.dumps(listing | {"prompts": [f"a prompt{evil}"]}).encode())
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    run = make_run(tmp_path_factory.mktemp("whole"))
    return run, Path(write_report(run, THRESHOLDS)).read_text()


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open[-1:]):
            self.text += data + " "


def words_of(text: str) -> str:
    return " ".join(Page(text).text.split())


# --- contents ---------------------------------------------------------------------------------------------------------


def test_headline_and_funnel_match_the_ledger(whole: tuple[RunFolder, str]) -> None:
    run, page = whole
    words, sums = words_of(page), build_ledger(run, THRESHOLDS).summary()
    assert sums["seconds"]["kept"] == 7.5
    assert "4 videos went in, 5 captioned training samples came out" in words
    assert "Input 4 videos · 10.0 s 100%" in words
    assert "Read 3 videos · 9.0 s 90%" in words
    assert "Kept by the filters 5 clips · 7.5 s 75%" in words
    assert "In shards 5 clips · 7.5 s 75%" in words
    assert "Inside samples 5 samples · 5.6 s 56%" in words, "9 frames at 8 fps of clips of 1.5 s"
    assert "blurry 1 1.5 s" in words
    assert "truncated 1 1.0 s" in words
    assert "ends in frame 9" in words


def test_gallery_plays_the_bytes_of_the_shards_and_shows_captions_before_and_after(
    whole: tuple[RunFolder, str],
) -> None:
    run, page = whole
    videos = [attributes for tag, attributes in Page(page).tags if tag == "video"]
    assert len(videos) == 5 + 1, "five clips and one sampled video"
    sha256 = {row["sha256"] for row in run.read_table("index.parquet").to_pylist()}
    shown = {hashlib.sha256(run.read_bytes(f"report/{v['src']}")).hexdigest() for v in videos}
    assert sha256 <= shown
    assert all(v["preload"] == "none" and run.exists(f"report/{v['poster']}") for v in videos)
    words = words_of(page)
    assert "a red square moves right Before: IMG_0012" in words
    assert "set draft words of another set" in words
    assert "6 of 6 clips" in words


def test_every_link_is_inside_the_report_folder_and_exists(whole: tuple[RunFolder, str]) -> None:
    run, page = whole
    links = [a.get(k) or "" for _, a in Page(page).tags for k in ("src", "href", "poster") if k in a]
    files = [link for link in links if not link.startswith(("#", "data:"))]
    assert files
    assert all(re.fullmatch(r"media/[0-9a-f]{16}\.(mp4|jpg|png)", link) for link in files), files
    assert all(run.exists(f"report/{link}") for link in files)
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", page), "nothing from the network"


def test_buckets_packs_training_samples_and_recipe_are_shown(whole: tuple[RunFolder, str]) -> None:
    words = words_of(whole[1])
    for text in (
        "48 × 32 9 frames at 8 fps 5",
        "Fill 90.0%",
        "Not packed: too long 3 (12.0 s)",
        "Samples by rule: split into segments 2 (8.0 s)",
        "Tokens dropped 25.0%",
        "1 3 5 7 360 25.0 % 90.0 % 97.0 %",
        "main 39 steps · 800 tokens / s",
        "colour 81.0% 10.0% 95.0% 64 clips fraction of samples",
        "frechet distance – a distance. Too few clips",
        "a prompt a caption",
        "a prompt",
        "train 1 min 1 s",
        "recaption 0",
    ):
        assert text in words, text
    assert "Not run yet" not in words


def test_ids_are_unique_and_images_have_alt_texts(whole: tuple[RunFolder, str]) -> None:
    tags = Page(whole[1]).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    assert all(a.get("aria-label") for tag, a in tags if tag == "video")
    assert all(a.get("aria-label") or a.get("aria-hidden") or "viewbox" in a for tag, a in tags if tag == "svg")


@pytest.mark.parametrize("up_to", ["", *STAGES[:-1]])
def test_stages_that_have_not_run_show_their_command(tmp_path: Path, up_to: str) -> None:
    page = Path(write_report(make_run(tmp_path, up_to=up_to), THRESHOLDS)).read_text()
    words = words_of(page)
    missing = STAGES[STAGES.index(up_to) + 1 :] if up_to else STAGES
    commands = {
        "prepare": "recaption prepare --videos PATH --out RUN",
        "caption": "recaption caption --run RUN --set NAME",
        "shard": "recaption shard --run RUN --captions NAME",
        "plan": "recaption plan --run RUN",
        "train": "recaption train dit --run RUN --name NAME",
        "sample": "recaption sample --checkpoint RUN/train/NAME --prompt TEXT",
    }
    for stage, command in commands.items():
        is_shown = stage in missing and not (stage == "caption" and not up_to)
        assert (command in words) == is_shown, f"{stage}: {command}"


def test_an_unreadable_clip_is_marked_and_the_page_is_written(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    name = f"shards/{BUCKET}/000000.tar"
    run.write_bytes(name, run.read_bytes(name)[:3000])
    words = words_of(Path(write_report(run, THRESHOLDS)).read_text())
    assert words.count("cannot play") >= 4


def test_the_gallery_counts_the_clips_that_are_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, up_to="shard")
    page = Path(write_report(run, THRESHOLDS, max_clips=2)).read_text()
    assert "2 of 6 clips, evenly chosen from every state; 4 are not shown" in words_of(page)
    assert [a["data-group"] for tag, a in Page(page).tags if tag == "article"] == ["in_shard", "blurry"]


# --- untrusted input -------------------------------------------------------------------------------------------------


def test_text_from_videos_captions_and_prompts_is_never_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path, evil=EVIL)
    page = Path(write_report(run, THRESHOLDS)).read_text()
    tags = Page(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not [a for _, a in tags if any(name.startswith("on") for name in a)]
    assert "<script>alert" not in page
    assert html.escape(EVIL, quote=False)[:30] in page, "the text is shown as text"


def test_the_policy_allows_only_the_inline_script_and_style(whole: tuple[RunFolder, str]) -> None:
    page = whole[1]
    (policy,) = [a["content"] for tag, a in Page(page).tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    for tag in ("script", "style"):
        (body,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert " style=" not in page, "the policy would refuse it"


def test_samples_json_cannot_reach_out_of_the_samples_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    listing = {"videos": ["../../secret.mp4", "/etc/x.mp4", "..\\..\\secret.mp4"], "contact_sheet": "../../secret.png"}
    for name in ("secret.mp4", "secret.png"):
        run.write_bytes(name, b"secret bytes")
    run.write_bytes("samples/main/samples.json", json.dumps(listing).encode())
    write_report(run, THRESHOLDS)
    assert not [name for name in run.list("report/media/*") if run.read_bytes(name) == b"secret bytes"]


def test_the_same_run_gives_the_same_bytes_and_old_media_go(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    first = Path(write_report(run, THRESHOLDS)).read_bytes()
    media = run.list("report/media/*")
    run.write_bytes("report/media/0123456789abcdef.mp4", b"left behind by an earlier report")
    assert Path(write_report(run, THRESHOLDS)).read_bytes() == first
    assert run.list("report/media/*") == media
    assert run.exists("report/timings.json")
    again = make_run(tmp_path / "elsewhere")
    assert Path(write_report(again, THRESHOLDS)).read_bytes() == first


def test_stage_times_show_worker_throughput(tmp_path: Path) -> None:
    page = Path(write_report(make_run(tmp_path), THRESHOLDS)).read_text()
    assert "1,412 clips, 706/s, 0.0023 CPU-s each, 2 workers busy 88%" in page


# --- charts and words -------------------------------------------------------------------------------------------------


def numbers_in(svg: str, attribute: str, style: str) -> list[float]:
    return [float(v) for v in re.findall(rf'<rect class="{style}"[^>]* {attribute}="([\d.]+)%?"', svg)]


def test_funnel_bars_form_a_waterfall() -> None:
    rows = [(10, []), (7, [Segment("a", "failed", 3)]), (2, [Segment("b", "dropped", 5)])]
    bars = [stacked_bar([Segment("left", "kept", left), *lost], total=10, label="") for left, lost in rows]
    assert [numbers_in(bar, "width", "kept") for bar in bars] == [[100], [70], [20]]
    assert numbers_in(bars[1], "x", "failed") == [70]
    assert numbers_in(bars[2], "x", "dropped") + numbers_in(bars[2], "width", "dropped") == [20, 50]


def test_histogram_counts_every_value_once() -> None:
    values = [0.0, 0.1, 0.1, 5.0, 9.99, 10.0]
    svg = str(histogram([Group("kept", "kept", values)], label="x", markers=[Marker(5, "limit"), Marker(99, "off")]))
    assert sum(int(n) for n in re.findall(r": (\d+) kept</title>", svg)) == len(values)
    assert svg.count('class="marker"') == 1


def test_histogram_counts_values_on_the_first_edge() -> None:
    svg = str(histogram([Group("kept", "kept", [0.3, 2.1])], label="x"))
    assert len(re.findall(r": 1 kept</title>", svg)) == 2, "3 * 0.1 is more than 0.3"


@pytest.mark.parametrize("values", [[], [3.0], [2.0, 2.0], [1e-9, 1e9], [-5.0, float("nan"), float("inf"), 4.0]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_charts_draw_any_values(values: list[float], logarithmic: bool) -> None:
    svg = str(histogram([Group("g", "kept", values)], label="any", logarithmic=logarithmic))
    svg += str(line([Series("s", "accent", range(len(values)), values)], label="any"))
    Page(svg)
    assert "nan" not in svg
    assert "inf" not in svg.lower().replace("infinit", "")


def test_long_curves_are_downsampled_and_smoothing_does_not_shift_a_ramp() -> None:
    steps = list(range(10_000))
    svg = str(line([Series("s", "accent", steps, steps)], label="ramp"))
    assert len(re.findall(r"[\d.]+,[\d.]+", svg.partition("points=")[2].partition(" vector")[0])) == 400
    assert smooth([float(x) for x in steps]) == pytest.approx(steps)


def test_labels_are_escaped() -> None:
    svg = str(stacked_bar([Segment(EVIL, "kept", 1.0)], total=1.0, label=EVIL)) + str(pack_columns([3, 4], 4))
    assert [tag for tag, _ in Page(svg).tags if tag in ("script", "img")] == []


def test_number_formatting() -> None:
    assert [number(x) for x in (0, 12300, 3.25, 0.0411, 1e-5, float("nan"))] == [
        "0",
        "12,300",
        "3.25",
        "0.041",
        "1.0e-05",
        "–",
    ]
    assert [duration(s) for s in (0, 8.42, 59.96, 192, 3600, 19200, 1e6)] == [
        "0.0 s", "8.4 s", "1 min", "3 min 12 s", "1 h", "5 h 20 min", "11 d 13 h",
    ]  # fmt: skip
    assert [clock(s) for s in (0, 7.5, 59.99, 723, 3723.04)] == ["0:00.0", "0:07.5", "1:00.0", "12:03.0", "1:02:03.0"]
    assert nice_ticks(0.13, 1.02) == [0.25, 0.5, 0.75, 1.0]


def test_chosen_clips_are_distinct_and_of_every_state() -> None:
    states = [("in_shard", None)] * 90 + [("dropped", "blurry")] * 40 + [("failed", "truncated")] * 2
    clips = [
        ClipState(clip_id=str(i), uri="", seconds=1, counted_seconds=1, state=state, reason=reason)
        for i, (state, reason) in enumerate(states)
    ]
    rows = choose_clips(clips, 20)
    assert len(rows) == len(set(rows)) == 20
    assert [sum(clips[r].reason == reason for r in rows) for reason in (None, "blurry", "truncated")] == [10, 8, 2]
    assert choose_clips(clips[:5], 20) == [0, 1, 2, 3, 4]
    assert choose_clips([], 20) == []


# --- in a browser -----------------------------------------------------------------------------------------------------


class Chromium:
    """A minimal client of the devtools protocol over a pipe."""

    def __init__(self, executable: str, profile: Path) -> None:
        command_read, self.commands = os.pipe()
        self.responses, response_write = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
        flags += f" --disable-dev-shm-usage --remote-debugging-pipe --user-data-dir={profile} about:blank"
        wiring = f'exec "$0" "$@" 3<&{command_read} 4>&{response_write}'
        self.process = subprocess.Popen(
            ["bash", "-c", wiring, executable, *flags.split()],
            pass_fds=(command_read, response_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(response_write)
        self.buffer, self.events, self.count, self.session = b"", [], 0, None
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def read(self, seconds: float = 60) -> dict:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.responses], [], [], max(deadline - time.monotonic(), 0))
            received = os.read(self.responses, 1 << 20) if ready else b""
            if not received:
                raise TimeoutError("no message from chromium")
            self.buffer += received
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: object) -> dict:
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (response := self.read()).get("id") != self.count:
            self.events.append(response)
        assert "error" not in response, response
        return response["result"]

    def open(self, path: str) -> None:
        self.events = [event for event in self.events if event.get("method") != "Page.loadEventFired"]
        self.call("Page.navigate", url=f"file://{path}")
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def evaluate(self, script: str) -> object:
        response = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        os.close(self.commands)
        os.close(self.responses)


def test_thresholds_show_dropped_and_neighbouring_clips(tmp_path: Path) -> None:
    page = Path(write_report(make_run(tmp_path), THRESHOLDS)).read_text()
    section = page[page.index('id="thresholds"') : page.index('id="distributions"')]
    assert "min_sharpness = 20" in section
    (row,) = re.findall(r"<tr><th scope=.row.>blurry.*?</tr>", section, re.DOTALL)
    assert re.findall(r'<td class="num">(.*?)</td>', row) == ["1", "5", "7.5 s"]
    assert "1 of 6 clips are outside, 1 of them for this reason alone" in " ".join(section.split())
    assert section.count("<img") == 4 + 1
    assert "Not computed" in section
    assert "aesthetic" in section
    assert "Training tokens" not in section
    with_tokens = Path(write_report(make_run(tmp_path / "b"), THRESHOLDS, recipe=quickstart())).read_text()
    assert "Training tokens" in with_tokens


def test_curves_fill_the_axis_and_mark_the_threshold() -> None:
    kept = Series("kept", "accent", [0.0, 1.0, 2.0], [1.0, 0.5, 0.0], is_filled=True)
    svg = line([kept], label="x", markers=[Marker(1.0, "now"), Marker(9.0, "beyond")], as_fraction=True)
    assert 'points="0.0,0.0 500.0,500.0 1000.0,1000.0"' in svg
    assert svg.count('class="marker') == 1
    assert 'x1="50.00%"' in svg
    assert "kept from 100% to 0%" in svg
    wide = dataclasses.replace(kept, xs=[1.0, 10.0, 100.0])
    assert 'x1="50.00%"' in line([wide], label="x", markers=[Marker(10.0, "now")], logarithmic=True, as_fraction=True)


@pytest.mark.parametrize("high", [1.3, 4.0, 30.0, 1e4, 1e20])
def test_a_logarithmic_axis_has_a_few_labels(high: float) -> None:
    svg = line([Series("kept", "accent", [1.1, high], [1.0, 0.0])], label="x", logarithmic=True, as_fraction=True)
    assert 2 <= svg.count("text-anchor") <= 6


def test_a_single_point_is_drawn_as_a_dot() -> None:
    svg = line([Series("one", "accent", [5.0], [1.0])], label="x", as_fraction=True)
    assert re.findall(r'<polyline[^>]* points="([^"]*)"', svg) == ["500.0,0.0 500.0,0.0"]


LOAD_EVERYTHING = """(async () => {
  const bad = [];
  const withPoster = [...document.querySelectorAll("video[poster]")];
  const posters = withPoster.map((video) => Object.assign(new Image(), {src: video.poster}));
  for (const image of [...document.images, ...posters]) {
    image.loading = "eager";
    await image.decode().catch(() => bad.push(image.src));
  }
  for (const video of document.querySelectorAll("video")) {
    await new Promise((done) => {
      video.onloadeddata = done;
      video.onerror = () => { bad.push(video.src); done(); };
      video.preload = "auto";
      video.load();
    });
    if (!video.videoWidth) bad.push(video.src);
  }
  return bad;
})()"""
CLICK_AROUND = """(async () => {
  const seen = () => [...document.querySelectorAll("#gallery .card")].filter((card) => !card.hidden).length;
  const found = [seen()];
  document.querySelector('button[data-group="blurry"]').click();
  found.push(seen());
  document.querySelector('button[data-group=""]').click();
  const search = document.getElementById("search");
  search.value = "IMG_0012";
  search.dispatchEvent(new Event("input"));
  found.push(seen());
  document.querySelector("#gallery .card:not([hidden]) .play").click();
  await new Promise((done) => document.querySelector("#gallery .card:not([hidden]) video").onplaying = done);
  return found;
})()"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width_px", [1440, 390])
def test_in_chromium_all_media_load_without_console_messages(tmp_path: Path, width_px: int) -> None:
    run = make_run(tmp_path, evil=EVIL)
    page = write_report(run, THRESHOLDS)
    recipe = dataclasses.replace(quickstart(), filters=THRESHOLDS)
    what_if_page = what_if(run, recipe, ["sharpness=off,motion=1.0"])["page"]
    browser = Chromium(str(shutil.which("chromium")), tmp_path / "profile")
    try:
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=900, deviceScaleFactor=1, mobile=width_px < 600
        )
        browser.open(page)
        assert browser.evaluate(LOAD_EVERYTHING) == []
        assert browser.evaluate(CLICK_AROUND) == [6, 1, 1]
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        browser.open(what_if_page)
        assert browser.evaluate("document.title").startswith("What if")
        assert browser.evaluate(LOAD_EVERYTHING) == []
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        message_kinds = (
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Network.loadingFailed",
        )
        urls = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
        # A browser aborts the request of a video once it has buffered enough; that the video plays is checked above.
        aborted = {"type": "Media", "errorText": "net::ERR_ABORTED"}.items()
        messages = [e for e in browser.events if e["method"] in message_kinds and not aborted <= e["params"].items()]
        assert messages == []
        assert all(url.startswith(("file://", "data:")) for url in urls), urls
    finally:
        browser.close()
