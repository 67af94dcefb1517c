"""A recipe says everything about a run: strict and frozen, resolved YAML out. `recipe_file` reads one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from edgeda.benchmark_recipe import BenchmarkRecipe, Strict
from edgeda.runtime.preprocessing import Preprocessing


def _number(value: object) -> object:
    """YAML 1.1 reads 1e-3 as a string; a recipe means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
Range = tuple[Number, Number]


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys of nested mappings, such as `train.epochs`, each with its value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


class NetworkRecipe(Strict):
    """One network and its optimizer (SGD with momentum)."""

    backbone: str
    """timm name or r18, r34, r50, r101, r152."""
    pretrained: str = "auto"
    """auto (timm's weights if they can be had), none, or a local file."""
    bottleneck: Annotated[int, Field(ge=0, le=8192)] = 0
    """Width of a Linear-BatchNorm-ReLU before the head; 0: none."""
    lr: Positive = 1e-3
    """Base learning rate, of the pretrained layers."""
    head_lr_multiplier: Positive = 10.0
    """Times `lr` for bottleneck and head."""
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[Number, Field(ge=0)] = 5e-4
    lr_schedule: Literal["constant", "cosine", "inverse"] = "inverse"
    lr_warmup: Fraction = 0.0
    """Fraction of a stage over which the learning rate rises from 0."""


class TeacherRecipe(NetworkRecipe):
    """The big network that adapts."""

    backbone: str = "resnet50"


class StudentRecipe(NetworkRecipe):
    """The small network that is shipped."""

    backbone: str = "resnet18"


class AugmentRecipe(Strict):
    """Random geometry and light, the same for both domains and for every network."""

    rotate: Annotated[Number, Field(ge=0, le=180)] = 0.0
    """Largest rotation, degrees."""
    scale: Range = (1.0, 1.0)
    """Range of the zoom; above 1 enlarges."""
    translate: Fraction = 0.0
    """Largest shift, as a fraction of the side."""
    shear: Annotated[Number, Field(ge=0, le=60)] = 0.0
    """Largest shear, degrees."""
    crop: Literal["center", "random"] = "center"
    """Where the input window lies in the stored square (`data.resize: crop` with `crop_pct` below 1)."""
    flip: bool = False
    """Mirror half of the images."""
    brightness: Fraction = 0.0
    """Largest change, as a fraction of white."""
    contrast: Fraction = 0.0
    """Largest relative change of contrast."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentRecipe:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be two positive numbers, the smaller first")
        return self


class VideoRecipe(Strict):
    """How frames are taken from a video used as the target."""

    every_s: Annotated[Number, Field(ge=0)] = 0.5
    """Seconds between two frames; 0: every frame."""
    max_frames: Annotated[int, Field(ge=1)] = 5000
    """More are thinned out evenly."""


class DataRecipe(Strict):
    """Domains and the geometry of the input."""

    source: str
    """Class folders, an image list, or a built-in name."""
    target: str
    """A folder of any depth, an image list, a video file, or a built-in name; labels are never read."""
    target_test: str | None = None
    """Labelled target images, for reporting only."""
    source_holdout: Annotated[Number, Field(ge=0, lt=0.9)] = 0.1
    """Fraction of each source class kept out of training, to report source accuracy honestly."""
    input_size: Annotated[int, Field(ge=16, le=1024)] = 224
    resize: Literal["crop", "squash"] = "crop"
    crop_pct: Annotated[Number, Field(gt=0.1, le=1)] = 0.875
    mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    augment: AugmentRecipe = AugmentRecipe()
    video: VideoRecipe = VideoRecipe()
    decode_ahead: Annotated[int, Field(ge=0)] = 200_000
    """Images up to which a domain is decoded before training begins; a larger one is decoded as it is used."""
    cache_gb: Annotated[Number, Field(ge=0)] = 20.0
    """Gigabytes of decoded images that are kept for other runs in the user's cache folder; 0: none."""

    @property
    def cache_bytes(self) -> int:
        """The same as `cache_gb`."""
        return round(self.cache_gb * 1e9)

    @property
    def preprocessing(self) -> Preprocessing:
        """The geometry and normalization every consumer of the model repeats."""
        return Preprocessing(self.input_size, self.resize, self.crop_pct, self.mean, self.std)


