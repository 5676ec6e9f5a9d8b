"""LAVISH: latent audio-visual hybrid adapters (Lin, Sung, Lei, Bansal, Bertasius; CVPR 2023, arXiv 2212.07983).

A backbone that was pretrained on images, and is frozen, reads frames and, as pictures, spectrograms. Beside attention
and beside the feed-forward part of each block stands an adapter a stream, through which either stream reads the other
by a few latent tokens. Only the adapters and a head are trained: here for audio-visual event localization (AVE), a
class for every second.

What differs from the paper: any base of the catalogue whose encoders are transformers may take the place of the image
backbone (``base``); a segment that lacks a stream reads nothing of it; the frozen base is in evaluation mode. Objective
and order of the two streams are those of the released code. Segmentation and question answering are not here.
"""

import importlib
from typing import Annotated, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych import catalog, distributed
from triptych.batch import Batch, Clip, Modality, Stream, View
from triptych.encoders.encoder import Encoder, Features, ResidualBlock, Walkable
from triptych.encoders.swin import Swin, stage_sides
from triptych.encoders.vit import VideoViT, ViTConfig
from triptych.errors import UsageError
from triptych.layers.adapters import LatentAdapter, TokenInit
from triptych.losses.classification import binary_of_softmax
from triptych.method import Clock, Facts, Group, Losses, Method
from triptych.methods.supervised import Finetuned, FinetunedConfig, varied
from triptych.recipe import (
    AudioTransform,
    BatchSpec,
    Config,
    Grid,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    StreamSpec,
    VideoTransform,
    Viewing,
)

STREAMS = ("video", "audio")
OTHER = {"video": "audio", "audio": "video"}


# ---------------------------------------------------------------- the frozen base: an image backbone


class SwinSize(Config):
    """Swin V2; the defaults are `swinv2_large_window12_192_22k`."""

    kind: Literal["swin"] = "swin"
    size: int = 192
    """Side of a picture, pixels; of a spectrogram, steps and mels."""
    patch: int = 4
    """Side of a first token, pixels."""
    width: int = 192
    """Width of the first stage, doubled from stage to stage."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each stage."""
    heads: tuple[int, ...] = (6, 12, 24, 48)
    """Attention heads of each stage."""
    window: int = 12
    """Side of a window, tokens."""
    ratio: float = 4.0
    """Width of a feed-forward part over the stream's."""

    @model_validator(mode="after")
    def _fits(self) -> "SwinSize":
        if len(self.depths) != len(self.heads):
            raise ValueError(f"there are {len(self.depths)} depths and {len(self.heads)} numbers of heads")
        for stage, heads in enumerate(self.heads):
            if self.width * 2**stage % heads:
                raise ValueError(f"{heads} heads do not divide a width of {self.width * 2**stage}")
        stage_sides(self.size, self.patch, self.window, len(self.depths))
        return self

    def build(self) -> Encoder:
        """Return the encoder, with random weights."""
        return Swin(self.size, self.patch, self.width, self.depths, self.heads, self.window, self.ratio)


class ViTSize(Config):
    """A vision transformer; the defaults are `vit_large_patch16_224_in21k`."""

    kind: Literal["vit"] = "vit"
    size: int = 224
    """Side of the picture that the positions are made for, pixels."""
    patch: int = 16
    """Side of a token, pixels."""
    transformer: ViTConfig = ViTConfig(width=1024, layers=24, heads=16, pool="class", resampling="flat")
    """Its other sizes."""

    def build(self) -> Encoder:
        """Return the encoder, with random weights."""
        return VideoViT(self.transformer, 1, self.size, (1, self.patch))


class ImageBackboneConfig(Config):
    """An encoder of pictures that also reads spectrograms."""

    size: Annotated[SwinSize | ViTSize, Field(discriminator="kind")] = SwinSize()
    """Which one."""
    shared: bool = True
    """Whether one encoder reads both streams, as the paper has it, or two of the same kind one each."""


