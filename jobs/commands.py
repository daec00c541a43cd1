"""The commands of `recaption`: one dataclass each, whose fields are its flags.

`shown`: the settings that the short help of a command lists beside its own flags, as paths. `takes`: the settings that it
has flags for; empty: all, for commands that write the run folder's run.yaml, from which later commands read theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import tyro

from jobs.export.command import Export
from jobs.recipe import presets as recipes
from jobs.recipe.flags import MIXTURE_RULES, SAMPLING, Common, OfVideos, OnRun, Settings, changed, under
from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import SampleSettings
from jobs.sample.requests import FilmFlags, MediaFlags, requests_from_flags
from jobs.train.command import CaptionerTraining, CompressorTraining, DitTraining
from recaption.errors import UsageError

MAIN_FILTERS = (
    "min_seconds min_motion min_sharpness min_luma max_luma max_text_area max_static_text max_duplicate_similarity"
)
BACKEND = "prepare.decode.backend"
STRIDES = ("encode.frame_stride", "encode.spatial_stride")
WINDOWS = "seconds long window_frames overlap_frames conditioning_pixels"
GUIDANCE = "guidance_interval guidance_rescale guidance_power guidance_context guidance_oscillation_steps"


@dataclass(frozen=True, kw_only=True)
class Run(OfVideos):
    """Run the whole pipeline: raw videos to a trained, sampled model and a report page."""

    example: ClassVar[str] = "recaption run --videos clips/ --out runs/a --recipe quickstart"
    shown = (
        under("prepare", "max_clip_seconds")
        + under("filters", "min_motion max_text_area")
        + under("caption", "captioner scorer kinds")
        + under("shard.buckets", "fps num_frames max_areas_px")
        + ("encode.compressor", "plan.capacity")
        + under("train_dit", "dit.width dit.depth dit.text_encoder trainer.num_steps trainer.lr trainer.device")
        + under("sample", "num_steps guidance prompts")
    )
    out: str
    """The run folder: a local path or a fsspec URI."""
    recipe: str = "quickstart"
    """quickstart, small, base, or the path of a run.yaml."""
    stop_after: str | None = None
    """Last stage to run: prepare, caption, shard, encode, plan, train or sample."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def __call__(self) -> dict[str, Any]:
        from jobs.run import run

        with self.working_on(self.out) as cluster:
            lists: dict[str, Any] = {"columns": self.columns, "video_root": self.video_root}
            return run(self.videos, self.out, self.settings, cluster, stop_after=self.stop_after, **lists)


@dataclass(frozen=True, kw_only=True)
class Prepare(OfVideos):
    """Probe the videos, find shots, cut clips, score them."""

    example: ClassVar[str] = "recaption prepare --videos clips/ more/*.mp4 --out runs/a"
    shown = (
        under(
            "prepare",
            "min_clip_seconds max_clip_seconds cut_spans part_size max_failed_share shots.detector scores.models",
        )
        + under("prepare", "scores.plugins")
        + under("prepare", "decode.max_wall_seconds decode.max_video_seconds decode.max_input_bytes")
        + under("prepare", "decode.max_fetch_seconds decode.max_host_connections decode.page_videos decode.on_damage")
        + under("prepare", "duplicates.perceptual")
        + under("filters", f"{MAIN_FILTERS} max_letterbox max_nsfw min_plugin_scores")
        + under("filters", "drop_hdr drop_interlaced drop_transparent max_silence_fraction")
    )
    videos: tuple[str, ...] = ()
    """Files, folders, globs, tars, URIs, lists (.txt, CSV, TSV, JSON, JSON Lines, Parquet, Arrow)."""
    out: str
    """The run folder: a local path or a fsspec URI."""
    recipe: str = "quickstart"
    """quickstart, small, base, or the path of a run.yaml."""
    what_if: tuple[str, ...] = ()
    """Only show how many clips other thresholds would drop: motion=0.02,text_area=0.1,max_luma=off."""
    verdicts: str | None = None
    """Take in what people decided: a .csv, .parquet or .jsonl with clip_id and verdict (keep, reject, none)."""
    remove: str | None = None
    """Take videos out again, down to the last byte: a file of uris, video ids or clip ids, one a line, or a table."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def __call__(self) -> dict[str, Any]:
        from jobs.prepare.prepare import prepare
        from jobs.remove.remove import decide
        from jobs.report.what_if import what_if

        alone = {"--what-if": self.what_if, "--verdicts": self.verdicts, "--remove": self.remove}
        given = [flag for flag, value in alone.items() if value]
        if given and (len(given) > 1 or self.videos):
            raise UsageError(f"{' and '.join([*given, '--videos'][:2])} exclude each other: give one of them")
        if self.what_if:
            return what_if(open_run(self.out)[0], self.settings, self.what_if)
        if self.verdicts or self.remove:
            run = open_run(self.out)[0]
            return decide(run, self.settings, verdicts=self.verdicts, takedown=self.remove, progress=self.progress)
        if not self.videos:
            raise UsageError("--videos is missing: files, folders, globs, lists or URIs of what to prepare")
        with self.working_on(self.out) as cluster:
            lists: dict[str, Any] = {"columns": self.columns, "video_root": self.video_root}
            return prepare(self.videos, self.out, self.settings, cluster, **lists)


@dataclass(frozen=True, kw_only=True)
class CaptionVerb(OnRun):
    """Caption the kept clips into a caption set."""

    example: ClassVar[str] = "recaption caption --run runs/a --captioner tiny --set main"
    shown = (
        *under(
            "caption",
            "scorer prompt kinds window_seconds num_frames max_tokens num_beams num_samples seed batch_size precision",
            "device min_clip_score min_score_margin text_encoder cache_encoder_tokens snap_seconds",
            "endpoint.concurrency endpoint.timeout_seconds",
        ),
        BACKEND,
    )
    captioner: str | None = None
    """SPEC: tiny, open_clip:MODEL/PRETRAINED, git:, vlm:, frozenbilm: or mplug2: with an id or folder, http://HOST/v1#MODEL,
    or the folder of a captioner trained here; default: the recipe's."""
    set: str = "main"
    """Name of the caption set; captioning into a new set leaves the other sets unchanged."""

    def __call__(self) -> dict[str, Any]:
        from jobs.caption.caption import caption

        recipe = changed(self.settings, "caption", captioner=self.captioner)
        run = open_run(self.run)[0]
        with self.working_on(self.run) as cluster:
            return caption(run, recipe, self.set, cluster)


