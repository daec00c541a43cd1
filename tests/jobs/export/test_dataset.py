"""Buckets of the trainers' configs, from the clips of an export."""

from __future__ import annotations

from fractions import Fraction

from jobs.export.clip_files import ExportedClip
from jobs.export.dataset import ExportedDataset
from jobs.export.trainer_configs import diffusion_pipe
from jobs.export.video_models import VideoModel, video_model


def clip(number: int, num_frames: int, height_px: int = 480, width_px: int = 832, fps: str = "16") -> ExportedClip:
    return ExportedClip(
        clip_id=f"{number:016x}-0000000-{num_frames:07d}", file="", shard="", offset_bytes=0, num_bytes=0,
        num_video_bytes=7, sha256="", cut="encoded", num_frames=num_frames, width_px=width_px, height_px=height_px,
        fps=fps, seconds=float(num_frames / Fraction(fps)), caption="a text", captions="{}", captioner="", source="",
        licence="", metadata="", source_start_seconds=0.0, source_end_seconds=0.0, source_start_frame=0,
        source_end_frame=num_frames, scores="{}",
    )  # fmt: skip


def dataset(*clips: ExportedClip, model: VideoModel | None = None) -> ExportedDataset:
    return ExportedDataset("/data/out", "clips", clips, model or video_model("wan2.1"), "")


def test_every_clip_that_fits_the_model_has_a_frame_bucket():
    lengths = [5, 17, 18, 33, 47, 81, 200]
    buckets = dataset(*(clip(i, n) for i, n in enumerate(lengths))).frame_buckets
    assert buckets[0] == 5
    assert buckets[-1] == 81
    assert len(buckets) <= 4
    assert all(frames % 4 == 1 for frames in buckets)


def test_frames_are_counted_at_the_rate_of_the_model():
    # 30000/1001 frames per second: 60 frames are 2.002 s, 32 frames at 16 per second
    assert dataset(clip(0, 60, fps="30000/1001")).frame_buckets == [29]
    assert dataset(clip(0, 62, fps="30000/1001")).frame_buckets == [33]


def test_the_most_frequent_size_is_the_first_bucket_and_its_frames_are_a_frame_bucket():
    one = dataset(clip(0, 81), clip(1, 41, 832, 480), clip(2, 33, 832, 480), clip(3, 33, 832, 480))
    assert one.size_buckets[0] == (33, 832, 480)
    assert {frames for frames, _, _ in one.size_buckets} <= set(one.frame_buckets)
    assert one.largest_size == (832, 480)
    assert one.aspect_ratios == [0.577, 1.733]


def test_many_aspect_ratios_become_a_range():
    clips = [clip(i, 81, 320 + 32 * i, 832) for i in range(8)]
    config = diffusion_pipe(dataset(*clips))
    assert "num_ar_buckets = 7" in config
    assert "ar_buckets = [" not in config.replace("num_ar_buckets", "")


def test_an_export_without_clips_has_configs_too():
    empty = dataset()
    assert empty.frame_buckets == [81]
    assert empty.size_buckets == [(81, 624, 624)]
    assert "[1, 81]" in diffusion_pipe(empty)


def test_clips_by_their_rate():
    rates = dataset(clip(0, 81), clip(1, 60, fps="30000/1001"), clip(2, 81)).rates
    assert {str(rate): len(clips) for rate, clips in rates.items()} == {"16": 2, "30000/1001": 1}