class Spectrograms(Encoder):
    """An encoder of pictures that reads spectrograms: time is the height, mels the width, all colours alike."""

    modality: Modality = "audio"

    def __init__(self, pictures: Encoder) -> None:
        """Read through ``pictures``."""
        super().__init__()
        self.pictures = pictures
        self.width = pictures.width

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the encoder of pictures."""
        return cast(Walkable, self.pictures).blocks

    def enter(
        self, data: Float[Tensor, "batch steps mels"], length: Int[Tensor, " batch"] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the tokens of the spectrogram as a picture; all of them are valid."""
        return cast(Walkable, self.pictures).enter(data[:, None, :, :, None].expand(-1, -1, -1, -1, 3))

    def finish(self, tokens: Tensor, valid: Tensor) -> Features:
        """Return the features of what the last block put out."""
        return cast(Walkable, self.pictures).finish(tokens, valid)

    def forward(
        self,
        data: Float[Tensor, "batch steps mels"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; see ``Encoder.forward``."""
        found: Features = self.pictures(data[:, None, :, :, None].expand(-1, -1, -1, -1, 3), None, keep, layers)
        return found


class ImageBackbone(Method):
    """The base of the paper: an image backbone, whose weights are imported. It has no objective of its own."""

    config_class: ClassVar[type[Config]] = ImageBackboneConfig

    def __init__(self, config: ImageBackboneConfig) -> None:
        """Build the encoder, or two of them."""
        super().__init__(config)
        pictures = config.size.build()
        sounds = Spectrograms(pictures if config.shared else config.size.build())
        self.encoders = nn.ModuleDict({"video": pictures, "audio": sounds})

    def encoder(self, stream: Stream) -> Encoder:
        """Return the encoder of a stream."""
        return cast(Encoder, self.encoders[stream])

    def features(self, view: View) -> dict[str, Features]:
        """Return the features of each stream."""
        return {stream: self.encoder(stream)(view[stream].data) for stream in STREAMS if stream in view}


IMAGES = f"{ImageBackbone.__module__}:{ImageBackbone.__qualname__}"


# ---------------------------------------------------------------- the adapters


class LAVISHConfig(FinetunedConfig):
    """Adapters and head. Defaults are those of the released AVE runs on Swin-V2-L."""

    base: str = IMAGES
    """Method between whose encoders of video and audio the adapters stand."""
    base_config: SerializeAsAny[Config] = ImageBackboneConfig()
    """Its configuration."""
    streams: tuple[str, ...] = STREAMS
    """Both; the two features stand side by side in this order before the head (released: sound first on a ViT)."""
    frozen: bool = True
    """The base is not trained and stays in evaluation mode."""
    label: str = "segments"
    """Column of the labels: one for each second of a row (JSON list)."""
    classes: tuple[str, ...] = ()
    """Names of the classes, background last; filled in from the data (AVE: 28 and background)."""
    tokens: int = Field(2, ge=0)
    """Latent tokens of an adapter; 0: no stream reads the other, and the bottleneck has no activation."""
    init: TokenInit = "uniform"
    """First values of the tokens (released: uniform; those that begin as zeros stay alike for ever)."""
    reduction: int = Field(8, ge=1)
    """Width of a stage over that of the adapters' bottleneck."""
    groups: int = Field(2, ge=1)
    """Groups of the bottleneck's linear layers."""
    batch_norm: bool = True
    """Whether batch norms follow them."""
    norm_before: bool = True
    """Whether a layer norm comes before the bottleneck."""
    norm_after: bool = True
    """Whether one comes after it."""
    audio_gate: bool = True
    """Whether the adapters of the sound are multiplied by a gate, as those of the picture always are."""
    hidden: int = 512
    """Width between the two linear layers of the head, which have no activation between them."""
    loss: Literal["binary", "cross_entropy"] = "binary"
    """Binary cross entropy of softmax probabilities (released), or cross entropy."""
    head_lr: float = Field(0.08, gt=0)
    """Learning rate of the head over that of the adapters (released: 4e-6 and 5e-5)."""

    @model_validator(mode="after")
    def _both_streams(self) -> "LAVISHConfig":
        if sorted(self.streams) != sorted(STREAMS):
            raise ValueError(f"streams are {' and '.join(STREAMS)}, in either order")
        return self


class BlockAdapters(nn.Module):
    """The two adapters of one stream in one block: beside attention and beside the feed-forward part."""

    def __init__(self, width: int, config: LAVISHConfig, gate: bool) -> None:
        """Build both; ``gate`` says whether what they add is multiplied by a learned scalar."""
        super().__init__()
        norms = (config.batch_norm, config.norm_before, config.norm_after)
        sizes = (width, config.tokens, config.reduction, config.groups, config.init)
        self.attend = LatentAdapter(*sizes, *norms, gate)
        self.feed = LatentAdapter(*sizes, *norms, gate)


class LAVISH(Finetuned):
    """Adapters between two streams of frozen blocks, walked in step, and a head."""

    config_class: ClassVar[type[Config]] = LAVISHConfig
    options: LAVISHConfig

    def __init__(self, config: LAVISHConfig) -> None:
        """Build the base with random weights, the adapters beside its blocks, and the head.

        Raises:
            UsageError: If the base's two encoders are no transformers that go in step, or sizes do not fit.
        """
        super().__init__(config)
        gates = {"video": True, "audio": config.audio_gate}
        widths = self._block_widths()
        self.adapters = nn.ModuleDict(
            {
                stream: nn.ModuleList(BlockAdapters(width, config, gates[stream]) for width in widths)
                for stream in config.streams
            }
        )
        joined = sum(self.encoder(stream).width for stream in STREAMS)
        self.head = nn.Sequential(
            nn.Linear(joined, config.hidden), nn.Linear(config.hidden, max(len(config.classes), 2))
        )

    def _block_widths(self) -> list[int]:
        """Return the width of each residual block."""
        base, groups = self.options.base, self.options.groups
        steps = {}
        for stream in STREAMS:
            encoder = self.encoder(stream)
            if not hasattr(encoder, "enter"):
                raise UsageError(
                    f"Adapters stand beside blocks of transformers; the {stream} encoder of {base} is none."
                )
            blocks = list(cast(Walkable, encoder).blocks)
            if any(getattr(block, "post", False) for block in blocks):
                raise UsageError(f"{base} norms the stream itself (post-norm); adapters want a base with pre-norm.")
            steps[stream] = [block.width if isinstance(block, ResidualBlock) else 0 for block in blocks]
        if steps["video"] != steps["audio"]:
            raise UsageError(f"The encoders of {base} do not go in step; the widths of their blocks are {steps}.")
        widths = [width for width in steps["video"] if width]
        for width in widths:
            hidden = width // self.options.reduction
            if width % groups or hidden % groups or not hidden:
                raise UsageError(f"{groups} groups do not divide a width of {width} or its bottleneck of {hidden}.")
        return widths

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the classes, and what the base takes, from the data."""
        recipe = super().complete(recipe, facts)
        assert isinstance(recipe.config, LAVISHConfig)
        classes = facts.classes or recipe.config.classes
        return recipe.model_copy(update={"config": recipe.config.model_copy(update={"classes": classes})})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Return the loss of the class of each window, which is that of the second that its middle lies in (section 5).

        The mean is over all windows that have a label and at least one stream.
        """
        if "windows" not in batch.drawn:
            raise UsageError("Event localization looks through a grid of windows: set train.windows.kind to grid.")
        view = {stream: _as_rows(clip) for stream, clip in batch.views[0].items() if stream in STREAMS}
        windows = batch.drawn["windows"] - batch.drawn["start"][:, None, None]
        labels = at_seconds(batch.targets[self.options.label], windows).flatten()
        scores, known = self.scores(view), labels.clamp(min=0)
        if self.options.loss == "binary":
            each = binary_of_softmax(scores, known)
        else:
            each = functional.cross_entropy(scores.float(), known, reduction="none")
        there = torch.stack([clip.present for clip in view.values()]).any(dim=0) & (labels >= 0)
        count = there.sum().float()
        right = (scores.argmax(dim=1) == labels) & there
        loss = distributed.mean((each * there).sum(), count)
        return Losses({self.options.loss: loss}, report={"accuracy": right.sum() / count.clamp(min=1)})

    def parameter_groups(self) -> list[Group]:
        """Return the adapters, the head with a rate of its own, and the base, where it is not frozen."""
        above, *base = super().parameter_groups()
        head = tuple(name for name in above.parameters if name.startswith("head."))
        adapters = tuple(name for name in above.parameters if name not in head)
        return [Group(adapters), Group(head, lr=self.options.head_lr), *base]

    def features(self, view: View) -> dict[str, Features]:
        """Return the features of both streams side by side, as one token, or those of the only stream there is."""
        found = self._walk(view)
        if len(found) < len(STREAMS):
            return found
        pooled = torch.cat([found[stream].pooled for stream in self.options.streams], dim=1)
        length = torch.ones(len(pooled), dtype=torch.long, device=pooled.device)
        return {"video+audio": Features(pooled[:, None], pooled, length)}

    def predict(self, view: View) -> dict[str, Float[Tensor, "batch 1 classes"]]:
        """Return ``events``: a score for each class in the whole window, before softmax."""
        return {"events": self.scores(view)[:, None]}

    def scores(self, view: View) -> Float[Tensor, "batch classes"]:
        """Return a score for each class, before softmax; the features of a stream that a row lacks are zeros."""
        found = self._walk(view)
        some = next(iter(found.values())).pooled
        absent = {s: some.new_zeros(len(some), self.encoder(s).width) for s in STREAMS if s not in found}
        pooled = absent | {stream: features.pooled for stream, features in found.items()}
        scores: Tensor = self.head(torch.cat([pooled[stream] for stream in self.options.streams], dim=1))
        return scores

    def _walk(self, view: View) -> dict[str, Features]:
        """Walk the streams of a view through the blocks in step; rows that lack a stream have zeros in its features.

        Each stream is walked for the rows that have it alone, so that batch norms see nothing else.
        """
        rows = {stream: view[stream].present.nonzero()[:, 0] for stream in STREAMS if stream in view}
        encoders = {stream: cast(Walkable, self.encoder(stream)) for stream in rows}
        x, valid = {}, {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.frozen):
            for stream, at in rows.items():
                clip = view[stream]
                x[stream], valid[stream] = encoders[stream].enter(clip.data[at], clip.length[at])
        pairs = _pairs(rows)
        adapters = zip(*(cast(nn.ModuleList, self.adapters[stream]) for stream in rows), strict=True)
        for blocks in zip(*(encoder.blocks for encoder in encoders.values()), strict=True):
            if not isinstance(blocks[0], ResidualBlock):
                x = {stream: block(x[stream]) for stream, block in zip(rows, blocks, strict=True)}
                continue
            step = list(zip(rows, blocks, next(adapters), strict=True))
            x = {
                s: x[s] + block.attend(x[s]) + beside.attend(x[s], x.get(OTHER[s]), pairs[s])
                for s, block, beside in step
            }
            x = {s: x[s] + block.feed(x[s]) + beside.feed(x[s], x.get(OTHER[s]), pairs[s]) for s, block, beside in step}
        found = {stream: encoder.finish(x[stream], valid[stream]) for stream, encoder in encoders.items()}
        return {stream: _spread(features, rows[stream], view[stream]) for stream, features in found.items()}


def at_seconds(
    targets: Int[Tensor, "batch seconds"], windows: Float[Tensor, "batch windows 2"]
) -> Int[Tensor, "batch windows"]:
    """Return the label of the second that the middle of each window lies in; -100 beyond those that have one."""
    second = windows.mean(dim=-1).floor().long()
    found = targets.gather(1, second.clamp(0, targets.shape[1] - 1))
    return found.masked_fill((second < 0) | (second >= targets.shape[1]), -100)


def _as_rows(clip: Clip) -> Clip:
    """Return a clip whose windows are rows of their own."""
    if clip.length.ndim == 1:
        return clip
    return Clip(clip.data.flatten(0, 1), clip.length.flatten(), clip.span.flatten(0, 1))


def _pairs(rows: dict[Stream, Int[Tensor, " there"]]) -> dict[Stream, tuple[Tensor, Tensor] | None]:
    """Return, for each stream, the places of the rows that have both, in it and in the other; None where all have."""
    if len(rows) < 2 or torch.equal(rows["video"], rows["audio"]):
        return dict.fromkeys(rows)
    video, audio = rows["video"], rows["audio"]
    places = torch.isin(video, audio).nonzero()[:, 0], torch.isin(audio, video).nonzero()[:, 0]
    return {"video": places, "audio": (places[1], places[0])}


def _spread(features: Features, rows: Int[Tensor, " there"], clip: Clip) -> Features:
    """Return the features of some rows as those of all rows of a clip."""
    size = len(clip.length)
    if len(rows) == size:
        return features
    tokens, pooled, length = (
        x.new_zeros(size, *x.shape[1:]).index_copy(0, rows, x)
        for x in (features.tokens, features.pooled, features.length)
    )
    return Features(tokens, pooled, length, features.grid)


# ---------------------------------------------------------------- recipes


def look(size: SwinSize | ViTSize) -> Viewing:
    """Return how the released AVE runs look at a video of ten seconds (section 3 of the specification).

    Ten segments, which begin at linspace(0, N - 1.1 s, 10): a spectrogram of a second of each, and the frame in its
    middle (the release takes ten frames evenly spaced from the first to the last).
    """
    if isinstance(size, SwinSize):
        bank = {"mels": size.size, "hop": 0.0052, "steps": size.size, "mean": -4.984795570373535}
        deviation = 3.7079780101776123
    else:
        bank = {"mels": 128, "hop": 0.01, "steps": 102, "mean": -4.1426}
        deviation = 3.2001
    sound = AudioTransform.model_validate({"front_end": "fbank", "pad": "output", "std": 2 * deviation, **bank})
    video = VideoTransform(size=size.size, crop="squash")
    view = {
        "video": StreamSpec(transform=video, seconds=1.0, rate=1.0, offset=0.55),
        "audio": StreamSpec(transform=sound, seconds=1.0, rate=16_000.0, short="zero", required=False),
    }
    return Viewing(windows=Grid(seconds=1.1, count=10), views=(view,))


def paper() -> Recipe:
    """Return the released AVE run on Swin-V2-L, whose weights are imported."""
    return released(ImageBackboneConfig())


def released(backbone: ImageBackboneConfig) -> Recipe:
    """Return the released AVE run on an image backbone (section 6 of the specification).

    The release stops after five epochs without a better accuracy on the test split; here all 50 are run, unless the
    run is told to be patient (``triptych finetune --patience 5``).
    """
    streams = ("video", "audio") if isinstance(backbone.size, SwinSize) else ("audio", "video")
    return Recipe(
        method="lavish",
        config=LAVISHConfig(base_config=backbone, streams=streams),
        train=look(backbone.size),
        test=look(backbone.size),
        batch=BatchSpec(rows=2),
        epochs=50,
        optimizer=OptimizerSpec(name="adam", lr=5e-5),
        schedules={"main": ScheduleSpec(shape="constant")},
        precision="float32",
    )


def base() -> Recipe:
    """Return the same for one GPU and a day, in larger batches and with a falling rate (a recommendation)."""
    changes = {
        "batch": BatchSpec(rows=16),
        "optimizer": OptimizerSpec(lr=2e-4, weight_decay=0.01),
        "schedules": {"main": ScheduleSpec(shape="cosine", warmup=0.05)},
        "precision": "auto",
    }
    return paper().model_copy(update=changes)


def small() -> Recipe:
    """Return adapters on the small encoders of LAVA, for the events of the toy world."""
    found: Recipe = importlib.import_module(catalog.CATALOG["lava"].target.split(":")[0]).small()
    return upon(found.method, found.config, found.test)


def upon(base: str, config: Config, test: Viewing) -> Recipe:
    """Return the recipe of adapters on a base: the released one on an image backbone, else one for small data sets.

    In the latter each second is seen as the base sees a window: as long, round the middle of the second.

    Args:
        base: Name of the method.
        config: Its configuration.
        test: How it looks at a recording.

    Raises:
        UsageError: If it does not read both video and audio, in windows of a known length.
    """
    if isinstance(config, ImageBackboneConfig):
        return released(config)
    view = {}
    for stream in STREAMS:
        spec = test.views[0].get(stream)
        if spec is None:
            raise UsageError(f"{base} reads no {stream}; adapters stand between its encoders of video and audio.")
        seconds = spec.seconds or test.windows.seconds
        if seconds is None:
            raise UsageError(f"{base} reads {stream} of any length; adapters for each second want a length.")
        view[stream] = spec.model_copy(update={"seconds": seconds, "at": "centre", "required": False})
    windows = Grid(seconds=1.0, count=None)
    return Recipe(
        method="lavish",
        config=LAVISHConfig(base=base, base_config=config, head_lr=1.0),
        train=Viewing(windows=windows, views=({stream: varied(spec) for stream, spec in view.items()},)),
        test=Viewing(windows=windows, views=(view,)),
        batch=BatchSpec(rows=8),
        steps=600,
        optimizer=OptimizerSpec(lr=1e-3, weight_decay=0.05),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.1)},
    )
