"""All that a run depends on, as frozen and validated objects that print and read as YAML or JSON."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from triptych import catalog
from triptych.errors import UsageError


class Config(BaseModel):
    """Base of everything a recipe is made of: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# ---------------------------------------------------------------- how a stream of a view is cut and transformed


class VideoTransform(Config):
    """Frames to pixels. One set of draws for all frames of a clip."""

    kind: Literal["video"] = "video"
    size: int = Field(224, ge=1)
    """Side of the square output, pixels."""
    resize: int | None = None
    """Short side that frames are scaled to before `size` is cropped; `size` where None."""
    crop: Literal["centre", "random", "random_resized", "squash"] = "centre"
    """Place of the crop; `random_resized` also draws area and aspect; `squash` scales the whole frame to the square."""
    area: tuple[float, float] = (0.3, 1.0)
    """Share of the frame that a `random_resized` crop covers, lowest and highest."""
    aspect: tuple[float, float] = (0.75, 4 / 3)
    """Width over height of a `random_resized` crop, lowest and highest."""
    flip: float = Field(0.0, ge=0, le=1)
    """Probability of a horizontal flip."""
    brightness: float = Field(0.0, ge=0)
    """Colour jitter: the factor is drawn from [1 - x, 1 + x]."""
    contrast: float = Field(0.0, ge=0)
    """As `brightness`, around the mean grey of the clip."""
    saturation: float = Field(0.0, ge=0)
    """As `brightness`, around the grey of each pixel."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Shift of the hue, drawn from [-x, x], in turns of the colour circle."""
    jitter: float = Field(1.0, ge=0, le=1)
    """Probability that the colour jitter is applied at all."""
    grayscale: float = Field(0.0, ge=0, le=1)
    """Probability of a grey clip."""
    blur: float = Field(0.0, ge=0, le=1)
    """Probability of a Gaussian blur (sigma from 0.1 to 2 pixels)."""
    pixels: Literal["normalized", "unit", "raw255"] = "normalized"
    """Range: (x/255 - mean)/std, x/255, or 0..255."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of each colour for `normalized` (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of each colour for `normalized` (ImageNet's)."""
    channels: Literal[1, 3] = 3
    """Red, green and blue, or the luma alone (which takes the `mean` and `std` of the first)."""


class SpectrogramCrop(Config):
    """A random stretch of a spectrogram, scaled to its size (BYOL-A's random resized crop).

    The spectrogram lies in the middle of a canvas of zeros; the stretch is cut from the canvas.
    """

    canvas: tuple[float, float] = (1.5, 1.0)
    """Sides of the canvas over those of the spectrogram: time and mels."""
    time: tuple[float, float] = (0.6, 1.5)
    """Steps of the stretch over those of the spectrogram, lowest and highest."""
    mels: tuple[float, float] = (0.6, 1.5)
    """Mel bands of the stretch over those of the spectrogram, lowest and highest; the canvas limits both."""


class Background(Config):
    """Noise laid under a sound (av-hubert, section 3)."""

    source: str | None = None
    """Folder or manifest of noise; where None, the other sounds of the batch together (babble)."""
    probability: float = Field(0.25, ge=0, le=1)
    """Of being laid under a clip at all (0.25: AV-HuBERT)."""
    decibels: tuple[int, int] = (0, 0)
    """Ratio of the sound to the noise: a whole number drawn between these two, both included (0: AV-HuBERT)."""

    @model_validator(mode="after")
    def _in_order(self) -> "Background":
        if self.decibels[0] > self.decibels[1]:
            raise ValueError(f"`decibels` {self.decibels} must not fall")
        return self


