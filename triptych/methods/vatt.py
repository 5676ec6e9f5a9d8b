"""VATT: Video-Audio-Text Transformer (Akbari et al.; NeurIPS 2021, arXiv 2104.11178).

Raw voxels, raw waveform and words are cut into tokens and pass a transformer each, or one that all three share. The
vector of an aggregation token is projected into two spaces: a fine one where video meets audio, and from there a coarse
one where it meets text. A cross-modal NCE ties video and sound, a MIL-NCE video and several captions near it. In
training half of the tokens are dropped at random, the same in the whole batch, which makes raw signals affordable.

What differs from the paper: nothing that is known in the architecture and the loss, whose defaults follow the released
code (one joint denominator in which positives stand twice; negatives of all devices, means over a device's own valid
rows). Convolutional stems and pooling by the maximum, off by default, are ours, for ``small()``. Gradient harmonization
(Wu et al. 2022) is a rule of the recipe, ``gradients.rule=harmonize``.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych import distributed
from triptych.batch import Batch, Modality, Stream, View
from triptych.distributed import Gather
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.raw_signal import (
    Cut,
    Pool,
    RawSignalEncoder,
    Spectrogram,
    Transformer,
    TransformerSize,
    Voxels,
    Waveform,
    Words,
)
from triptych.encoders.text import T5Encoder, T5Size
from triptych.layers.position_tables import resample
from triptych.layers.projection_hierarchy import FineAndCoarse, JointHead
from triptych.layers.word_table import WordTable
from triptych.losses.contrastive import mil_nce
from triptych.method import Clock, Facts, Losses, Method
from triptych.recipe import (
    Aligned,
    AroundCaption,
    AudioTransform,
    BatchSpec,
    Config,
    GradientSpec,
    Grid,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    StreamSpec,
    TextTransform,
    TokenizerSpec,
    VideoTransform,
    Viewing,
)

PROBE = ("video", "kind")
"""What shows that ``small()`` has learnt something: stream and label of a linear probe."""

MEDIUM = TransformerSize(layers=12, width=1024, heads=16, hidden=4096)
"""Section 4."""
LARGE = TransformerSize(layers=24, width=1024, heads=16, hidden=4096)
"""Section 4."""


class VATTConfig(Config):
    """Sizes and options. Defaults are those of the published BBS: Base, Base and Small for video, audio and text."""

    video: TransformerSize = TransformerSize()
    """Transformer of video (Base; Medium and Large for MBS and LBS; section 4)."""
    audio: TransformerSize = TransformerSize()
    """Transformer of audio (Base)."""
    text: T5Size = T5Size()
    """Transformer of text, in the style of T5 (Small)."""
    shared: TransformerSize | None = None
    """If given, one transformer of this size serves all three (modality-agnostic), in the place of the former."""
    projected: int = Field(1024, ge=1)
    """Width of the features of a modality-agnostic model, behind a dense layer with GELU a modality."""
    frames: int = Field(32, ge=1)
    """Frames that the positions are made for; other numbers are reached by a spline."""
    size: tuple[int, int] = (224, 224)
    """Height and width of these frames, pixels."""
    tubelet: tuple[int, int] = (4, 16)
    """Frames and side of a video token: 8 x 14 x 14 tokens."""
    mels: int | None = None
    """None: sound is a raw waveform; else a spectrogram of so many bands (80 in the released code's SpT backbone)."""
    audio_steps: int = Field(153_600, ge=1)
    """Samples (3.2 s at 48 kHz), or spectrogram frames (150), that the positions are made for."""
    audio_patch: tuple[int, int] = (128, 1)
    """Samples, or spectrogram frames and bands (16 x 5), of an audio token: 1200 (9 x 16) tokens."""
    text_steps: int = Field(16, ge=1)
    """Words of a caption that the positions of a modality-agnostic model are made for."""
    vocabulary: int = Field(65_536, ge=2)
    """Words; filled in from the data."""
    word_width: int = Field(300, ge=1)
    """Width of the word vectors (word2vec)."""
    frozen_words: bool = True
    """Whether the word vectors are kept as they are. Without published ones that are loaded, they are random."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """On embeddings, attention weights, residual branches, hidden units and outputs."""
    kept: float = Field(0.5, gt=0, le=1)
    """DropToken: share of the positions whose tokens stay in training, of video and audio (section 5)."""
    head: Literal["fine_and_coarse", "joint"] = "fine_and_coarse"
    """Projection hierarchy, or the ablation with one space."""
    hidden: int = Field(512, ge=1)
    """Width between the layers of the video's head."""
    fine: int = Field(512, ge=1)
    """Width of the space of video and audio (and of the one space of `joint`)."""
    coarse: int = Field(256, ge=1)
    """Width of the space of video and text."""
    temperature: float = Field(0.07, gt=0)
    """Of both losses; fixed."""
    weights: tuple[float, float] = (1.0, 1.0)
    """Of the term of video and audio, and of that of video and text; the loss is their weighted mean."""
    symmetric: bool = False
    """Two denominators, one a direction, in the place of a joint one (section 5)."""
    gather: Gather = "grad"
    """Negatives from other devices."""
    mean: Literal["local", "global"] = "local"
    """Over the valid rows of each device, then over devices (the released code), or over all valid rows."""
    video_stem: tuple[tuple[int, int], ...] = ()
    """Convolutions before the tubelets: channels and stride of each. Ours, for toy scale."""
    audio_stem: tuple[tuple[int, int, int], ...] = ()
    """The same before the patches of spectrograms: channels, stride in time and in mels. Ours, too."""
    pool: Pool = "agg"
    """What a vector is read from: the aggregation token, or the maximum over it and all valid tokens (ours)."""

    @model_validator(mode="after")
    def _fits(self) -> "VATTConfig":
        if min(self.size) < self.tubelet[1] or self.frames < self.tubelet[0]:
            raise ValueError(f"no tubelet {self.tubelet} fits into {self.frames} frames of {self.size} pixels")
        if self.mels is None and (self.audio_stem or self.audio_patch[1] != 1):
            raise ValueError("audio_stem and patches of several bands need a spectrogram: set `mels`")
        if self.audio_steps < self.audio_patch[0] or (self.mels or 1) < self.audio_patch[1]:
            raise ValueError(f"no audio_patch {self.audio_patch} fits into {self.audio_steps} x {self.mels or 1}")
        if self.tubelet[1] % math.prod(stride for _, stride in self.video_stem):
            raise ValueError(f"the strides of video_stem do not divide tubelets of {self.tubelet[1]} pixels")
        for axis in (0, 1):
            if self.audio_patch[axis] % math.prod(layer[axis + 1] for layer in self.audio_stem):
                raise ValueError(f"the strides of audio_stem do not divide patches of {self.audio_patch}")
        if min(self.weights) < 0 or not sum(self.weights):
            raise ValueError("the weights are at least 0, and one of them is above it")
        return self


class VATT(Method):
    """Three encoders, a hierarchy of heads, two contrastive terms."""

    config_class: ClassVar[type[Config]] = VATTConfig

    def __init__(self, config: VATTConfig) -> None:
        """Build encoders and heads with Keras's initialisation."""
        super().__init__(config)
        self.options = config
        self.encoders = nn.ModuleDict(_encoders(config))
        widths = {stream: self.encoder(stream).width for stream in self.encoders}
        self.head: FineAndCoarse | JointHead = (
            JointHead(widths, config.fine)
            if config.head == "joint"
            else FineAndCoarse(widths, config.hidden, config.fine, config.coarse)
        )
        self.spaces = dict.fromkeys(self.head.dims, "cosine")

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the number of words from the data, and the width of their vectors where they are from a file."""
        sizes = {"vocabulary": facts.vocabulary, "word_width": facts.widths.get("text")}
        changes = {name: size for name, size in sizes.items() if size is not None}
        return recipe.model_copy(update={"config": recipe.config.model_copy(update=changes)})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Weighted mean of NCE between video and audio and MIL-NCE between video and captions (section 5).

        A row takes part in a term if it has both streams; captions without a word are no candidates.
        """
        vectors, there = self._vectors(batch.views[0])
        terms: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for term, (space, stream) in self.head.pairs.items():
            nothing = torch.zeros(len(batch), 1, self.head.dims[space], device=batch.rows.device)
            video, other = (vectors[space].get(name, nothing) for name in ("video", stream))
            seen, valid = (there.get(name, nothing[..., 0] > 0) for name in ("video", stream))
            terms[term], report[f"accuracy_{term}"] = self._nce(video[:, 0], seen[:, 0], other, valid)
        first, second = self.options.weights
        total = first + second
        return Losses(terms, {"va": first / total, "vt": second / total}, report)

    def encoder(self, stream: Stream) -> Encoder:
        """Return the encoder of a stream; of a modality-agnostic model they share their layers."""
        found = self.encoders[stream]
        assert isinstance(found, Encoder)
        return found

    def features(self, view: View) -> dict[str, Features]:
        """Return each encoder's output; ``pooled`` is the aggregation token before the heads (section 7)."""
        return {stream: self.encoder(stream)(view[stream].data, view[stream].length) for stream in self._known(view)}

    def take_words(self, vectors: Float[Tensor, "entries width"]) -> None:
        """Fill the table of word vectors."""
        text = self.encoders["text"]
        words = text.words if isinstance(text, T5Encoder) else text.get_submodule("cut.words")
        assert isinstance(words, WordTable)
        words.take(vectors)

    def resize(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Resample the tables of positions to the sizes of this configuration, by a spline (section 4)."""
        own = self.state_dict()
        return {
            name: resample(tensor, len(own[name])) if ".positions.tables." in name and name in own else tensor
            for name, tensor in tensors.items()
        }

    def embed(self, view: View) -> dict[str, dict[str, Float[Tensor, "batch dim"]]]:
        """Return normalised vectors: video and audio in ``va``, video and text in ``vat``; or all in ``joint``."""
        spaces = self.head({stream: found.pooled for stream, found in self.features(view).items()})
        return {
            space: {stream: functional.normalize(x.float(), dim=-1) for stream, x in streams.items()}
            for space, streams in spaces.items()
        }

    def _known(self, view: View) -> list[Stream]:
        return [stream for stream in self.encoders if stream in view]

    def _vectors(
        self, view: View
    ) -> tuple[
        dict[str, dict[str, Float[Tensor, "batch candidates dim"]]], dict[str, Bool[Tensor, "batch candidates"]]
    ]:
        """Return normalised vectors by space and stream, and which of them there truly are."""
        pooled, there = {}, {}
        for stream in self._known(view):
            clip = view[stream]
            there[stream] = clip.length.reshape(len(clip.length), -1) > 0
            data, length = clip.data, clip.length
            if length.ndim == 2:
                data, length = data.flatten(0, 1), length.flatten()
            pooled[stream] = self.encoder(stream)(data, length, self._kept(stream, data)).pooled
        spaces: dict[str, dict[str, Tensor]] = {}
        for space, streams in self.head(pooled).items():
            spaces[space] = {
                stream: functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).unflatten(
                    0, there[stream].shape
                )
                for stream, x in streams.items()
            }
        return spaces, there

    def _kept(self, stream: Stream, data: Tensor) -> Tensor | None:
        """Return the tokens that DropToken leaves: one draw for the whole batch, and in its order (section 5)."""
        encoder = self.encoders[stream]
        if not self.training or stream == "text" or self.options.kept == 1:
            return None
        assert isinstance(encoder, RawSignalEncoder)
        tokens = math.prod(encoder.grid(data))
        order = self.draw(f"{stream}_permutation", lambda: torch.randperm(tokens, device=data.device))
        # The number comes from the size of the tables, however many tokens there are.
        kept = order[: int(self.options.kept * encoder.buckets)]
        return kept.expand(len(data), -1)

    def _nce(
        self,
        video: Float[Tensor, "batch dim"],
        seen: Bool[Tensor, " batch"],
        other: Float[Tensor, "batch candidates dim"],
        valid: Bool[Tensor, "batch candidates"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mean loss over rows that have both, and how many find their match among those of this device."""
        how = self.options.gather
        here = distributed.offset(video, how)
        everyone = [distributed.gather(x, how) for x in (video, other, seen, valid)]
        both = seen & valid.any(dim=1)
        each = mil_nce(
            everyone[0],
            everyone[1],
            1 / self.options.temperature,
            query_valid=everyone[2],
            key_valid=everyone[3],
            anchors=slice(here, here + len(video)),
            symmetric=self.options.symmetric,
        )
        total, count = (each * both).sum(), both.sum().float()
        loss = total / count.clamp(min=1) if self.options.mean == "local" else distributed.mean(total, count)
        with torch.no_grad():
            match = torch.einsum("id,jcd->ijc", video, other.to(video)).masked_fill(~valid, float("-inf"))
            right = match.amax(dim=2).argmax(dim=1) == torch.arange(len(video), device=video.device)
            accuracy = (right & both).sum() / count.clamp(min=1)
        return loss, accuracy


def _encoders(config: VATTConfig) -> dict[str, nn.Module]:
    """Return the encoders by stream."""
    sound: Cut = (
        Waveform(config.audio_steps, config.audio_patch[0])
        if config.mels is None
        else Spectrogram(config.audio_steps, config.mels, config.audio_patch, config.audio_stem)
    )
    cuts: dict[Modality, tuple[Cut, TransformerSize]] = {
        "video": (Voxels(config.frames, config.size, config.tubelet, config.video_stem), config.video),
        "audio": (sound, config.audio),
    }
    words = (config.vocabulary, config.word_width, config.frozen_words)
    shared = None
    if config.shared is not None:
        cuts["text"] = (Words(config.text_steps, *words), config.shared)
        shared = Transformer(config.shared, config.dropout)
    encoders: dict[str, nn.Module] = {}
    for modality, (cut, size) in cuts.items():
        encoders[modality] = RawSignalEncoder(
            modality,
            cut,
            shared or Transformer(size, config.dropout),
            config.dropout,
            projected=None if shared is None else config.projected,
            pool=config.pool,
        )
    if shared is None:
        encoders["text"] = T5Encoder(config.text, *words, config.dropout, config.pool)
    return encoders


def _view(config: VATTConfig, train: bool, rate: float = 48_000.0) -> dict[str, StreamSpec]:
    """Return the published look: frames at 10 fps, the sound of the same 3.2 s, captions without marks (section 3).

    The crop is of the Inception kind; which kind made the published weights could not be verified (section 11).
    """
    video = VideoTransform(
        size=config.size[0],
        crop="random_resized" if train else "centre",
        area=(0.08, 1.0),
        aspect=(0.5, 2.0),
        flip=0.5 if train else 0.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    sound = AudioTransform(front_end="waveform", steps=config.audio_steps, peak_noise=0.01 if train else 0.0)
    text = TextTransform(steps=config.text_steps, marks=False)
    return {
        "video": StreamSpec(transform=video, seconds=config.frames / 10, rate=10.0, required=False),
        "audio": StreamSpec(
            transform=sound, seconds=config.audio_steps / rate, rate=rate, short="zero", required=False
        ),
        "text": StreamSpec(transform=text, required=False),
    }


def paper(model: Literal["BBS", "MBS", "LBS", "MA"] = "MBS") -> Recipe:
    """Return the published pretraining on HowTo100M (sections 3 to 6; the batch size is from memory there).

    Word vectors come from a word2vec file; the published list of words, HowTo100M's, is another.

    Args:
        model: Base, Medium or Large for video, Base for audio, Small for text; or MA, one Medium for all three. With
            ``gradients.rule=harmonize`` the last is the setting of gradient harmonization.
    """
    configs = {
        "BBS": VATTConfig(),
        "MBS": VATTConfig(video=MEDIUM),
        "LBS": VATTConfig(video=LARGE),
        "MA": VATTConfig(shared=MEDIUM),
    }
    return published(configs[model])


def published(config: VATTConfig) -> Recipe:
    """Return the published pretraining of a model of any size."""
    return Recipe(
        method="vatt",
        config=config,
        train=Viewing(windows=AroundCaption(seconds=3.2, candidates=5), views=(_view(config, train=True),)),
        test=Viewing(windows=Grid(seconds=3.2, count=4), views=(_view(config, train=False),)),
        batch=BatchSpec(rows=2048),
        steps=500_000,
        tokenizer=TokenizerSpec(kind="word2vec", file="GoogleNews-vectors-negative300.bin", vocabulary=65_536),
        optimizer=OptimizerSpec(name="adam", lr=1e-4, eps=1e-7),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.01, end=0.5)},
        gradients=GradientSpec(not_finite="zero"),
    )


def base() -> Recipe:
    """Return BBS for one GPU and a day: smaller batches, fewer steps, word vectors that are learned.

    A recommendation that has not been run.
    """
    config = VATTConfig(frozen_words=False, mean="global")
    changes = {
        "config": config,
        "tokenizer": TokenizerSpec(kind="words", vocabulary=65_536),
        "test": Viewing(windows=Grid(seconds=3.2, count=None), views=(_view(config, train=False),)),
        "batch": BatchSpec(rows=128),
        "steps": 100_000,
        "optimizer": OptimizerSpec(name="adamw", lr=2e-4, weight_decay=0.01),
        "schedules": {"main": ScheduleSpec(shape="cosine", warmup=0.05)},
        "gradients": GradientSpec(clip_norm=1.0),
    }
    return paper("BBS").model_copy(update=changes)


def small() -> Recipe:
    """Return the same at toy scale: minutes on two CPU cores, on windows of two seconds with one caption.

    Two layers on convolutional stems and a maximum over tokens, for raw patches learn next to nothing in minutes; for
    the same reason sound is a spectrogram. No token is dropped: there are few, and a maximum over half of them is
    another in training than in use.
    """
    size = {"layers": 2, "width": 128, "heads": 4, "head_width": 32, "hidden": 256}
    config = VATTConfig(
        video=TransformerSize(**size),
        audio=TransformerSize(**size),
        text=T5Size(**size),
        frames=8,
        size=(48, 48),
        tubelet=(2, 16),
        video_stem=((24, 2), (48, 2), (64, 1), (96, 2), (96, 1)),
        mels=64,
        audio_steps=96,
        audio_patch=(8, 64),
        audio_stem=((24, 2, 2), (48, 2, 2), (64, 2, 2), (96, 1, 2)),
        text_steps=24,
        vocabulary=400,
        word_width=128,
        frozen_words=False,
        dropout=0.0,
        kept=1.0,
        hidden=128,
        fine=128,
        coarse=128,
        mean="global",
        pool="max",
    )

    def view(train: bool) -> dict[str, StreamSpec]:
        video = VideoTransform(size=48, resize=54, crop="random" if train else "centre", flip=0.5 if train else 0.0)
        sound = AudioTransform(mels=64, hop=0.02, steps=96, low=60.0, floor=1e-4, mean=-5.0, std=3.0)
        return {
            "video": StreamSpec(transform=video, rate=4.0, required=False),
            "audio": StreamSpec(transform=sound, rate=16_000.0, short="zero", required=False),
            "text": StreamSpec(transform=TextTransform(steps=24, marks=False), required=False),
        }

    return Recipe(
        method="vatt",
        config=config,
        train=Viewing(windows=Aligned(seconds=2.0), views=(view(train=True),)),
        test=Viewing(windows=Grid(seconds=2.0, count=None, stride=1.0), views=(view(train=False),)),
        batch=BatchSpec(rows=32),
        steps=1200,
        tokenizer=TokenizerSpec(kind="words", vocabulary=400),
        optimizer=OptimizerSpec(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.1)},
        gradients=GradientSpec(clip_norm=1.0),
    )