class AdaptRecipe(Strict):
    """Unsupervised domain adaptation of a network (KD-UDA eqs. 1-2)."""

    technique: str = "alignment"
    """How a network adapts, on its own or as the teacher of kd-uda: by `alignment`, or by section `cckdn`."""
    alignment: tuple[str, ...] = ("mmd",)
    """Losses summed into the alignment term."""
    weight: Annotated[Number, Field(ge=0)] = 1.0
    """Times the alignment term."""
    gamma_on: Literal["alignment", "classification"] = "alignment"
    """What the ramp gamma(p) multiplies: the alignment (DAN, TCP) or the cross-entropy (eq. 2 as printed)."""
    batchnorm: Literal["joint", "per-domain", "frozen"] = "joint"
    """Training statistics over the stacked source and target batch, or one forward per domain; frozen: while a network
    adapts, the running statistics it came with, unchanged."""
    target_statistics: bool = False
    """Ship adapted networks with BatchNorm statistics estimated anew on target images (AdaBN)."""


class DistillRecipe(Strict):
    """Knowledge distillation (KD-UDA eqs. 3-7)."""

    loss: str = "kl"
    """What the student minimizes: softened outputs (kl, mse, ce, dkd) or similarities of features (feature)."""
    domains: Annotated[tuple[Literal["source", "target"], ...], Field(min_length=1)] = ("source", "target")
    """Images that the student learns from its teacher on; cross-entropy belongs to the source."""
    dkd: tuple[NotNegative, NotNegative] = (1.0, 8.0)
    """Weights of the target class and of the other classes, for `loss: dkd`."""
    tau: Positive = 20.0
    """Temperature."""
    alpha: Annotated[Number, Field(ge=0)] = 0.8
    """Weight of the student's cross-entropy on source labels (eq. 4)."""
    beta: tuple[Share, Share] = (0.1, 0.9)
    """Start and end of the weight of distillation (eqs. 6-7)."""
    recompute_teacher: bool = True
    """Compute the teacher's logits again after its step, as Algorithm 1 does."""
    end_to_end: bool = False
    """One optimizer step on the whole of eq. 5 (section IV-C) instead of two alternating ones."""


class AddaRecipe(Strict):
    """Adversarial discriminative domain adaptation (Tzeng et al., CVPR 2017), method `adda`."""

    lr: Positive = 2e-4
    """Adam's, of the target encoder."""
    discriminator_lr: Positive = 2e-4
    """Adam's, of the discriminator."""
    hidden: Annotated[int, Field(ge=1, le=65536)] = 500
    """Width of the discriminator's two hidden layers."""