class AudioTransform(Config):
    """Waveform (mono, in [-1, 1]) to the encoder's input."""

    kind: Literal["audio"] = "audio"
    front_end: Literal[
        "waveform", "log_mel", "davenet", "fbank", "magnitude_mel", "logfbank", "mfcc", "slaney", "vmz"
    ] = "log_mel"
    """`fbank` is Kaldi-compatible (vision-transformers-common, section 6); `davenet` are decibels below the clip's
    maximum, of the pre-emphasised sound (DAVEnet, AVLnet); `magnitude_mel` is brought to 0..1 by each clip's
    extremes (VATT); `logfbank` is that of python_speech_features, of 16-bit numbers; `mfcc` are Kaldi's cepstral
    coefficients (AV-HuBERT); `slaney` is librosa's bank of unit areas, with `floor` added to the energies (XKD); `vmz`
    is VMZ's, stretched in time to `steps` (XDC)."""
    mels: int = Field(80, ge=1)
    """Mel bands."""
    window: float = Field(0.025, gt=0)
    """Analysis window, seconds."""
    hop: float = Field(0.01, gt=0)
    """Step between windows, seconds."""
    low: float = Field(20.0, ge=0)
    """Lowest frequency of the bank, Hz."""
    high: float | None = None
    """Highest frequency of the bank, Hz; half the rate where None."""
    floor: float = Field(1e-6, gt=0)
    """Energy below which the logarithm is cut (`log_mel`; for `davenet` as a share of the clip's maximum)."""
    emphasis: float = Field(0.0, ge=0, lt=1)
    """Share of the sample before that is taken off each, ahead of any front end (0.97: AV-HuBERT)."""
    cepstra: int = Field(13, ge=1)
    """Coefficients of `mfcc`."""
    derivatives: int = Field(0, ge=0)
    """How often the slope over five steps is put beside the steps: 2 adds it, and its own."""
    steps: int | None = None
    """Pad with zeros or cut to so many steps (samples for `waveform`); as many as there are where None."""
    pad: Literal["spectrogram", "output"] = "spectrogram"
    """Where steps beyond the valid ones are zeros: in the spectrogram, which `mean` and `std` then change like the
    rest, or in what comes out of them (LAVISH)."""
    gain: float = Field(0.0, ge=0)
    """The level is changed by a draw from [-x, x] decibels."""
    volume: float = Field(0.0, ge=0, le=1)
    """The waveform is multiplied by a draw from [1 - x, 1 + x]."""
    background: Background | None = None
    """Noise under the sound, before the front end."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise added to the output."""
    peak_noise: float = Field(0.0, ge=0)
    """The same, over the largest absolute value of the clip's output (VATT)."""
    time_mask: int = Field(0, ge=0)
    """SpecAugment: longest stretch of steps set to the clip's mean."""
    mel_mask: int = Field(0, ge=0)
    """SpecAugment: widest band of mels set to the clip's mean."""
    mean: float = 0.0
    """Subtracted from the spectrogram."""
    std: float = Field(1.0, gt=0)
    """The spectrogram is divided by it after `mean` is subtracted."""
    random_resized: SpectrogramCrop | None = None
    """A stretch of the normalised spectrogram in the place of the whole; none where None."""
    stack: int = Field(1, ge=1)
    """At last, so many steps in a row become one, with zeros where the last one lacks some (AV-HuBERT: 4)."""
    standardize: bool = False
    """Whether each step is then brought to mean 0 and deviation 1 over its own values (AV-HuBERT)."""


class TextTransform(Config):
    """Caption to token ids."""

    kind: Literal["text"] = "text"
    steps: int = Field(32, ge=3)
    """Tokens at most, begin and end marks included; longer captions are cut, shorter ones padded with id 0."""
    prompt: str = "{}"
    """The caption is put in the place of `{}`."""
    marks: bool = True
    """Whether marks of begin and end stand round the words; VATT and MMV have none."""
    unknown: bool = True
    """Whether a word that the tokenizer does not know stands for all such; else it is left out."""


class SequenceTransform(Config):
    """Precomputed vectors, padded with zeros or cut."""

    kind: Literal["sequence"] = "sequence"
    steps: int | None = Field(30, ge=1)
    """Vectors at most; as many as there are where None."""
    fit: Literal["cut", "nearest", "max"] = "cut"
    """What becomes of more than `steps` of them: the first ones are taken, evenly spaced ones, or the maxima of `steps`
    stretches of equal length."""
    like: str | None = None
    """Another stream of vectors, to whose number in the window these are brought first by taking the nearest: features
    of two rates stand side by side. Where the window has none of the other's, it has none of these."""
    normalize: bool = False
    """Whether each vector is divided by its norm."""


