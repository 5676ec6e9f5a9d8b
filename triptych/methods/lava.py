"""LAVA: Language Audio Vision Alignment (Gurram, Fang, Chan, Canny; ICML 2022 workshop, arXiv 2207.08024).

Three transformers map a video's title, soundtrack and frames to one vector each. Symmetric in-batch NCE losses pull
together (a) the pairs of modalities and (b) each modality and the centroid of the three, a stand-in for the meaning
that no single modality fully holds; gradient flows through the centroid.

What differs from the paper: neither its full text nor weights were at hand; architecture and schedule follow research
code that its first author wrote in 2021, so numbers of the final paper may differ. By default videos without a title
are left out of the terms with text (``mask_text="drop"``); the authors' code multiplied their vectors by zero
(``"zero_embed"``).
"""

import math
from dataclasses import replace
from itertools import combinations
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych import distributed
from triptych.batch import Batch, Modality, Stream, View
from triptych.distributed import Gather
from triptych.encoders.encoder import Encoder, Features
from triptych.layers.heads import Projection, build_projector
from triptych.layers.patches import ConvolutionalStem, patchify_video
from triptych.layers.transformer import Block
from triptych.losses.contrastive import info_nce
from triptych.method import Clock, Facts, Losses, Method
from triptych.recipe import (
    Aligned,
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
"""Stream and label of the linear probe that tells whether ``small()`` learns; chosen before it was run."""
MODALITIES = ("audio", "video", "text")
"""In the authors' order; a term is named by two initials, the centroid's is ``c``."""


class LAVAConfig(Config):
    """Sizes and options. Defaults are those of the authors' training scripts (2021), unless marked otherwise."""

    width: int = 1024
    """Width D of all three encoders and of the joint space."""
    layers: int = 4
    """Transformer layers of each encoder (class defaults and an early script: 8)."""
    heads: int = 4
    """Attention heads (an early script: 8)."""
    ratio: float = 1.0
    """Width of the feed-forward part over `width`; 1, not 4."""
    dropout: float = 0.0
    """In attention, after attention and inside the feed-forward part (0.1 in an early script)."""
    norm: Literal["post", "pre"] = "post"
    """Place of the layer norms; `pre` is ours, for training at toy scale."""
    frames: int = 16
    """Frames of a clip."""
    size: int = 224
    """Side of the frames, pixels."""
    tubelet: tuple[int, int] = (4, 28)
    """Frames and side of a video token (4 x 28 x 28 pixels: 256 tokens)."""
    video_stem: tuple[tuple[int, int], ...] = ()
    """Convolutions before the tubelets: channels and stride of each. A tubelet's places are then pooled by their
    maximum. None in the authors' code; ours, for toy scale."""
    audio_stem: tuple[tuple[int, int, int], ...] = ()
    """The same before the spectrogram's patches: channels, stride in time and in mels; the strides in time make the
    patch. Ours, too."""
    pool: Literal["token", "max"] = "token"
    """What the feature is read from: the feature token, or the maximum over it and all valid tokens. The latter is
    ours, for toy scale: attention takes long to learn where to look."""
    mels: int = 80
    """Mel bands."""
    audio_steps: int = 512
    """Spectrogram frames."""
    audio_patch: int = 8
    """Spectrogram frames of an audio token (64 tokens)."""
    vocabulary: int = 20_000
    """Entries of the tokenizer; filled in from the data (a class default of 48,000 also appears)."""
    text_steps: int = 128
    """Tokens of a title."""
    sentence_width: int | None = None
    """If given, the text stream is one frozen sentence vector of this width (512: Universal Sentence Encoder) and the
    text encoder a single linear layer."""
    mask_padding: bool = False
    """Keep the padding out of attention; the authors' code does not."""
    projection: Projection = "linear"
    """Head of each modality: `linear`, `none`, or `mlp_bn` (linear, batch norm, GELU, linear)."""
    pairs: tuple[Literal["av", "at", "vt"], ...] = ("av", "at", "vt")
    """Pairs with a term; the authors' last versions drop `at`, because titles rarely describe sound."""
    centroid: bool = True
    """Whether each modality also has a term with the centroid."""
    mask_text: Literal["drop", "zero_embed"] = "drop"
    """Rows without a title: left out of every term with text (recommended), or their vector multiplied by zero before
    the projection, in the softmax as negatives and as positives (the authors' code)."""
    temperature: float = 1 / 0.07
    """First value of the learned multiplier of the cosine."""
    temperature_max: float | None = None
    """Clamp of the multiplier (100: CLIP's); none in the authors' code."""
    gather: Gather = "none"
    """Negatives from other devices; the authors' code has none."""

    @model_validator(mode="after")
    def _fits(self) -> "LAVAConfig":
        frames, side = self.tubelet
        if self.frames % frames or self.size % side:
            raise ValueError(f"tubelet {self.tubelet} does not divide {self.frames} frames of {self.size} pixels")
        if self.audio_steps % self.audio_patch:
            raise ValueError(f"audio_patch {self.audio_patch} does not divide audio_steps {self.audio_steps}")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        if side % math.prod(stride for _, stride in self.video_stem):
            raise ValueError(f"the strides of video_stem do not divide tubelets of {side} pixels")
        if self.audio_stem and math.prod(stride for _, stride, _ in self.audio_stem) != self.audio_patch:
            raise ValueError(
                f"the strides in time of audio_stem do not make an audio_patch of {self.audio_patch} steps"
            )
        return self


class TokenEncoder(Encoder):
    """The skeleton of all three: tokens, a learned feature token at the END, learned positions, layers, a head."""

    def __init__(
        self, config: LAVAConfig, modality: Modality, values: int, grid: tuple[int, int, int], steps: int
    ) -> None:
        """Build the encoder.

        Args:
            config: Sizes.
            modality: What it reads.
            values: Values of a raw token, projected to the width.
            grid: Time, height and width of the tokens.
            steps: Frames, or spectrogram frames, or ids of a token.
        """
        super().__init__()
        self.modality: Modality = modality
        self.width = config.width
        self.grid = grid
        self.steps_per_token = steps
        self.mask_padding = config.mask_padding and modality == "text"
        self.pool = config.pool
        tokens = grid[0] * grid[1] * grid[2]
        self.project = nn.Linear(values, config.width)
        scale = config.width**-0.5
        self.positions = nn.Parameter(
            scale * torch.rand(tokens + 1, config.width)
        )  # uniform, so positive; last: feature
        self.feature_token = nn.Parameter(scale * torch.randn(1, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, ratio=config.ratio, norm=config.norm, dropout=config.dropout, eps=1e-5)
            for _ in range(config.layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, config.width))

    def raw_tokens(self, data: Tensor) -> Float[Tensor, "batch tokens values"]:
        """Return the values of each token, before the projection."""
        raise NotImplementedError

    def tokenize(self, data: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return tokens with their positions, without the feature token."""
        tokens: Tensor = self.project(self.raw_tokens(data))
        return tokens + self.positions[:-1]

    def enter(
        self, data: Tensor, length: Int[Tensor, " batch"] | None = None
    ) -> tuple[Float[Tensor, "batch all_tokens width"], Int[Tensor, " batch"]]:
        """Return the tokens, feature token last, and how many are valid without it."""
        tokens = self.tokenize(data)
        return self._with_feature_token(tokens), self.valid_tokens(len(tokens), length, tokens.device)

    def _with_feature_token(self, tokens: Tensor) -> Tensor:
        feature = (self.feature_token + self.positions[-1:]).expand(len(tokens), 1, -1)
        return torch.cat([tokens, feature], dim=1)

    def finish(self, tokens: Float[Tensor, "batch all_tokens width"], length: Int[Tensor, " batch"]) -> Features:
        """Return the features of what the last block put out, feature token last."""
        read = tokens[:, -1]
        if self.pool == "max":
            valid = torch.arange(tokens.shape[1] - 1, device=tokens.device) < length[:, None]
            inner = tokens[:, :-1].masked_fill(~valid[..., None], float("-inf"))
            read = torch.cat([inner, tokens[:, -1:]], dim=1).amax(dim=1)
        feature: Tensor = self.head(read)
        whole = tokens.shape[1] - 1 == self.grid[0] * self.grid[1] * self.grid[2]
        return Features(
            tokens=tokens[:, :-1],
            pooled=feature,
            length=length,
            grid=self.grid if whole else None,
            special=tokens[:, -1:],
        )

    def forward(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; see ``Encoder.forward``. ``length`` counts raw steps; padding is masked only if asked for."""
        tokens = self.tokenize(data)
        valid = self.valid_tokens(len(tokens), length, tokens.device)
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, self.width))
            valid = keep.lt(valid[:, None]).sum(dim=1)
        x = self._with_feature_token(tokens)
        mask = None
        if self.mask_padding:
            place = torch.arange(x.shape[1], device=x.device)
            mask = (place < valid[:, None]) | (place == x.shape[1] - 1)
        outputs = []
        for block in self.blocks:
            x = block(x, mask)
            if layers:
                outputs.append(x)
        features = self.finish(x, valid)
        return replace(features, layers=tuple(outputs)) if layers else features

    def valid_tokens(
        self, batch: int, length: Int[Tensor, " batch"] | None, device: torch.device
    ) -> Int[Tensor, " batch"]:
        """Return how many tokens each row truly has, from its raw steps."""
        total = self.grid[0] * self.grid[1] * self.grid[2]
        if length is None:
            return torch.full((batch,), total, device=device)
        steps = -(-length // self.steps_per_token)
        return (steps * self.grid[1] * self.grid[2]).clamp(max=total)


class VideoTokens(TokenEncoder):
    """Frames to tubelets in the order time, height, width; values in the order time, height, width, channel."""

    def __init__(self, config: LAVAConfig) -> None:
        frames, side = config.tubelet
        across = config.size // side
        values = 3 * frames * side * side
        if config.video_stem:
            values = frames * config.video_stem[-1][0]
        super().__init__(config, "video", values, (config.frames // frames, across, across), frames)
        self.tubelet = (frames, side, side)
        self.stem = None
        if config.video_stem:
            widths, strides = zip(*config.video_stem, strict=True)
            self.stem = ConvolutionalStem(3, widths, [(stride, stride) for stride in strides])

    def raw_tokens(self, data: Float[Tensor, "batch frames height width 3"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the frames into tubelets, or pool what the stem makes of each frame over the tubelet's places."""
        if self.stem is None:
            return patchify_video(data, self.tubelet)
        maps = self.stem(data.flatten(0, 1)).permute(0, 3, 1, 2)
        pooled = functional.max_pool2d(maps, maps.shape[-1] // self.grid[-1]).permute(0, 2, 3, 1)
        return patchify_video(pooled.unflatten(0, data.shape[:2]), (self.tubelet[0], 1, 1))


class AudioTokens(TokenEncoder):
    """Spectrogram frames to patches over all mels; values in the order mel, time."""

    def __init__(self, config: LAVAConfig) -> None:
        values, grid = config.mels * config.audio_patch, (config.audio_steps // config.audio_patch, 1, 1)
        if config.audio_stem:
            bands = config.mels
            for _, _, stride in config.audio_stem:
                bands = -(-bands // stride)
            values = bands * config.audio_stem[-1][0]
        super().__init__(config, "audio", values, grid, config.audio_patch)
        self.stem = None
        if config.audio_stem:
            widths, *strides = zip(*config.audio_stem, strict=True)
            self.stem = ConvolutionalStem(1, widths, list(zip(*strides, strict=True)))

    def raw_tokens(self, data: Float[Tensor, "batch steps mels"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the spectrogram, or what the stem makes of it, along time."""
        if self.stem is not None:
            return self.stem(data[..., None]).flatten(2)
        return data.unflatten(1, (-1, self.steps_per_token)).transpose(2, 3).flatten(2)


class TextTokens(TokenEncoder):
    """Token ids, embedded; 0 is padding, which takes part in attention unless ``mask_padding``."""

    def __init__(self, config: LAVAConfig) -> None:
        super().__init__(config, "text", config.width, (config.text_steps, 1, 1), 1)
        self.embedding = nn.Embedding(config.vocabulary, config.width)

    def raw_tokens(self, data: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch steps width"]:
        """Embed the ids."""
        embedded: Tensor = self.embedding(data)
        return embedded


class SentenceVector(Encoder):
    """The variant with pretrained text: one frozen sentence vector and a single linear layer."""

    def __init__(self, config: LAVAConfig) -> None:
        super().__init__()
        assert config.sentence_width is not None
        self.modality: Modality = "sequence"
        self.width = config.width
        self.project = nn.Linear(config.sentence_width, config.width)

    def forward(
        self,
        data: Float[Tensor, "batch steps values"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Project the first vector of the sequence."""
        tokens = self.project(data[:, :1])
        ones = torch.ones(len(data), dtype=torch.long, device=data.device)
        return Features(tokens=tokens, pooled=tokens[:, 0], length=ones, grid=(1, 1, 1))


class LAVA(Method):
    """Three encoders, three heads, one learned multiplier; ``temperature`` multiplies, it is not exponentiated."""

    config_class: ClassVar[type[Config]] = LAVAConfig

    def __init__(self, config: LAVAConfig) -> None:
        """Build the encoders with PyTorch's default initialisation of linear layers and attention."""
        super().__init__(config)
        self.options = config
        self.spaces = {"joint": "cosine"}
        text = TextTokens(config) if config.sentence_width is None else SentenceVector(config)
        self.encoders = nn.ModuleDict({"audio": AudioTokens(config), "video": VideoTokens(config), "text": text})
        self.heads = nn.ModuleDict({name: build_projector(config.projection, config.width) for name in MODALITIES})
        self.temperature = nn.Parameter(torch.tensor([config.temperature]))

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the size of the vocabulary, or the width of the sentence vectors, from the data."""
        assert isinstance(recipe.config, LAVAConfig)
        changed = recipe.config
        if facts.vocabulary is not None:
            changed = changed.model_copy(update={"vocabulary": facts.vocabulary})
        if changed.sentence_width is not None and "text" in facts.widths:
            changed = changed.model_copy(update={"sentence_width": facts.widths["text"]})
        return recipe.model_copy(update={"config": changed})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Sum of symmetric NCE terms of the pairs, and of each modality with the normalised mean of all (section 5).

        A row without a stream takes no part in that stream's terms, neither as query nor as key, and its centroid is
        the mean of what it has. With ``mask_text="zero_embed"`` rows without a title stay in, their vector zeroed
        before the head.
        """
        view = batch.views[0]
        vectors, present = self.vectors(view)
        terms: dict[str, Tensor] = {}
        report: dict[str, Tensor] = {}
        for first, second in combinations(MODALITIES, 2):
            name = first[0] + second[0]
            if name in self.options.pairs:
                both = present[first] & present[second]
                terms[name], report[f"accuracy_{name}"] = self._nce(vectors[first], vectors[second], both)
        if self.options.centroid:
            centroid = self.centroid(vectors, present)
            # A row with a single modality is its own centroid, and would teach nothing.
            several = torch.stack(list(present.values())).sum(dim=0) > 1
            for name in MODALITIES:
                terms[f"{name[0]}c"], _ = self._nce(vectors[name], centroid, present[name] & several)
        report["temperature"] = self.temperature.detach()
        return Losses(terms=terms, report=report)

    def encoder(self, stream: Stream) -> Encoder:
        """Return the encoder of a stream."""
        found = self.encoders[stream]
        assert isinstance(found, Encoder)
        return found

    def features(self, view: View) -> dict[str, Features]:
        """Return each encoder's output; ``pooled`` is the feature token after layer norm and linear (section 7)."""
        return {
            stream: self._encode(stream, view[stream].data, view[stream].length)
            for stream in MODALITIES
            if stream in view
        }

    def embed(self, view: View) -> dict[str, dict[str, Float[Tensor, "batch dim"]]]:
        """Return normalise(head(normalise(feature))) of each stream, in the space ``joint``."""
        return {"joint": {stream: self._project(stream, found.pooled) for stream, found in self.features(view).items()}}

    def after_step(self, clock: Clock) -> None:
        """Clamp the multiplier, if that is asked for."""
        if self.options.temperature_max is not None:
            with torch.no_grad():
                self.temperature.clamp_(max=self.options.temperature_max)

    def _encode(self, stream: str, data: Tensor, length: Tensor) -> Features:
        found: Features = self.encoders[stream](data, length)
        return found

    def _project(self, stream: str, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        projected: Tensor = self.heads[stream](functional.normalize(features, dim=-1))
        return functional.normalize(projected.float(), dim=-1)

    def centroid(
        self, vectors: dict[str, Float[Tensor, "batch dim"]], present: dict[str, Bool[Tensor, " batch"]]
    ) -> Float[Tensor, "batch dim"]:
        """Return the normalised mean of what each row has; gradient flows through it."""
        total = torch.stack([vectors[name] * present[name][:, None] for name in MODALITIES]).sum(dim=0)
        return functional.normalize(total, dim=-1)

    def vectors(self, view: View) -> tuple[dict[str, Float[Tensor, "batch dim"]], dict[str, Bool[Tensor, " batch"]]]:
        """Return vectors of all three modalities, and which rows take part in the terms with each."""
        some = next(iter(view.values()))
        vectors, present = {}, {}
        for stream in MODALITIES:
            if stream in view:
                clip = view[stream]
                feature = self._encode(stream, clip.data, clip.length).pooled
                present[stream] = clip.present
                if stream == "text" and self.options.mask_text == "zero_embed":
                    feature = feature * clip.present[:, None]
                    present[stream] = torch.ones_like(clip.present)
                vectors[stream] = self._project(stream, feature)
            else:
                vectors[stream] = torch.zeros(len(some.length), self.options.width, device=some.length.device)
                present[stream] = torch.zeros(len(some.length), dtype=torch.bool, device=some.length.device)
        return vectors, present

    def _nce(self, x: Tensor, y: Tensor, valid: Bool[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """Return half the sum of both directions, over the valid rows of all ranks, and the share of right answers."""
        how = self.options.gather
        here = distributed.offset(x, how)
        all_x, all_y, all_valid = (distributed.gather(each, how) for each in (x, y, valid))
        scale = self.temperature[0]
        each = (info_nce(x, all_y, scale, here, all_valid) + info_nce(y, all_x, scale, here, all_valid)) / 2
        count = valid.sum().float()
        value = (each * valid).sum()
        loss = value / count.clamp(min=1) if how == "none" else distributed.mean(value, count)
        with torch.no_grad():
            right = (x @ y.T).masked_fill(~valid, float("-inf")).argmax(dim=1) == torch.arange(len(x), device=x.device)
            accuracy = (right & valid).sum() / count.clamp(min=1)
        return loss, accuracy


def _view(
    config: LAVAConfig, train: bool, hop: float, prompt: str, sound_at: Literal["start", "beginning"]
) -> dict[str, StreamSpec]:
    """Return the published look: frames at 10 fps, short side 256, crop of `size`; 16 kHz, 25 ms windows.

    The natural logarithm of the mel energies is floored at 1e-6 (a recommendation; the authors' setting is unknown).
    """
    video = VideoTransform(
        size=config.size, resize=256, crop="random" if train else "centre", flip=0.5 if train else 0.0
    )
    sound = AudioTransform(mels=config.mels, hop=hop, steps=config.audio_steps, noise=0.01 if train else 0.0)
    return {
        "video": StreamSpec(
            transform=video,
            seconds=config.frames / 10,
            rate=10.0,
            at="inside" if train else "centre",
            short="zero",
            required=False,
        ),
        "audio": StreamSpec(
            transform=sound,
            seconds=config.audio_steps * hop,
            rate=16_000.0,
            at=sound_at,
            short="zero",
            required=False,
        ),
        "text": StreamSpec(transform=TextTransform(steps=config.text_steps, prompt=prompt), required=False),
    }


def paper() -> Recipe:
    """Return the published run as far as it is known: Kinetics-700, titles as text (sections 3 and 6).

    The video is 16 frames at 10 fps (1.6 s) at a random place in the centre 2 s; the sound is the first 512 spectrogram
    frames of the track: the two are not aligned in time, and this is kept.
    """
    config = LAVAConfig(mask_text="zero_embed")

    def look(train: bool) -> dict[str, StreamSpec]:
        return _view(config, train, hop=0.02, prompt="A video of {}", sound_at="beginning")

    return Recipe(
        method="lava",
        config=config,
        train=Viewing(windows=Aligned(seconds=2.0, place="centre"), views=(look(train=True),)),
        test=Viewing(windows=Grid(seconds=2.0, count=1), views=(look(train=False),)),
        # 32 a device x 2 devices x 2 accumulated parts; accumulation adds no negatives.
        batch=BatchSpec(rows=128, accumulate=2),
        epochs=100,
        tokenizer=TokenizerSpec(kind="unigram", vocabulary=20_000, lowercase=False),
        optimizer=OptimizerSpec(lr=5e-5, weight_decay=0.01),
        schedules={"main": ScheduleSpec(shape="cosine")},
        precision="float32",
    )


def base() -> Recipe:
    """Return the same model for one GPU and a day, on aligned windows and with a warm-up (a recommendation)."""
    config = LAVAConfig(gather="grad")

    def look(train: bool) -> dict[str, StreamSpec]:
        return _view(config, train, hop=0.01, prompt="{}", sound_at="start")

    return Recipe(
        method="lava",
        config=config,
        train=Viewing(windows=Aligned(seconds=5.12), views=(look(train=True),)),
        test=Viewing(windows=Grid(seconds=5.12, count=None), views=(look(train=False),)),
        batch=BatchSpec(rows=256),
        epochs=100,
        tokenizer=TokenizerSpec(vocabulary=20_000),
        optimizer=OptimizerSpec(lr=2e-4, weight_decay=0.01),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.05)},
    )


def small() -> Recipe:
    """Return the same at toy scale: minutes on two CPU cores, on windows of two seconds.

    Two layers on convolutional stems and a maximum over tokens, for raw patches and a feature token learn next to
    nothing in minutes; small batches, for here steps count for more than negatives.
    """
    config = LAVAConfig(
        width=128,
        layers=2,
        frames=8,
        size=48,
        tubelet=(2, 16),
        video_stem=((24, 2), (48, 2), (64, 1), (96, 2), (96, 1)),
        audio_stem=((24, 2, 2), (48, 2, 2), (64, 2, 2), (96, 1, 2)),
        pool="max",
        mask_padding=True,
        norm="pre",
        ratio=2.0,
        mels=64,
        audio_steps=96,
        audio_patch=8,
        text_steps=24,
        vocabulary=400,
        gather="grad",
    )

    def view(train: bool) -> dict[str, StreamSpec]:
        video = VideoTransform(size=48, resize=54, crop="random" if train else "centre", flip=0.5 if train else 0.0)
        sound = AudioTransform(mels=64, hop=0.02, steps=96, low=60.0, floor=1e-4, mean=-5.0, std=3.0)
        return {
            "video": StreamSpec(transform=video, rate=4.0, required=False),
            "audio": StreamSpec(transform=sound, rate=16_000, short="zero", required=False),
            "text": StreamSpec(transform=TextTransform(steps=24), required=False),
        }

    return Recipe(
        method="lava",
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
