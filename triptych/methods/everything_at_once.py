"""Everything at Once: Multi-modal Fusion Transformer for Video Retrieval (Shvetsova et al., CVPR 2022, 2112.04446).

One transformer block sees tokens of text, video and sound, alone or two at a time, without positions and without marks
of where a token is from. Six passes a batch give vectors of t, v, a, tv, ta and va; a contrastive term aligns each with
what it leaves out: t with v, but also t with va. So any subset can be fused, and clips may be longer than in training.
Video comes as precomputed features (`triptych embed --features`), words as vectors; only the sound is learned from raw.

What differs from the released code: two of its layers that are never applied are left out, the masking token is a
constant (its gradient is zero by construction), and batch norms take their moments over all devices.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych import distributed
from triptych.batch import Batch, Clip, Stream, View
from triptych.distributed import Gather
from triptych.encoders.davenet import ResDAVEnet
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.fusion import FusionTransformer, GatedUnit, TokenSet
from triptych.errors import TriptychError, UsageError
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.pooling import masked_mean
from triptych.layers.word_table import WordTable
from triptych.losses.contrastive import info_nce
from triptych.method import Clock, Facts, Losses, Method
from triptych.recipe import (
    Aligned,
    AtCaption,
    AudioTransform,
    BatchSpec,
    Config,
    Grid,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    SequenceTransform,
    StreamSpec,
    TextTransform,
    TokenizerSpec,
    Viewing,
)

Modality = Literal["text", "video", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "video", "audio")
"""In the order in which tokens are fused; a vector is named by initials."""
Term = Literal["tv", "ta", "va", "t_va", "v_ta", "a_tv"]
SIDES: dict[Term, tuple[str, str]] = {
    "tv": ("t", "v"),
    "ta": ("t", "a"),
    "va": ("v", "a"),
    "t_va": ("t", "va"),
    "v_ta": ("v", "ta"),
    "a_tv": ("a", "tv"),
}
"""The vectors that each term aligns."""
EPS = 1e-8
"""Smallest norm that a vector is divided by."""
PROBE = ("audio", "kind")
"""Stream and column of the toy world by which `benchmarks/learning.py` judges ``small()``; chosen before any run."""


class EverythingAtOnceConfig(Config):
    """Sizes and options. Defaults are those of the released pretraining on HowTo100M (R152 and RX101 features)."""

    video: tuple[str, ...] = Field(("resnet152", "resnext101"), min_length=1)
    """Streams of precomputed vectors that make up a video token, side by side; a row needs all of them."""
    video_widths: tuple[int, ...] = (2048, 2048)
    """Values of a vector of each; filled in from the data."""
    vocabulary: int | None = None
    """Entries of the table of word vectors, filled in from the tokenizer; None: the text stream is vectors itself."""
    word_width: int = 300
    """Values of a word vector (word2vec: 300)."""
    frozen_words: bool = True
    """Whether the word vectors are kept as they are: those of a word2vec file (`tokenizer.file`)."""
    mels: int = 40
    """Mel bands."""
    audio_widths: tuple[int, ...] = (128, 128, 256, 512, 1024, 2048, 4096)
    """Channels of the audio network: of its first layer, and of each stage, which halves the time."""
    audio_blocks: tuple[int, ...] = (2, 2, 1, 1, 1, 1)
    """Residual blocks of each stage."""
    width: int = 4096
    """Width of the fusion transformer."""
    depth: int = 1
    """Its blocks."""
    heads: int = 64
    """Its attention heads."""
    ratio: float = 1.0
    """Width of its feed-forward part over `width`."""
    dim: int = 6144
    """Width of the joint space."""
    weights: dict[Term, float] = Field(default_factory=lambda: {term: 1.0 if term == "tv" else 0.1 for term in SIDES})
    """Weight of each term; divided by the sum over those that there are. All 1 in the published fine-tuning."""
    loss: Literal["nce", "mms"] = "nce"
    """Cross entropy of cosines over `temperature`, or of cosines whose positives are lowered by `margin` (AVLnet's)."""
    temperature: float = Field(0.05, gt=0)
    """Of `nce`; fixed."""
    margin: float = 0.001
    """Of `mms`."""
    gather: Gather = "grad"
    """Negatives from other devices; the authors form the loss of the whole batch on one."""
    frozen_moments: bool = False
    """Whether batch norms keep their running moments in training, as in the published fine-tuning."""
    late: bool = False
    """Whether `embed` also answers a space `late`, in which a pair is the mean of its two single vectors (the paper's
    comparison), not fused."""

    @model_validator(mode="after")
    def _fits(self) -> "EverythingAtOnceConfig":
        if len(self.video) != len(self.video_widths):
            raise ValueError(f"video has {len(self.video)} streams, video_widths {len(self.video_widths)}")
        if len(self.audio_widths) != len(self.audio_blocks) + 1:
            raise ValueError("audio_widths has one entry for the first layer and one for each stage of audio_blocks")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        if min(self.weights.values(), default=0.0) < 0 or not any(self.weights.values()):
            raise ValueError("weights must not be below 0, and one must be above")
        return self


class EverythingAtOnce(Method):
    """Token projections, one fusion transformer, output projections; the sound has a network before its tokens."""

    config_class: ClassVar[type[Config]] = EverythingAtOnceConfig

    def __init__(self, config: EverythingAtOnceConfig) -> None:
        """Build all parts; linear layers outside the transformer begin as PyTorch's."""
        super().__init__(config)
        self.options = config
        self.spaces = {"joint": "cosine"}
        if config.late:
            self.spaces["late"] = "cosine"
        self.words = None
        if config.vocabulary is not None:
            self.words = WordTable(config.vocabulary, config.word_width, config.frozen_words)
        self.davenet = ResDAVEnet(config.mels, config.audio_widths, config.audio_blocks)
        inputs = {"text": config.word_width, "video": sum(config.video_widths), "audio": self.davenet.width}
        self.tokens = nn.ModuleDict(
            {
                name: nn.Sequential(GatedUnit(inputs[name], config.width), nn.LayerNorm(config.width, eps=1e-6))
                for name in MODALITIES
            }
        )
        self.fusion = FusionTransformer(config.width, config.heads, config.depth, config.ratio)
        self.heads = nn.ModuleDict({name: GatedUnit(config.width, config.dim) for name in MODALITIES})
        self.streams: dict[Modality, Stream] = {"text": "text", "video": "+".join(config.video), "audio": "audio"}

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the widths of the features, and the words of the tokenizer, from the data."""
        assert isinstance(recipe.config, EverythingAtOnceConfig)
        config = recipe.config
        known = zip(config.video, config.video_widths, strict=True)
        changes: dict[str, object] = {"video_widths": tuple(facts.widths.get(name, width) for name, width in known)}
        if facts.vocabulary is not None:
            changes["vocabulary"] = facts.vocabulary
        if "text" in facts.widths:
            changes["word_width"] = facts.widths["text"]
        return recipe.model_copy(update={"config": config.model_copy(update=changes)})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Sum of the terms, weighted, over the sum of the weights of those that there are (section 5).

        A term reads only rows that have all that it speaks of; the others are none of its negatives, either. A term for
        which no row is left is 0, and its weight counts.
        """
        vectors, present = self.vectors(batch.views[0])
        terms: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        report: dict[str, Tensor] = {}
        for name, weight in self.options.weights.items():
            first, second = SIDES[name]
            if weight and first in vectors and second in vectors:
                valid = present[first] & present[second]
                terms[name], report[f"accuracy_{name}"] = self._align(vectors[first], vectors[second], valid)
                weights[name] = weight
        if not terms:
            raise UsageError("Everything at Once aligns streams: its view needs two of text, audio and video features.")
        total = sum(weights.values())
        return Losses(terms, {name: weight / total for name, weight in weights.items()}, report)

    def vectors(self, view: View) -> tuple[dict[str, Float[Tensor, "batch dim"]], dict[str, Bool[Tensor, " batch"]]]:
        """Return the vectors of all single and paired modalities by initials, and the rows that have them.

        A single one is projected from the mean of its own pass; it is not normalised. A pair is the mean of the two
        projected and normalised halves of one pass over both (section 4).
        """
        sets = self.token_sets(view)
        vectors, present = {}, {}
        for name, found in sets.items():
            filled = {name: self.fusion.fill(found)}
            vectors[name[0]] = self._project(filled)[name]
            present[name[0]] = found.present
        for first, second in combinations(sets, 2):
            halves = self._project({name: self.fusion.fill(sets[name]) for name in (first, second)})
            pair = first[0] + second[0]
            vectors[pair] = (_unit(halves[first]) + _unit(halves[second])) / 2
            present[pair] = present[first[0]] & present[second[0]]
        return vectors, present

    def embed(self, view: View) -> dict[str, dict[str, Float[Tensor, "batch dim"]]]:
        """Return normalised vectors of each modality in the view and of each pair, ``"text+audio"`` fused from both."""
        vectors, _ = self.vectors(view)
        names = {name[0]: stream for name, stream in self.streams.items()}
        singles = {name: _unit(vector) for name, vector in vectors.items() if len(name) == 1}
        found = {"joint": {"+".join(names[one] for one in name): _unit(vector) for name, vector in vectors.items()}}
        if self.options.late:
            pairs = {f"{names[m]}+{names[n]}": _unit(singles[m] + singles[n]) for m, n in combinations(singles, 2)}
            found["late"] = {names[name]: vector for name, vector in singles.items()} | pairs
        return found

    def features(self, view: View) -> dict[str, Features]:
        """Return the tokens of each modality after a pass of its own; ``pooled`` is the mean of the valid ones."""
        features = {}
        for name, found in self.token_sets(view).items():
            out = self.fusion({name: self.fusion.fill(found)})[name]
            features[self.streams[name]] = Features(
                tokens=out.tokens,
                pooled=masked_mean(*out),
                length=found.mask.sum(dim=1),
                grid=(out.tokens.shape[1], 1, 1),
            )
        return features

    def encoder(self, stream: Stream) -> Encoder:
        """Return the audio network, the only encoder of raw signals."""
        if stream != "audio":
            raise UsageError(f"Everything at Once has no encoder of '{stream}': it reads it as precomputed vectors.")
        return self.davenet

    def backbone(self, stream: Stream) -> list[nn.Module]:
        """Return what the features of a stream run through: its network or table, its projection, the transformer."""
        modality = next((name for name, own in self.streams.items() if own == stream), None)
        if modality is None:
            raise UsageError(
                f"Everything at Once has features of {', '.join(self.streams.values())}, not of '{stream}'."
            )
        first = {"audio": self.davenet, "text": self.words}.get(modality)
        return [*([] if first is None else [first]), self.tokens[modality], self.fusion]

    def width(self, stream: Stream) -> int:
        """Return the width of the fusion transformer."""
        return self.options.width

    def take_words(self, vectors: Float[Tensor, "entries width"]) -> None:
        """Fill the table of word vectors."""
        assert self.words is not None
        self.words.take(vectors)

    def train(self, mode: bool = True) -> "EverythingAtOnce":
        """Set the mode; batch norms stay as in evaluation if their moments are frozen."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, BatchNorm) and self.options.frozen_moments:
                module.eval()
        return self

    def token_sets(self, view: View) -> dict[Modality, TokenSet]:
        """Return the projected and normalised tokens of the modalities that the view has, in the order of fusion."""
        raw: dict[Modality, TokenSet] = {}
        if "text" in view:
            raw["text"] = self._text(view["text"])
        if all(name in view for name in self.options.video):
            raw["video"] = self._video([view[name] for name in self.options.video])
        if "audio" in view:
            found = self.davenet(view["audio"].data, view["audio"].length)
            raw["audio"] = TokenSet.of(found.tokens, found.length)
        return {name: TokenSet(self.tokens[name](found.tokens), found.mask) for name, found in raw.items()}

    def _text(self, clip: Clip) -> TokenSet:
        if self.words is None:
            return TokenSet.of(_sized(clip, clip.data.shape[1], self.options.word_width, "text"), clip.length)
        return TokenSet.of(self.words(clip.data), clip.length)

    def _video(self, clips: list[Clip]) -> TokenSet:
        """Return the streams side by side, as long as the shortest."""
        steps = min(clip.data.shape[1] for clip in clips)
        known = zip(clips, self.options.video_widths, self.options.video, strict=True)
        parts = [_sized(clip, steps, width, name) for clip, width, name in known]
        length = torch.stack([clip.length for clip in clips]).amin(dim=0)
        return TokenSet.of(torch.cat(parts, dim=2), length)

    def _project(self, filled: Mapping[Modality, TokenSet]) -> dict[Modality, Float[Tensor, "batch dim"]]:
        """Return the projected mean of each modality's tokens after one pass over all of them."""
        return {name: self.heads[name](masked_mean(*out)) for name, out in self.fusion(filled).items()}

    def _align(self, x: Tensor, y: Tensor, valid: Bool[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """Return the SUM of both directions' means over the valid rows of all ranks, and the share of right answers."""
        options, how = self.options, self.options.gather
        scale, margin = (1 / options.temperature, 0.0) if options.loss == "nce" else (1.0, options.margin)
        x, y = _unit(x), _unit(y)
        here = distributed.offset(x, how)
        all_x, all_y, all_valid = (distributed.gather(each, how) for each in (x, y, valid))
        each = info_nce(x, all_y, scale, here, all_valid, margin) + info_nce(y, all_x, scale, here, all_valid, margin)
        value, count = (each * valid).sum(), valid.sum().float()
        loss = value / count.clamp(min=1) if how == "none" else distributed.mean(value, count)
        with torch.no_grad():
            right = (x @ y.T).masked_fill(~valid, float("-inf")).argmax(dim=1) == torch.arange(len(x), device=x.device)
            accuracy = (right & valid).sum() / count.clamp(min=1)
        return loss, accuracy


def _unit(x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
    return functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1, eps=EPS)


def _sized(clip: Clip, steps: int, width: int, stream: Stream) -> Float[Tensor, "batch kept width"]:
    """Return the first ``steps`` vectors, at least one; zeros where no row of the batch has any to tell the width."""
    kept = clip.data[:, :steps]
    if kept.shape[2] != width:
        if clip.length.any():
            raise TriptychError(f"Vectors of '{stream}' have {kept.shape[2]} values; the model was made for {width}.")
        kept = kept.new_zeros(len(kept), kept.shape[1], width)
    return functional.pad(kept, (0, 0, 0, max(1 - kept.shape[1], 0)))


def _view(
    config: EverythingAtOnceConfig,
    audio: StreamSpec,
    text: TextTransform | SequenceTransform,
    vectors: SequenceTransform,
) -> dict[str, StreamSpec]:
    """Return a look at all streams, none of which a row must have; features are brought to the steps of the last."""
    like = {name: config.video[-1] for name in config.video[:-1]}
    transforms = {name: vectors.model_copy(update={"like": like.get(name)}) for name in config.video}
    features = {name: StreamSpec(transform=transform, required=False) for name, transform in transforms.items()}
    return {**features, "audio": audio, "text": StreamSpec(transform=text, required=False)}


def paper() -> Recipe:
    """Return the published pretraining on HowTo100M (sections 3 and 6), and the look at MSR-VTT's test (section 7).

    A window of 8 s gives way to the captions that are said at its edge; the sound is moved 4 s ahead of them. Of a
    video's ten clips in a batch all are negatives of each other. Word vectors: a word2vec file (GoogleNews) is needed.
    """
    words = TokenizerSpec(
        kind="word2vec", file="GoogleNews-vectors-negative300.bin", vocabulary=3_000_004, lowercase=False
    )
    return published(EverythingAtOnceConfig(), words)


def published(config: EverythingAtOnceConfig, words: TokenizerSpec | None) -> Recipe:
    """Return ``paper()`` for other features; without ``words``, text is a stream of precomputed vectors (CLIP's)."""
    text = SequenceTransform(steps=20) if words is None else TextTransform(steps=20, marks=False, unknown=False)

    def look(vectors: int, steps: int, seconds: float | None) -> dict[str, StreamSpec]:
        sound = AudioTransform(front_end="davenet", mels=config.mels, floor=1e-8, steps=steps)
        audio = StreamSpec(transform=sound, seconds=seconds, rate=16_000, short="zero", required=False)
        return _view(config, audio, text, SequenceTransform(steps=vectors, normalize=True))

    return Recipe(
        method="everything_at_once",
        config=config,
        train=Viewing(windows=AtCaption(seconds=8.0, apart=4.0), views=(look(12, 768, 8.0),)),
        test=Viewing(windows=Grid(count=1), views=(look(48, 3072, None),)),
        batch=BatchSpec(rows=2240, together=10),
        epochs=15,
        tokenizer=words,
        optimizer=OptimizerSpec(name="adam", lr=5e-5),
        schedules={"main": ScheduleSpec(shape="steps", milestones=tuple(k / 15 for k in range(1, 15)), gamma=0.9)},
    )


def base() -> Recipe:
    """Return a smaller model for one GPU and a day, on features of one's own and words that are learned.

    Sizes and rates are recommendations; it has not been run.
    """
    config = EverythingAtOnceConfig(
        video=("video-features",),
        video_widths=(1024,),
        frozen_words=False,
        vocabulary=20_000,
        audio_widths=(128, 128, 256, 512, 512, 1024, 1024),
        width=1024,
        heads=16,
        dim=1024,
    )
    sound = AudioTransform(front_end="davenet", mels=40, floor=1e-8, steps=768)
    audio = StreamSpec(transform=sound, rate=16_000, short="zero", required=False)
    view = _view(config, audio, TextTransform(steps=32), SequenceTransform(steps=16, normalize=True))
    return Recipe(
        method="everything_at_once",
        config=config,
        train=Viewing(windows=Aligned(seconds=8.0), views=(view,)),
        test=Viewing(windows=Grid(seconds=8.0, count=None), views=(view,)),
        batch=BatchSpec(rows=1024, together=4),
        epochs=30,
        tokenizer=TokenizerSpec(vocabulary=20_000),
        optimizer=OptimizerSpec(name="adam", lr=1e-4),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.05)},
    )


def small() -> Recipe:
    """Return the same at toy scale: minutes on two CPU cores, on windows of two seconds and features of our own.

    All terms weigh the same, and the audio network has three stages only: sounds of the toy world are short.
    """
    config = EverythingAtOnceConfig(
        video=("video-features",),
        video_widths=(128,),
        vocabulary=400,
        word_width=64,
        frozen_words=False,
        mels=64,
        audio_widths=(48, 64, 96, 128),
        audio_blocks=(1, 1, 1),
        width=128,
        heads=4,
        dim=256,
        weights=dict.fromkeys(SIDES, 1.0),
    )
    sound = AudioTransform(mels=64, hop=0.02, steps=96, low=60.0, floor=1e-4, mean=-5.0, std=3.0)
    audio = StreamSpec(transform=sound, rate=16_000, short="zero", required=False)
    view = _view(config, audio, TextTransform(steps=24), SequenceTransform(steps=4, normalize=True))
    return Recipe(
        method="everything_at_once",
        config=config,
        train=Viewing(windows=Aligned(seconds=2.0), views=(view,)),
        test=Viewing(windows=Grid(seconds=2.0, count=None, stride=1.0), views=(view,)),
        batch=BatchSpec(rows=64),
        steps=1500,
        tokenizer=TokenizerSpec(kind="words", vocabulary=400),
        optimizer=OptimizerSpec(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.1)},
    )