@dataclass(frozen=True, kw_only=True)
class Shard(OnRun):
    """Transcode captioned clips into bucketed WebDataset shards."""

    example: ClassVar[str] = "recaption shard --run runs/a --captions main"
    shown = (
        under("shard.buckets", "fps num_frames max_areas_px size_multiple_px max_crop_fraction codec crf")
        + under("shard.buckets", "max_samples_per_shard max_shard_bytes")
        + ("shard.audio", "filters.max_clips_per_caption", BACKEND, *STRIDES)
    )
    captions: str = "main"
    """The caption set of the shards."""

    def __call__(self) -> dict[str, Any]:
        from jobs.shard import shard

        run = open_run(self.run)[0]
        with self.working_on(self.run) as cluster:
            return shard(run, self.settings, self.captions, cluster)


@dataclass(frozen=True, kw_only=True)
class Encode(OnRun):
    """Compress the shards' clips into latents."""

    example: ClassVar[str] = "recaption encode --run runs/a --compressor patch"
    shown = (*STRIDES, *under("encode", "dtype device text.encoder text.dtype text.max_gigabytes"))
    compressor: str | None = None
    """SPEC: patch, the folder of a compressor trained here, or diffusers:ID[#subfolder]; default: the recipe's."""

    def __call__(self) -> dict[str, Any]:
        from jobs.encode.encode import encode

        recipe = changed(self.settings, "encode", compressor=self.compressor)
        run = open_run(self.run)[0]
        with self.working_on(self.run) as cluster:
            return encode(run, recipe, cluster)


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Plan the packs of an epoch: fill, rank efficiency and memory, without a GPU."""

    example: ClassVar[str] = (
        "recaption plan --lengths lengths.npy --ranks 64 --capacity 32768 --width 3072 --depth 48 --compare"
    )
    shown = (
        under("plan", "policy pool budget_tokens global_batch_packs seed")
        + under("plan", MIXTURE_RULES)
        + under("train_dit.trainer", "precision activation_checkpointing")
    )
    takes = ("plan", *STRIDES, "train_dit.dit.patch", *under("train_dit.trainer", "precision activation_checkpointing"))
    run: str | None = None
    """The run folder; or pass --lengths."""
    lengths: str | None = None
    """A .npy file with the number of tokens of each sample."""
    ranks: int = 1
    """Ranks that train together."""
    capacity: int | None = None
    """Tokens per pack; default: the recipe's."""
    width: int | None = None
    """Width of the transformer, for its cost per token; default: the recipe's."""
    depth: int | None = None
    """Layers of the transformer; adds an estimate of the memory per rank."""
    epochs: int = 1
    """Number of epochs to summarise; --plan.sampling-weights and similar rules make them differ."""
    compare: bool = False
    """All packing policies side by side."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def __call__(self) -> dict[str, Any]:
        from jobs.plan import plan

        return plan(
            changed(self.settings, "plan", capacity=self.capacity, cost_model_width=self.width),
            run_uri=self.run,
            lengths=self.lengths,
            num_ranks=self.ranks,
            depth=self.depth,
            num_epochs=self.epochs,
            compare=self.compare,
        )


@dataclass(frozen=True, kw_only=True)
class Sample(Common):
    """Sample videos from prompts, images and videos with a trained diffusion transformer."""

    example: ClassVar[str] = 'recaption sample --checkpoint runs/a/train/main --prompt "a red circle moves left"'
    shown = tuple(
        f"solver seed {SAMPLING} {GUIDANCE} dynamic_threshold hint_snr {WINDOWS} base decoder expander examples "
        "captioner".split()
    )
    checkpoint: tuple[str, ...]
    """A step folder, or RUN/train/NAME for its newest step; for a cascade its base and then its stages, in their order."""
    prompt: tuple[str, ...] = ()
    """One or more prompts; optional with images or videos."""
    prompts_file: str | None = None
    """Instead of these flags: a .txt file with a prompt per line, or a .jsonl file with an object per line (prompt, seed,
    num_frames, seconds, height_px, width_px, and the flags of images and videos, as in new_frames)."""
    film: Annotated[FilmFlags, tyro.conf.arg(name="")] = field(default_factory=FilmFlags)
    media: Annotated[MediaFlags, tyro.conf.arg(name="")] = field(default_factory=MediaFlags)
    out: str | None = None
    """Folder of the mp4s and the contact sheet; default: RUN/samples/NAME-STEP of the checkpoint's run, else ./samples."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""
    settings: Annotated[SampleSettings, tyro.conf.arg(name="")] = field(default_factory=SampleSettings)

    def __call__(self) -> dict[str, Any]:
        from jobs.sample import sample, story

        if self.film.is_given(self.prompt, self.prompts_file, self.media):
            return story.sample_story(
                self.checkpoint, self.film, self.settings, self.out, self.device, progress=self.progress
            )
        requests = requests_from_flags(self.prompt, self.settings, media=self.media, prompts_file=self.prompts_file)
        return sample.sample_requests(
            self.checkpoint, requests, self.settings, out=self.out, device=self.device, progress=self.progress
        )