Transform = Annotated[VideoTransform | AudioTransform | TextTransform | SequenceTransform, Field(discriminator="kind")]


class StreamSpec(Config):
    """One stream of one view: which seconds are read, and what is made of them."""

    transform: Transform
    """Its `kind` says the modality."""
    seconds: float | None = Field(None, gt=0)
    """Length of the span; the window's, or for `whole` the extent's, where None."""
    rate: float | None = Field(None, gt=0)
    """Frames a second or samples a second; the file's own where None."""
    at: Literal["start", "centre", "inside", "around", "beginning"] = "start"
    """Place of the span in (or round) the view's window: from its start, at its centre, drawn inside it, drawn so that
    it holds it; `beginning` is the first seconds of the recording, whatever the window."""
    offset: float = 0.0
    """Seconds by which the span is moved against that place."""
    short: Literal["hold", "loop", "zero", "skip"] = "hold"
    """Where the recording is too short: hold the last frame (or zeros in sound), start again, zeros with a shorter
    `length`, or take another row."""
    required: bool = True
    """Whether a row without this stream is passed over; else it comes with length 0."""


ViewSpec = dict[str, StreamSpec]


# ---------------------------------------------------------------- which windows are drawn from a recording


class Interval(Config):
    """A draw of a number of seconds."""

    low: float = 0.0
    """Smallest value, seconds."""
    high: float = Field(0.0)
    """Largest value, seconds."""
    shape: Literal["uniform", "decreasing"] = "uniform"
    """Density: flat, or falling linearly to 0 at `high` (CVRL)."""


class Windows(Config):
    """What all relations share."""

    seconds: float | None = Field(None, gt=0)
    """Length of a window; None: the whole row."""
    place: Literal["random", "centre", "start", "moment"] = "random"
    """Where the (first) window lies; `moment`: round a drawn moment of the row, or random where it has none."""


class Aligned(Windows):
    """All views and streams see one window."""

    kind: Literal["aligned"] = "aligned"


class TwoWindows(Windows):
    """Two views (or two halves of the views) see two windows of one recording."""

    kind: Literal["two_windows"] = "two_windows"
    distance: Interval = Interval()
    """Between the starts; `high` 0 means up to the whole recording."""


class Several(Windows):
    """Each view has its own window, in order of time."""

    kind: Literal["several"] = "several"
    gap: Interval = Interval()
    """Between the end of a window and the start of the next."""
    reverse: float = Field(0.0, ge=0, le=1)
    """Probability that the order is turned round; told in `drawn["reversed"]`."""
    shuffle: bool = False
    """Draw an order; told in `drawn["order"]`."""


class Shifted(Windows):
    """A second view of the same video at another time; no room for it gives length 0."""

    kind: Literal["shifted"] = "shifted"
    shift: Interval = Interval(low=0.5, high=0.0)
    """Distance between the windows, either way; `high` 0 means as far as the recording allows."""
    streams: tuple[str, ...] = ("audio",)
    """Streams of the second view that are moved; the others stay."""


class BeforeAndAfter(Windows):
    """One window before and one after a moment of interest."""

    kind: Literal["before_and_after"] = "before_and_after"
    margin: Interval = Interval()
    """Between the moment and each window."""


class GlobalAndLocal(Windows):
    """The first `global_views` views see the window; the others see shorter windows inside it."""

    kind: Literal["global_and_local"] = "global_and_local"
    global_views: int = Field(1, ge=1)
    """Views that see the whole window."""


class AroundCaption(Windows):
    """A window round a drawn caption, and the captions nearest to it as candidates."""

    kind: Literal["around_caption"] = "around_caption"
    candidates: int = Field(1, ge=1)
    """Captions a row: the drawn one and its nearest neighbours in time."""
    minimum: float = Field(0.0, ge=0)
    """A window is at least so long, seconds, when `seconds` is None."""