class CckdnRecipe(Strict):
    """Cross-domain cross-task knowledge distillation (Ma et al., 2023), technique and method `cckdn`."""

    distillation: NotNegative = 1.0
    """Weight of L_DL (eq. 4)."""
    reconstruction: NotNegative = 0.1
    """lambda_1, of L_Re (eq. 5)."""
    adversarial: NotNegative = 1.0
    """lambda_2, of L_Ad (eq. 7)."""
    classification: Positive = 10.0
    """lambda_3, of the cross-entropy (eq. 6). The whole loss is divided by it, so that learning rates keep their
    meaning."""
    critic: Literal["hinge", "wgan-gp"] = "hinge"
    """The discriminator's loss: hinge with spectral norm, or Wasserstein with gradient penalty."""
    match: Literal["elements", "statistics"] = "elements"
    """What L_DL compares of a source and a target image: features element by element, as printed, or their channel
    means and standard deviations."""
    width: Annotated[int, Field(ge=4, le=1024)] = 64
    """Channels of the compression network's first tap; the others have two and four times as many."""
    lr: Positive = 2e-4
    """Adam's, of compression, reconstruction, feature transforms and discriminator."""
    network_lr: Positive | None = None
    """Adam's, of the classification network; null: SGD as the network's own section says."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """Passes in which compression and reconstruction learn alone first; 0: jointly from the start."""


class PruneRecipe(Strict):
    """Transfer channel pruning (Yu et al., 2019), method `tcp`."""

    macs_cut: Annotated[Number, Field(gt=0, lt=1)] = 0.45
    """Share of the network's multiply-accumulates that goes."""
    iterations: Annotated[int, Field(ge=1, le=10000)] = 5
    """Rounds of scoring, pruning and fine-tuning. The cut grows evenly over them."""
    channels: Annotated[int, Field(ge=0)] = 0
    """Most channels removed in a round (the paper: 32); the last round removes what is missing. 0: the even cut."""
    round_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the source that a round fine-tunes, after its scoring pass (the paper: 5)."""
    score_steps: Annotated[int, Field(ge=0)] = 0
    """Batches that score channels in a round; the rest of that pass trains. 0: the whole pass of the source."""
    minimum: Annotated[int, Field(ge=1)] = 8
    """Channels that every layer keeps."""
    run: str | None = None
    """A finished run whose network is pruned, as `edgeda prune` writes it; null: one that is adapted here first."""
    role: Literal["student", "teacher"] = "student"
    """Which network of that run."""


class TrainRecipe(Strict):
    """The loop."""

    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over the source, of the method's main stage."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the source that teacher and student learn before adapting."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Images of each domain in a batch: in the whole of it, which `devices` divide among them."""
    devices: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Processes that train, each on a GPU of its own or on its share of the cores; null: as many as torchrun has
    started, else one. The result is that of one process, up to rounding."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of a process; 0: all cores (divided by the processes here), or OMP_NUM_THREADS where that is set."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    prefetch: Annotated[int, Field(ge=0, le=64)] | None = None
    """Batches made in the background while a step runs; null: 2 on a GPU, and none on a CPU, whose cores are busy."""
    clip_norm: Annotated[Number, Field(ge=0)] = 0.0
    """Largest gradient norm; 0: no clipping."""
    checkpoint_minutes: Annotated[Number, Field(ge=0)] = 2.0
    """Minutes of training between two checkpoints, the most that a crash can lose; 0: every step.
    There is one at the end of every stage, too."""
    track: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """Where the curves of metrics.jsonl also go: files in RUN/tensorboard, RUN/mlruns (extra `track`)."""


class SelectRecipe(Strict):
    """Which epoch is shipped."""

    rule: Literal["im", "snd", "last", "oracle"] = "im"
    """im and snd need no target labels; oracle reads target-test labels and says so everywhere."""


WORKPLACE = {"data": {"cache_gb"}, "train": {"prefetch", "track", "devices", "checkpoint_minutes"}}
"""Keys that say how a machine works, not what comes out: they may differ when a run is resumed or shared."""


class Recipe(Strict):
    """A whole run."""

    name: str = "default"
    method: str = "kd-uda"
    start_from: str | None = None
    """A finished run whose student and teacher this one goes on with, as `edgeda adapt --from` writes it."""
    teacher: TeacherRecipe = TeacherRecipe()
    student: StudentRecipe = StudentRecipe()
    data: DataRecipe
    adapt: AdaptRecipe = AdaptRecipe()
    distill: DistillRecipe = DistillRecipe()
    adda: AddaRecipe = AddaRecipe()
    cckdn: CckdnRecipe = CckdnRecipe()
    prune: PruneRecipe = PruneRecipe()
    train: TrainRecipe = TrainRecipe()
    select: SelectRecipe = SelectRecipe()
    benchmark: BenchmarkRecipe | None = Field(default=None, exclude=True)
    """What `edgeda benchmark` runs; not part of any one run, so the resolved recipe has none."""

    def outcome(self) -> dict[str, Any]:
        """Everything that decides what comes out of a run, as JSON values."""
        return self.model_dump(mode="json", exclude=WORKPLACE)

    def differences(self, other: Recipe) -> list[tuple[str, Any, Any]]:
        """Dotted keys of `outcome` that differ, with the value here and the other's."""
        theirs = dict(dotted(other.outcome()))
        return [(key, value, theirs[key]) for key, value in dotted(self.outcome()) if value != theirs[key]]

    def at_workplace(self, other: Recipe) -> Recipe:
        """This recipe, worked on as `other` says."""
        return self.model_copy(update={
            section: getattr(self, section).model_copy(
                update={key: getattr(getattr(other, section), key) for key in keys}
            )
            for section, keys in WORKPLACE.items()
        })  # fmt: skip

    def to_yaml(self) -> str:
        """The resolved recipe: loading it gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
