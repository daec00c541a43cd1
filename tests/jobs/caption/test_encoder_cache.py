"""With cached image tokens, another caption set by the same weights decodes no video."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jobs.caption.worker import CaptionWorker
from jobs.recipe.stage_settings import CaptionSettings
from recaption.errors import UsageError
from recaption.records import Caption, Clip, from_table
from recaption.run_folder import RunFolder
from recaption.scenes.renderer import render
from recaption.video_io.frames import DecodeLimits
from recaption.video_io.writer import write_video
from recaption.weights import weights_hash

NUM_FRAMES = 12


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    clips = []
    for number in range(3):
        scene = render(number, num_frames=NUM_FRAMES, height_px=64, width_px=64, fps=8)
        path = tmp_path / f"{number}.mp4"
        write_video(str(path), scene.frames_THWC, fps=8)
        clips.append(
            Clip(
                clip_id=f"{number:016x}-0000000-{NUM_FRAMES:07d}",
                video_id=f"{number:016x}",
                uri=str(path),
                shot_index=0,
                start_frame=0,
                end_frame=NUM_FRAMES,
                start_seconds=0.0,
                end_seconds=NUM_FRAMES / 8,
                width_px=64,
                height_px=64,
                fps=8.0,
            )
        )
    return clips


def captions_of(run: RunFolder, clips: list[Clip], set_name: str, **settings: object) -> list[Caption]:
    """One part of a caption set, computed in this process."""
    worker = CaptionWorker(
        run_uri=run.uri,
        folder=f"captions/{set_name}",
        settings=CaptionSettings(device="cpu", **settings),
        decode=DecodeLimits(),
        stage_hash=set_name,
    )
    worker({"part": 0, "clips": [dataclasses.asdict(clip) for clip in clips], "clips_hash": "h"})
    return from_table(run.read_table(f"captions/{set_name}/part-00000.parquet"), Caption)


def test_cached_tokens_replace_the_videos(tmp_path, clips):
    run = RunFolder(str(tmp_path / "run"))
    settings = {"num_beams": 2, "seed": 5}
    expected = captions_of(run, clips, "expected", **settings)
    first = captions_of(run, clips, "first", cache_encoder_tokens=True)
    cached = run.read_table("embeddings/first/tokens-part-00000.parquet")
    assert cached.num_rows == 3
    assert len(cached["tokens"][0].as_py()) == 32 * 160 * 2
    for clip in clips:
        Path(clip.uri).write_bytes(b"not a video")
    again = captions_of(run, clips, "again", **settings)
    assert [(row.text, row.clip_sha256, row.clip_score) for row in again] == [
        (row.text, row.clip_sha256, row.clip_score) for row in expected
    ]
    assert all(row.reason != "unreadable" for row in again)
    assert {row.clip_sha256 for row in again} == {row.clip_sha256 for row in first}
    best = captions_of(run, clips, "best", num_samples=4)
    assert [row.clip_id for row in best] == [clip.clip_id for clip in clips]


def test_other_windows_or_weights_do_not_use_the_cache(tmp_path, clips, monkeypatch):
    run = RunFolder(str(tmp_path / "run"))
    captions_of(run, clips, "first", cache_encoder_tokens=True)
    Path(clips[0].uri).write_bytes(b"not a video")
    rows = captions_of(run, clips, "windows", window_seconds=0.5)
    assert rows[0].reason == "unreadable"
    from recaption.captioners.videococa import checkpoint

    hash_of = weights_hash
    monkeypatch.setattr(checkpoint, "weights_hash", lambda weights: hash_of(weights)[::-1])
    rows = captions_of(run, clips, "others")
    assert [row.reason == "unreadable" for row in rows] == [True, False, False]


def test_a_part_that_grows_keeps_its_cached_tokens(tmp_path, clips):
    run = RunFolder(str(tmp_path / "run"))
    captions_of(run, clips[:2], "first", cache_encoder_tokens=True)
    Path(clips[0].uri).write_bytes(b"not a video")
    captions_of(run, clips, "first", cache_encoder_tokens=True)
    assert run.read_table("embeddings/first/tokens-part-00000.parquet")["clip_id"].to_pylist() == [
        clip.clip_id for clip in clips
    ]


def test_unsupported_precisions_are_errors(tmp_path):
    from recaption.captioners.registry import load_captioner_with_precision

    for wrong in ("fp8", "int8"):
        with pytest.raises(UsageError, match="fp32, bf16"):
            load_captioner_with_precision("tiny", device="cpu", precision=wrong)