class AtCaption(Windows):
    """The caption that is said at the edge of a drawn window, in the place of the window (Everything at Once).

    It is the one said where the window begins, else the one said where it ends; else the window stays, untold. The
    captions before and after it are joined to it, always the one that makes the shorter whole, until it lasts as long
    as the window did: their words are read one after another as one caption.
    """

    kind: Literal["at_caption"] = "at_caption"
    apart: float = 0.0
    """Seconds by which `streams` are moved against a caption (not against an untold window): sound that is not what the
    words were heard from."""
    either: bool = False
    """Whether they are moved back as often as forth; else always forth."""
    streams: tuple[str, ...] = ("audio",)
    """Streams that are moved."""


class Grid(Windows):
    """Windows evenly spaced over the row, as candidates; for tests."""

    kind: Literal["grid"] = "grid"
    count: int | None = Field(10, ge=1)
    """Windows a row; None: one after another over the whole row, as many as fit (see `stride`)."""
    stride: float | None = Field(None, gt=0)
    """Seconds between the starts where `count` is None; the window's length where None."""
    crops: Literal[1, 3] = 1
    """1: the centre crop; 3: three along the longer side."""


class Whole(Windows):
    """The whole row as one window: utterances, and speech."""

    kind: Literal["whole"] = "whole"
    longest: float | None = Field(None, gt=0)
    """Seconds at most; a longer row gives a drawn part."""


Relation = Annotated[
    Aligned
    | TwoWindows
    | Several
    | Shifted
    | BeforeAndAfter
    | GlobalAndLocal
    | AroundCaption
    | AtCaption
    | Grid
    | Whole,
    Field(discriminator="kind"),
]


class Pace(Config):
    """Frames taken at a drawn speed; told in `drawn["pace"]` as the index of the speed."""

    speeds: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    """Speeds to draw from."""
    streams: tuple[str, ...] = ("video",)
    """Streams that it acts on."""


class Viewing(Config):
    """How a recording is looked at."""

    windows: Relation
    """The relation in time."""
    views: tuple[dict[str, StreamSpec], ...] = Field(min_length=1)
    """A specification of each view, by stream."""
    pace: Pace | None = None
    """Change of speed, where a method guesses it."""


# ---------------------------------------------------------------- how it is trained


class BatchSpec(Config):
    """What a step sees, over all processes."""

    rows: int | None = Field(None, ge=1)
    """Rows a step, over all processes and all accumulated parts."""
    seconds: float | None = Field(None, gt=0)
    """Seconds of recording a step instead of a number of rows (batches of utterances)."""
    repeat: int = Field(1, ge=1)
    """Draws of each row in an epoch, next to each other (repeated sampling)."""
    together: int = Field(1, ge=1)
    """Windows of one recording that stand in one batch as rows of their own."""
    balance: str | None = None
    """Column whose values are drawn equally often."""
    accumulate: int = Field(1, ge=1)
    """Parts that a batch is cut into, one after another, whose gradients are averaged: less memory. For the method a
    part is a batch of its own: its negatives, means and batch norms are those of the part."""

    @model_validator(mode="after")
    def _one_size(self) -> "BatchSpec":
        if (self.rows is None) == (self.seconds is None):
            raise ValueError("a batch has either `rows` or `seconds`")
        if self.rows is not None and self.rows % self.accumulate:
            raise ValueError(f"`rows` ({self.rows}) must be a multiple of `accumulate` ({self.accumulate})")
        return self


class Mixing(Config):
    """Rows of a training batch mixed with one another, targets and all: mixup, and cutmix of pictures.

    A row is mixed with another of its micro-batch: the batch turned round (one draw a batch, as timm has it), or one
    drawn for each row (AudioMAE). Sounds are mixed as waveforms, pictures after their transforms.
    """

    mixup: float = Field(0.0, ge=0)
    """Both parameters of the beta distribution that a row's own share is drawn from (5: VATT on AudioSet); 0: none."""
    cutmix: float = Field(0.0, ge=0)
    """The same for the share of each frame that stays when a box of it is cut from the other row; 0: none."""
    switch: float = Field(0.5, ge=0, le=1)
    """Probability of cutmix, where both are asked for."""
    probability: float = Field(1.0, ge=0, le=1)
    """Of mixing at all."""
    each: Literal["batch", "row"] = "batch"
    """What is drawn for: the batch, or each row by itself."""

    @model_validator(mode="after")
    def _mixes(self) -> "Mixing":
        if not self.mixup and not self.cutmix:
            raise ValueError("`mixup` or `cutmix` must be above 0")
        return self