@dataclass(frozen=True, kw_only=True)
class Report(OnRun):
    """Write the report page RUN/report/index.html."""

    example: ClassVar[str] = "recaption report --run runs/a"
    shown = under("filters", MAIN_FILTERS)
    takes = ("filters", "shard.buckets", *STRIDES, "train_dit.dit.patch")

    def __call__(self) -> dict[str, Any]:
        from jobs.report.page import write_report

        return {"report": write_report(open_run(self.run)[0], self.settings.filters, recipe=self.settings)}


@dataclass(frozen=True, kw_only=True)
class Verify(OnRun):
    """Check that nothing is lost, duplicated or damaged."""

    example: ClassVar[str] = "recaption verify --run runs/a --repair"
    pairs: str = "32"
    """Captions per set, and samples, to check against the decoded pixels of their clips; 0 for none, or all."""
    repair: bool = False
    """Recompute what is damaged, and only that, then verify again."""

    def __call__(self) -> dict[str, Any]:
        from jobs.verify.repair import repair_run
        from jobs.verify.verify import parse_pairs, verify_run

        run, num_pairs = open_run(self.run)[0], parse_pairs(self.pairs)
        if not self.repair:
            return verify_run(run, self.settings, num_pairs=num_pairs, progress=self.progress)
        with self.working_on(self.run) as cluster:
            return repair_run(run, self.settings, cluster, num_pairs=num_pairs)


@dataclass(frozen=True, kw_only=True)
class Doctor(Common):
    """Report the decoders, codecs, GPUs, Ray and weights of this machine."""

    example: ClassVar[str] = "recaption doctor"

    def __call__(self) -> dict[str, Any]:
        from jobs.doctor import doctor

        return doctor()


VERBS: dict[str, type[Common]] = {
    "run": Run,
    "prepare": Prepare,
    "caption": CaptionVerb,
    "shard": Shard,
    "encode": Encode,
    "plan": Plan,
    "train captioner": CaptionerTraining,
    "train compressor": CompressorTraining,
    "train dit": DitTraining,
    "sample": Sample,
    "export": Export,
    "report": Report,
    "verify": Verify,
    "doctor": Doctor,
}
