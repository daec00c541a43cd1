"""The commands of `recaption`: one dataclass each, whose fields are its flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import tyro

from jobs.cluster.cluster import Cluster
from jobs.recipe import presets as recipes
from jobs.recipe.run_inputs import open_run
from jobs.recipe.settings import Recipe, SampleSettings
from jobs.sample.requests import MediaFlags, requests_from_flags
from recaption.errors import UsageError

Settings = Annotated[Recipe, tyro.conf.arg(name="")]
"""The recipe's settings as flags: `--shard.buckets.fps 12`."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Flags of every command."""

    json: bool = False
    """Print one machine-readable JSON object on stdout."""
    address: str | None = None
    """Ray cluster to run on (`auto`, `ray://host:10001`); default: a local Ray, started and stopped here."""
    num_workers: int | None = None
    """Worker processes; default: one per core."""
    progress: bool = True
    """Progress bars on stderr."""

    def cluster(self) -> Cluster:
        return Cluster(address=self.address, num_workers=self.num_workers, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class Run(Common):
    """Run the whole pipeline: raw videos to a trained, sampled model and a report page."""

    example: ClassVar[str] = "recaption run --videos clips/ --out runs/a --recipe quickstart"
    videos: tuple[str, ...]
    """Files, folders, globs, .txt/.parquet lists, fsspec URIs."""
    out: str
    """The run folder: a local path or a fsspec URI."""
    recipe: str = "quickstart"
    """quickstart, small, base, or the path of a run.yaml."""
    stop_after: str | None = None
    """Last stage to run: prepare, caption, shard, encode, plan, train or sample."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def __call__(self) -> dict[str, Any]:
        from jobs.run import run

        with self.cluster() as cluster:
            return run(self.videos, self.out, self.settings, cluster, stop_after=self.stop_after)


@dataclass(frozen=True, kw_only=True)
class Prepare(Common):
    """Probe the videos, find shots, cut clips, score them."""

    example: ClassVar[str] = "recaption prepare --videos clips/ more/*.mp4 --out runs/a"
    videos: tuple[str, ...] = ()
    """Files, folders, globs, .txt/.parquet lists, fsspec URIs."""
    out: str
    """The run folder: a local path or a fsspec URI."""
    recipe: str = "quickstart"
    """quickstart, small, base, or the path of a run.yaml."""
    what_if: tuple[str, ...] = ()
    """Only show how many clips other thresholds would drop: motion=0.02,text_area=0.1,max_luma=off."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def __call__(self) -> dict[str, Any]:
        from jobs.prepare.prepare import prepare
        from jobs.report.what_if import what_if

        if self.what_if:
            return what_if(open_run(self.out)[0], self.settings, self.what_if)
        if not self.videos:
            raise UsageError("--videos is missing: files, folders, globs, lists or URIs of what to prepare")
        with self.cluster() as cluster:
            return prepare(self.videos, self.out, self.settings, cluster)


@dataclass(frozen=True, kw_only=True)
class OnRun(Common):
    """Flags of the commands on an existing run folder; defaults come from its run.yaml."""

    run: str
    """The run folder."""
    settings: Settings = field(default_factory=recipes.quickstart)


@dataclass(frozen=True, kw_only=True)
class CaptionVerb(OnRun):
    """Caption the kept clips into a caption set."""

    example: ClassVar[str] = "recaption caption --run runs/a --captioner tiny --set main"
    captioner: str | None = None
    """SPEC: tiny, open_clip:MODEL/PRETRAINED, git:, vlm:, frozenbilm: or mplug2: with an id or folder, http://HOST/v1#MODEL,
    or the folder of a captioner trained here; default: the recipe's."""
    set: str = "main"
    """Name of the caption set; captioning into a new set leaves the other sets unchanged."""

    def __call__(self) -> dict[str, Any]:
        from jobs.caption.caption import caption

        recipe = self.settings
        if self.captioner:
            recipe = dataclasses.replace(recipe, caption=dataclasses.replace(recipe.caption, captioner=self.captioner))
        with self.cluster() as cluster:
            return caption(open_run(self.run)[0], recipe, self.set, cluster)


@dataclass(frozen=True, kw_only=True)
class Shard(OnRun):
    """Transcode captioned clips into bucketed WebDataset shards."""

    example: ClassVar[str] = "recaption shard --run runs/a --captions main"
    captions: str = "main"
    """The caption set of the shards."""

    def __call__(self) -> dict[str, Any]:
        from jobs.shard import shard

        with self.cluster() as cluster:
            return shard(open_run(self.run)[0], self.settings, self.captions, cluster)


@dataclass(frozen=True, kw_only=True)
class Encode(OnRun):
    """Compress the shards' clips into latents."""

    example: ClassVar[str] = "recaption encode --run runs/a --compressor patch"
    compressor: str | None = None
    """SPEC: patch, the folder of a compressor trained here, or diffusers:ID[#subfolder]; default: the recipe's."""

    def __call__(self) -> dict[str, Any]:
        from jobs.encode.encode import encode

        recipe = self.settings
        if self.compressor:
            recipe = dataclasses.replace(recipe, encode=dataclasses.replace(recipe.encode, compressor=self.compressor))
        with self.cluster() as cluster:
            return encode(open_run(self.run)[0], recipe, cluster)


@dataclass(frozen=True, kw_only=True)
class Plan(Common):
    """Plan the packs of an epoch: fill, rank efficiency and memory, without a GPU."""

    example: ClassVar[str] = (
        "recaption plan --lengths lengths.npy --ranks 1024 --capacity 32768 --width 3072 --depth 48 --compare"
    )
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

        overrides = {"capacity": self.capacity, "cost_model_width": self.width}
        changes: dict[str, Any] = {name: value for name, value in overrides.items() if value}
        recipe = dataclasses.replace(self.settings, plan=dataclasses.replace(self.settings.plan, **changes))
        return plan(
            recipe,
            run_uri=self.run,
            lengths=self.lengths,
            num_ranks=self.ranks,
            depth=self.depth,
            num_epochs=self.epochs,
            compare=self.compare,
        )


@dataclass(frozen=True, kw_only=True)
class Train(Common):
    """Train the captioner, the compressor or the diffusion transformer; with --num-workers N on N ranks (Ray Train)."""

    example: ClassVar[str] = "recaption train dit --run runs/a --name first"
    model: tyro.conf.Positional[str]
    """captioner, compressor or dit."""
    run: str
    """The run folder; captioner and compressor can also train on rendered scenes, without data in it."""
    name: str = "main"
    """Name of this training run: RUN/train/NAME."""
    recipe: str | None = None
    """Recipe with the settings; default: the run folder's, or quickstart if it has none."""
    steps: int | None = None
    """Shorthand for the model's trainer.num-steps."""
    captions: tuple[str, ...] = ()
    """captioner: caption sets of the run folder to train on (SET, SET=KIND, `original`); none: rendered scenes."""
    init_from: str | None = None
    """captioner: SPEC of the captioner to initialise from; dit: checkpoint of the same transformer, e.g. trained on images;
    default: random initialisation."""
    trainable: str | None = None
    """captioner: trainable weights: full, lit or frozen."""
    resume: bool = True
    """Resume from the newest checkpoint of this name."""
    eval: bool = False
    """dit: do not train; evaluate the newest checkpoint of this name into RUN/train/NAME/evaluation.json."""
    use_gpu: bool = False
    """Require one GPU per rank; default: GPUs if there are any (the trainer's `device`)."""
    settings: Settings = field(default_factory=recipes.quickstart)

    def __call__(self) -> dict[str, Any]:
        from jobs.train.train import evaluate_model, train_model, with_training_flags

        recipe = self.settings
        if self.eval:
            return self._evaluate(evaluate_model)
        if self.captions or self.init_from is not None or self.trainable is not None:
            recipe = with_training_flags(self.model, recipe, self.captions, self.init_from, self.trainable)
        with self.cluster() as cluster:
            return train_model(
                self.model,
                self.run,
                self.name,
                recipe,
                cluster,
                num_steps=self.steps,
                num_ranks=self.num_workers or 1,
                use_gpu=self.use_gpu,
                resume=self.resume,
                progress=self.progress,
            )

    def _evaluate(self, evaluate_model: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        training_flags = {
            "--steps": self.steps is not None,
            "--no-resume": not self.resume,
            "--num-workers": self.num_workers,
            "--use-gpu": self.use_gpu,
        }
        for flag in (flag for flag, is_set in training_flags.items() if is_set):
            raise UsageError(f"--eval does not train, so {flag} has no effect: leave it out")
        with self.cluster() as cluster:
            return evaluate_model(self.model, self.run, self.name, self.settings, cluster, progress=self.progress)


@dataclass(frozen=True, kw_only=True)
class Sample(Common):
    """Sample videos from prompts, images and videos with a trained diffusion transformer."""

    example: ClassVar[str] = (
        'recaption sample --checkpoint runs/a/train/main --prompt "a red circle moves left" [--image first.png]'
    )
    checkpoint: str
    """A step folder, or RUN/train/NAME for its newest step."""
    prompt: tuple[str, ...] = ()
    """One or more prompts; optional with images or videos."""
    prompts_file: str | None = None
    """Instead of these flags: a .txt file with a prompt per line, or a .jsonl file with an object per line (prompt, image,
    video, mode, seed, num_frames, height_px, width_px, new_frames, strength, at_seconds)."""
    media: Annotated[MediaFlags, tyro.conf.arg(name="")] = field(default_factory=MediaFlags)
    out: str | None = None
    """Folder of the mp4s and the contact sheet; default: RUN/samples/NAME-STEP of the checkpoint's run, else ./samples."""
    device: str = "auto"
    settings: Annotated[SampleSettings, tyro.conf.arg(name="")] = field(default_factory=SampleSettings)

    def __call__(self) -> dict[str, Any]:
        from jobs.sample.sample import sample_requests

        requests = requests_from_flags(self.prompt, self.settings, media=self.media, prompts_file=self.prompts_file)
        return sample_requests(
            self.checkpoint, requests, self.settings, out=self.out, device=self.device, progress=self.progress
        )


@dataclass(frozen=True, kw_only=True)
class Report(OnRun):
    """Write the report page RUN/report/index.html."""

    example: ClassVar[str] = "recaption report --run runs/a"

    def __call__(self) -> dict[str, Any]:
        from jobs.report.page import write_report

        return {"report": write_report(open_run(self.run)[0], self.settings.filters, recipe=self.settings)}


@dataclass(frozen=True, kw_only=True)
class Verify(OnRun):
    """Check that nothing is lost, duplicated or damaged."""

    example: ClassVar[str] = "recaption verify --run runs/a --repair"
    pairs: str = "32"
    """Captions per set to check against the decoded pixels of their clips; 0 for none, or all."""
    repair: bool = False
    """Recompute what is damaged, and only that, then verify again."""

    def __call__(self) -> dict[str, Any]:
        from jobs.verify.repair import repair_run
        from jobs.verify.verify import parse_pairs, verify_run

        run, num_pairs = open_run(self.run)[0], parse_pairs(self.pairs)
        if not self.repair:
            return verify_run(run, self.settings, num_pairs=num_pairs, progress=self.progress)
        with self.cluster() as cluster:
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
    "train": Train,
    "sample": Sample,
    "report": Report,
    "verify": Verify,
    "doctor": Doctor,
}