class Selection(Config):
    """Judging a run on held-out rows while it goes on, and what follows from it."""

    score: str
    """Name of the score that decides."""
    lower: bool = False
    """Whether less of it is better."""
    epochs: int = Field(1, ge=1)
    """Epochs from one measurement to the next; the end of the run is measured, too."""
    patience: int | None = Field(None, ge=1)
    """The run ends after so many measurements in a row without a better one; never where None."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run's model has."""


Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSpec(Config):
    """The optimizer of all groups; a group may override by `Group.options`."""

    name: Literal["adamw", "adam", "sgd", "lars"] = "adamw"
    """`lars` is SGD with layer-wise rates."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Of Adam and AdamW."""
    eps: float = Field(1e-8, ge=0)
    """Of Adam and AdamW."""
    momentum: Share = 0.9
    """Of SGD and LARS."""
    nesterov: bool = False
    """Of SGD."""
    trust: float = Field(1e-3, gt=0)
    """Of LARS: a layer's step relative to the norm of its weights, at a learning rate of 1."""
    weight_decay: float = Field(0.0, ge=0)
    """On the parameters that the group decays."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "OptimizerSpec":
        if self.nesterov and not self.momentum:
            raise ValueError("`nesterov` needs a `momentum` above 0")
        return self


class ScheduleSpec(Config):
    """Factor on the learning rate over a round: warm-up from `start`, then `shape` down to `end`."""

    shape: Literal["cosine", "linear", "exponential", "constant", "steps", "inverse_sqrt"] = "cosine"
    """Curve after the warm-up; `exponential` wants an `end` above 0."""
    warmup: float = Field(0.0, ge=0, le=1)
    """Share of the round that the linear warm-up takes."""
    start: float = Field(0.0, ge=0)
    """Factor at the first step of a warm-up."""
    end: float = Field(0.0, ge=0)
    """Factor at the end of the round."""
    hold: float = Field(0.0, ge=0, le=1)
    """Share of the round that stays at the peak after the warm-up."""
    milestones: tuple[float, ...] = ()
    """Of `steps`: shares of the round at which the factor is multiplied by `gamma`."""
    gamma: float = 0.1
    """Of `steps`."""

    @model_validator(mode="after")
    def _exponential_ends_above_zero(self) -> "ScheduleSpec":
        if self.shape == "exponential" and not self.end:
            raise ValueError("an `exponential` curve needs an `end` above 0")
        return self


class GradientSpec(Config):
    """What is done to gradients before the optimizer sees them."""

    rule: str = "sum"
    """How the gradients of the terms of the loss become one: `sum`, `harmonize` (where they conflict, see
    docs/methods/gradient-harmonization.md), or a `module:function` that is given them term by term."""
    options: dict[str, bool | int | float | str] = {}
    """Keyword arguments of the rule."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm over all parameters together, but for groups that have their own."""
    clip_value: float | None = Field(None, gt=0)
    """Largest absolute value of an entry."""
    not_finite: Literal["stop", "zero"] = "stop"
    """Entries that are no number or infinite end the run, or count as 0 (VATT). A loss that is not finite always ends
    it."""


class TokenizerSpec(Config):
    """The tokenizer that is trained on the source's own captions and saved with the model."""

    kind: Literal["unigram", "bpe", "words", "characters", "word2vec"] = "bpe"
    """`unigram` is SentencePiece's model; `characters` takes each one, blanks too, for a token; `word2vec` knows the
    words of `file`, and nothing is trained."""
    vocabulary: int = Field(8000, ge=8)
    """Entries at most, special tokens included; of a file, its first words."""
    lowercase: bool = True
    """Fold case."""
    file: str | None = None
    """Word vectors: a file of word2vec (`.bin`, or text) or GloVe, by which the method's table of words is filled."""

    @model_validator(mode="after")
    def _word2vec_has_a_file(self) -> "TokenizerSpec":
        if (self.kind == "word2vec") != (self.file is not None):
            raise ValueError("a tokenizer of the kind `word2vec` has a `file` of word vectors, and no other has")
        return self


class Recipe(Config):
    """A run: method, views, batches, optimizer, seed."""

    method: str
    """A name of the catalogue, or `module:Class`."""
    config: SerializeAsAny[Config]
    """The method's own configuration, of the class that `method` names."""
    train: Viewing
    """How recordings are seen in pretraining."""
    test: Viewing
    """How they are seen by sweeps, evaluation and embedding; further views than the first are for sweeps alone."""
    batch: BatchSpec
    """Batches."""
    rounds: int = Field(1, ge=1)
    """Trainings one after another, each with a fresh schedule (targets made anew between them)."""
    epochs: float | None = Field(None, gt=0)
    """Length of a round in epochs, or see `steps`."""
    steps: int | None = Field(None, ge=1)
    """Length of a round in optimizer steps."""
    epoch_rows: int | None = Field(None, ge=1)
    """Rows that count as one epoch; all training rows where None."""
    mixing: Mixing | None = None
    """Mixing of rows in training."""
    selection: Selection | None = None
    """Measurements on held-out rows that end the run, or choose its weights; the run must be given the rows."""
    tokenizer: TokenizerSpec | None = None
    """Needed where a view has text."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer."""
    schedules: dict[str, ScheduleSpec] = {"main": ScheduleSpec()}
    """Curves of the learning rate by name; a group names its own."""
    gradients: GradientSpec = GradientSpec()
    """Combination and clipping."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of an exponential moving average of the weights; the model folder then holds the average."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on a GPU that has it, float32 elsewhere."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: replicated (DDP) or sharded (FSDP2) parameters. Sharded ones have limits: no targets made
    anew, no rule over gradients, and in each step all processes must use the same parameters."""
    compile: bool = False
    """Run the method through torch.compile."""
    seed: int = Field(0, ge=0)
    """Of everything drawn."""
    workers: int | None = Field(None, ge=0)
    """Decoding processes a device; chosen from the cores where None."""
    checkpoint_minutes: float = Field(10.0, ge=0)
    """Time between checkpoints."""
    checkpoint_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints, besides."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept."""
    log_steps: int = Field(10, ge=1)
    """Steps between lines of the log."""

    @field_validator("config", mode="before")
    @classmethod
    def _validate_config_by_its_class(cls, config: Any, info: Any) -> Any:
        if "method" not in info.data:  # an error of its own
            return config
        wanted = catalog.resolve(info.data["method"]).config_class
        if isinstance(config, Config) and type(config) is not wanted:
            raise ValueError(f"config is a {type(config).__name__}; {info.data['method']} wants {wanted.__name__}")
        return validate(wanted, config, "config")

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a recipe has either `epochs` or `steps`")
        if "main" not in self.schedules:
            raise ValueError("`schedules` needs a curve named `main`")
        has_text = any(
            spec.transform.kind == "text"
            for viewing in (self.train, self.test)
            for view in viewing.views
            for spec in view.values()
        )
        if has_text and self.tokenizer is None:
            raise ValueError("a view has text: `tokenizer` must say how it is split")
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML, every value written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)

    def to_json(self) -> str:
        """Return the recipe as JSON."""
        return self.model_dump_json(indent=2)


NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What the parsers of YAML and JSON raise: dates that do not exist and numbers of ten thousand digits among it."""

Validated = TypeVar("Validated", bound=Config)


def validate(kind: type[Validated], data: Any, source: str) -> Validated:
    """Return ``data`` as a ``kind``.

    Args:
        kind: The class to validate by.
        data: What was read.
        source: Where it came from, for the message.

    Raises:
        UsageError: With the first key that is wrong, its neighbours if it is unknown, and how many more there are.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise UsageError(f"{source}: {_explain(error, kind)}") from error
    except UsageError as error:  # of a part that is of a class of its own
        raise UsageError(f"{source}: {error}") from error
    except ArithmeticError as error:  # a size that others are divided by
        raise UsageError(f"{source}: the sizes do not fit each other ({error}).") from error


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML or JSON file.

    Raises:
        UsageError: If the file is missing, is no YAML or JSON, or a key or value is wrong.
    """
    return validate(Recipe, _read_mapping(Path(path)), str(path))


def override(recipe: Recipe, assignments: list[str]) -> Recipe:
    """Return the recipe with ``key=value`` assignments applied; a dot goes into a part, values are YAML.

    ``override(recipe, ["optimizer.lr=1e-4", "train.views.0.video.seconds=2"])``

    Raises:
        UsageError: If an assignment has no ``=``, its key is unknown, or its value is wrong.
    """
    data = recipe.model_dump(mode="json")
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UsageError(f"--set {assignment}: write key=value.")
        try:
            value = _parse(text)
        except NOT_YAML as error:
            raise UsageError(f"--set {assignment}: the value is no YAML.") from error
        if isinstance(value, str):
            value = _number(value)
        _assign(data, key, value, assignment)
    return validate(Recipe, data, "--set " + " ".join(assignments))


def _number(text: str) -> float | str:
    try:
        return float(text)  # YAML 1.1 takes 1e-4 for a word
    except ValueError:
        return text


def _assign(data: Any, key: str, value: Any, assignment: str) -> None:
    place = data
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(place, list):
            if not part.isdecimal() or int(part) >= len(place):
                raise UsageError(
                    f"--set {assignment}: '{'.'.join(parts[:depth])}' has the places 0 to {len(place) - 1}."
                )
            part_key: Any = int(part)
        elif isinstance(place, dict):
            part_key = part
            if part not in place:
                raise UsageError(f"--set {assignment}: unknown key '{part}'; {_neighbours(part, list(place))}")
        else:
            raise UsageError(f"--set {assignment}: '{'.'.join(parts[:depth])}' is a value and has no parts.")
        if depth == len(parts) - 1:
            place[part_key] = value
        else:
            place = place[part_key]


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}.") from error
    try:
        data = _parse(text, path.suffix == ".json")
    except NOT_YAML as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is no valid {'JSON' if path.suffix == '.json' else 'YAML'}: {reason}.") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a recipe is a mapping of keys to values; this is a {type(data).__name__}.")
    return data


def _parse(text: str, as_json: bool = False) -> Any:
    """Return what YAML or JSON says; raises one of ``NOT_YAML``, also for escapes that are half a character."""
    data = json.loads(text) if as_json else yaml.safe_load(text)
    json.dumps(data, ensure_ascii=False, skipkeys=True, default=str).encode("utf-8")
    return data


def _neighbours(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=3)
    return f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(sorted(known))}."


def _explain(error: ValidationError, kind: type[Config]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(kind, first["loc"][:-1])
        message = (
            f"unknown key '{key}'; {_neighbours(str(first['loc'][-1]), known)}" if known else f"unknown key '{key}'."
        )
    else:
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{key}: {reason}." if key else f"{reason}."
    more = error.error_count() - 1
    return message + (f" ({more} more like this.)" if more else "")


def _fields_at(kind: type[Config], place: tuple[int | str, ...]) -> list[str]:
    """Return the keys known at ``place``, walking annotations; a union's member is named by its tag."""
    current: Any = kind
    for part in place:
        current = _step_into(current, part)
        if current is None:
            return []
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _step_into(current: Any, part: int | str) -> Any:
    if isinstance(current, type) and issubclass(current, BaseModel):
        info = current.model_fields.get(str(part))
        return info.annotation if info else None
    members = [member for member in getattr(current, "__args__", ()) if member is not type(None)]
    for member in members:  # a tagged union: the tag is a step of its own
        fields = getattr(member, "model_fields", {})
        if "kind" in fields and fields["kind"].default == part:
            return member
    if len(members) == 1:
        return _step_into(members[0], part) if isinstance(members[0], type) and isinstance(part, str) else members[0]
    return members[-1] if members and members[-1] is not Ellipsis else members[0] if members else None
