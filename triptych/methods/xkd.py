"""XKD: Cross-modal Knowledge Distillation with Domain Alignment (Sarkar, Etemad; AAAI 2024, arXiv 2211.13929).

Two masked autoencoders learn the picture and the sound of a clip. On top, each modality's student predicts what the
slowly moving teacher of the OTHER modality says of 8192 prototypes, so that sound teaches picture and picture sound.
Two devices bridge the gap between them: the teachers' tokens are weighed by how much of both streams their attention
sees (refinement), and the outputs of both students, and of both teachers, are brought to one distribution (maximum mean
discrepancy).

What differs from the paper: defaults follow the released code, where its figure and its text differ. There the teacher
sees the first LOCAL view (``teacher_view``), refinement stands between encoder and head, and the student's temperature
is one for both directions. Convolutional stems, off by default, are ours, for ``small()``.
"""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from triptych import distributed
from triptych.batch import Batch, Clip, Stream, View
from triptych.distributed import Gather
from triptych.encoders.audio_vit import AudioViT
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.masked_decoder import MaskedDecoder, MaskedDecoderConfig
from triptych.encoders.vit import VideoViT, ViT, ViTConfig
from triptych.errors import UsageError
from triptych.layers.masks import count_kept, hidden, keep_lowest
from triptych.layers.prototypes import PrototypeHead
from triptych.layers.teacher import Teacher, cosine_momentum
from triptych.layers.transformer import Block
from triptych.losses.alignment import mmd
from triptych.losses.distillation import distillation, sharpen
from triptych.losses.regression import masked_regression, normalize_patches
from triptych.method import Clock, Group, Losses, Method
from triptych.recipe import (
    AudioTransform,
    BatchSpec,
    Config,
    GlobalAndLocal,
    Grid,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    SpectrogramCrop,
    StreamSpec,
    VideoTransform,
    Viewing,
)

PROBE = ("video", "kind")
"""Stream and label of the linear probe that tells whether ``small()`` learns; chosen before it was run."""
STREAMS = ("video", "audio")
"""In the order in which the released code moves the teachers."""


class XKDConfig(Config):
    """Sizes and options. Defaults are those of the released configuration for Kinetics-400."""

    variant: Literal["xkd", "mas", "mats"] = "xkd"
    """`mas`: the students of both modalities share one set of blocks; `mats`: the teachers do, too (section 4)."""
    encoder: ViTConfig = ViTConfig(eps=1e-5, bias=False, margin=0.1)
    """Transformer of every student and teacher: ViT-B without biases of queries, keys and values. Positions are
    resampled linearly for video and by cubic convolution for sound, whatever it says."""
    decoder: MaskedDecoderConfig = MaskedDecoderConfig(width=384, layers=4, heads=12, eps=1e-5, bias=False, norm=False)
    """Decoder of each modality; it has no last norm."""
    frames: int = Field(32, ge=1)
    """Frames of a global view (section 3)."""
    size: int = Field(112, ge=1)
    """Side of these frames, pixels."""
    tubelet: tuple[int, int] = (4, 16)
    """Frames and side of a video token: 8 x 7 x 7 of them."""
    steps: int = Field(448, ge=1)
    """Spectrogram frames of a global view."""
    mels: int = Field(80, ge=1)
    """Mel bands."""
    patch: tuple[int, int] = (16, 4)
    """Spectrogram frames and mel bands of an audio token: 28 x 20 of them."""
    video_hidden: float = Field(0.85, ge=0, lt=1)
    """Share of the video tokens that are hidden from the student: 59 of 392 are kept."""
    audio_hidden: float = Field(0.8, ge=0, lt=1)
    """The same of the audio tokens: 112 of 560 are kept."""
    head_layers: int = Field(3, ge=2)
    """Linear layers of a head before the prototypes."""
    head_hidden: int = Field(2048, ge=1)
    """Width between them."""
    bottleneck: int = Field(256, ge=1)
    """Width of what is compared with the prototypes."""
    prototypes: int = Field(8192, ge=2)
    """Prototypes of each head."""
    teacher_view: Literal["local", "global"] = "local"
    """What the teacher sees: the first local view (the released code), or the whole clip (the paper's figure)."""
    refinement: Literal["mean", "softmax", "none"] = "mean"
    """How the teacher's tokens are weighed by both teachers' attention; `none` is an ablation."""
    student_temperature: float = Field(0.1, gt=0)
    """Of both students (the released code has two, and uses the sound's for both)."""
    video_temperature: tuple[float, float] = (0.1, 0.1)
    """Of the video teacher, at the beginning and after `temperature_rise` (MAS: 0.09 and 0.11)."""
    audio_temperature: tuple[float, float] = (0.07, 0.07)
    """Of the audio teacher (MAS: 0.04 and 0.06)."""
    temperature_rise: float = Field(30 / 800, ge=0, le=1)
    """Share of the run in which the teachers' temperatures go linearly from one to the other: 30 of 800 epochs."""
    center_momentum: float = Field(0.9, ge=0, le=1)
    """Of the centres that are taken off the teachers' scores."""
    video_momentum: float = Field(0.997, ge=0, le=1)
    """Of the video teacher at the beginning; it rises to 1 along half a cosine (section 5)."""
    audio_momentum: float = Field(0.997, ge=0, le=1)
    """Of the audio teacher."""
    reconstruction: float = Field(5.0, ge=0)
    """Weight of the reconstruction; the loss is the weighted mean of the three parts."""
    distillation: float = Field(1.0, ge=0)
    """Weight of the distillation."""
    alignment: float = Field(1.0, ge=0)
    """Weight of the domain alignment."""
    student_clip: float | None = Field(0.3, gt=0)
    """Largest norm of the gradient of each tensor of the students; decoders are not clipped (section 6)."""
    read: Literal["teacher", "student"] = "teacher"
    """Whose features are read (the teacher's: from memory of the paper, unverified)."""
    gather: Gather = "none"
    """Rows of other devices in the domain alignment; the released code has none."""
    video_stem: tuple[tuple[int, int], ...] = ()
    """Convolutions before the tubelets: channels and stride of each. Ours, for toy scale."""
    audio_stem: tuple[tuple[int, int, int], ...] = ()
    """The same before the patches of spectrograms: channels, stride in time and in mels. Ours, too."""

    @model_validator(mode="after")
    def _fits(self) -> "XKDConfig":
        if self.frames % self.tubelet[0] or self.size % self.tubelet[1]:
            raise ValueError(f"tubelet {self.tubelet} does not divide {self.frames} frames of {self.size} pixels")
        if self.steps % self.patch[0] or self.mels % self.patch[1]:
            raise ValueError(f"patch {self.patch} does not divide a spectrogram of {self.steps} x {self.mels}")
        if not self.encoder.class_token or self.decoder.class_token != "encoder":
            raise ValueError("encoder and decoder need the class token: its attention weighs the teachers' tokens")
        if not self.reconstruction + self.distillation + self.alignment:
            raise ValueError("one of the weights must be above 0")
        return self


class Student(nn.Module):
    """An encoder and its head."""

    def __init__(self, encoder: ViT, head: PrototypeHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head


class XKD(Method):
    """Two students, two teachers, two decoders; terms of reconstruction, distillation and alignment."""

    config_class: ClassVar[type[Config]] = XKDConfig

    def __init__(self, config: XKDConfig) -> None:
        """Build students and decoders; teachers begin as copies of the students."""
        super().__init__(config)
        self.options = config
        sizes = {"width": config.encoder.width, "hidden": config.head_hidden, "bottleneck": config.bottleneck}
        sizes |= {"prototypes": config.prototypes, "layers": config.head_layers}
        linear, cubic = (config.encoder.model_copy(update={"resampling": kind}) for kind in ("linear", "cubic"))
        encoders: dict[str, ViT] = {
            "video": VideoViT(linear, config.frames, config.size, config.tubelet, config.video_stem),
            "audio": AudioViT(cubic, config.steps, config.mels, config.patch, config.audio_stem),
        }
        students = {stream: Student(encoders[stream], PrototypeHead(**sizes)) for stream in STREAMS}
        teachers = {}
        self.decoders = nn.ModuleDict()
        if config.variant != "xkd":
            encoders["audio"].blocks = encoders["video"].blocks
        for stream, encoder in encoders.items():
            teachers[stream] = Teacher(students[stream], own_statistics=True)
            values = 3 * config.tubelet[0] * config.tubelet[1] ** 2 if stream == "video" else math.prod(config.patch)
            self.decoders[stream] = MaskedDecoder(config.decoder, config.encoder.width, encoder.grid, values)
            self.register_buffer(f"{stream}_center", torch.zeros(config.prototypes))
        if config.variant == "mats":
            teachers["audio"].network.encoder.blocks = teachers["video"].network.encoder.blocks
        self.students, self.teachers = nn.ModuleDict(students), nn.ModuleDict(teachers)
        self._taught: dict[Stream, list[tuple[Tensor, Tensor]]] = {}  # scores of this step, and which of them count

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Return (alignment + distillation + 5 reconstruction) / 7, by its parts (section 5).

        A row that lacks a stream in any view takes part in the reconstruction of the other alone.
        """
        clips = {stream: _clips(batch, stream) for stream in STREAMS if stream in batch.views[0]}
        present = {s: torch.stack([clip.present for clip in found]).all(dim=0) for s, found in clips.items()}
        terms: dict[str, Tensor] = {}
        scores = {}
        for stream, found in clips.items():
            error, scores[stream] = self._learn(stream, found)
            terms[f"reconstruction_{stream}"] = _mean(error, present[stream])
        if len(clips) == len(STREAMS):
            both = present["video"] & present["audio"]
            taught = self._teach(clips, both)
            terms |= self._distil(scores, taught, both, clock)
            terms["alignment_students"] = self._align(scores["video"], scores["audio"], both)
            terms["alignment_teachers"] = self._align(taught["video"][None], taught["audio"][None], both)
        return Losses(terms, weights={name: self._weight(name) for name in terms})

    def _learn(self, stream: Stream, clips: list[Clip]) -> tuple[Tensor, Tensor]:
        """Return the error of the masked autoencoder for each row, and the student's scores of all views.

        The scores of the global view are those of its masked pass; local views are seen whole.
        """
        student, whole = self.student(stream), clips[0].data
        patches = student.encoder.patches(whole)
        count = patches.shape[1]
        noise = self.draw(f"noise_{stream}", lambda: torch.rand(len(whole), count, device=whole.device))
        share = self.options.video_hidden if stream == "video" else self.options.audio_hidden
        keep = keep_lowest(noise, count_kept(count, share, "round"))
        masked: Features = student.encoder(whole, keep=keep)
        predicted = self.decoders[stream](masked.tokens, keep, masked.special)
        error = masked_regression(predicted, normalize_patches(patches), hidden(keep, count))
        pooled = [masked.pooled]
        if len(clips) > 1:  # local views are of one size, and pass together
            pooled.append(student.encoder(torch.cat([clip.data for clip in clips[1:]])).pooled)
        scores: Tensor = student.head(torch.cat(pooled))
        return error, scores.unflatten(0, (len(clips), -1))

    @torch.no_grad()
    def _teach(
        self, clips: dict[Stream, list[Clip]], both: Bool[Tensor, " batch"]
    ) -> dict[Stream, Float[Tensor, "batch prototypes"]]:
        """Return the teachers' scores, and remember them for the centres."""
        tokens, attention = {}, {}
        for stream in STREAMS:
            tokens[stream], attention[stream] = self.look(stream, self._shown(stream, clips[stream]))
        if self.options.refinement != "none":
            weights = refine(attention["video"], attention["audio"], self.options.refinement)
            for stream, weight in zip(STREAMS, weights, strict=True):
                tokens[stream] = weigh(tokens[stream], weight.mean(dim=1))
        taught = {}
        for stream in STREAMS:
            taught[stream] = self.teacher(stream).head(tokens[stream].mean(dim=1))
            if self.training:
                self._taught.setdefault(stream, []).append((taught[stream], both))
        return taught

    def look(
        self, stream: Stream, clip: Clip
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch heads tokens"]]:
        """Return the tokens of a teacher, and its class token's attention to them in the last block."""
        encoder = self.teacher(stream).encoder
        x, valid = encoder.enter(clip.data)
        for block in encoder.blocks[:-1]:
            x = block(x)
        last = encoder.blocks[-1]
        assert isinstance(last, Block)
        attention = last.map(x)[:, :, 0, 1:]
        return encoder.finish(last(x), valid).tokens, attention

    def _shown(self, stream: Stream, clips: list[Clip]) -> Clip:
        if self.options.teacher_view == "global":
            return clips[0]
        if len(clips) < 2:
            raise UsageError(f"XKD's teachers see a local view of '{stream}': give one, or set teacher_view=global.")
        return clips[1]

    def _distil(
        self,
        scores: dict[Stream, Float[Tensor, "views batch prototypes"]],
        taught: dict[Stream, Float[Tensor, "batch prototypes"]],
        both: Bool[Tensor, " batch"],
        clock: Clock,
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the cross entropies of each student with the other modality's teacher."""
        terms = {}
        for teacher, student in (("video", "audio"), ("audio", "video")):
            targets = sharpen(taught[teacher], self.get_buffer(f"{teacher}_center"), self._temperature(teacher, clock))
            each = distillation(scores[student], targets, self.options.student_temperature).mean(dim=0)
            terms[f"{teacher}_to_{student}"] = _mean(each, both)
        return terms

    def _align(
        self,
        video: Float[Tensor, "video_views batch prototypes"],
        audio: Float[Tensor, "audio_views batch prototypes"],
        both: Bool[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """Return the discrepancy of the scores of both modalities, all views of the rows that have both."""
        sets = []
        for scores in (video, audio):
            valid = both.expand(len(scores), -1).flatten()
            sets.append([distributed.gather(x, self.options.gather) for x in (scores.flatten(0, 1), valid)])
        (x, x_valid), (y, y_valid) = sets
        return mmd(x, y, x_valid, y_valid)

    def _weight(self, term: str) -> float:
        """Return the weight of a term: each of the three parts is the mean of two."""
        parts = self.options
        kind = term.partition("_")[0]
        weight = {"reconstruction": parts.reconstruction, "alignment": parts.alignment}.get(kind, parts.distillation)
        return weight / (2 * (parts.reconstruction + parts.alignment + parts.distillation))

    def _temperature(self, stream: Stream, clock: Clock) -> float:
        low, high = self.options.video_temperature if stream == "video" else self.options.audio_temperature
        rise = self.options.temperature_rise
        return low + (high - low) * min(clock.progress / rise, 1.0) if rise else high

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        """Move the teachers, video first (blocks that both share move twice), and the centres."""
        for stream in STREAMS:
            start = self.options.video_momentum if stream == "video" else self.options.audio_momentum
            found = self.teachers[stream]
            assert isinstance(found, Teacher)
            found.follow(self.students[stream], cosine_momentum(start, clock.progress))
        for stream, parts in self._taught.items():
            center = self.get_buffer(f"{stream}_center")
            taught, counted = (torch.cat(values).to(center.dtype) for values in zip(*parts, strict=True))
            count = distributed.average(counted.sum())
            mean = distributed.average(counted @ taught) / count.clamp(min=1e-6)
            center.lerp_(mean, (1 - self.options.center_momentum) * count.gt(0))
        self._taught = {}

    def parameter_groups(self) -> list[Group]:
        """Return the students, each of whose tensors is clipped by itself, and the decoders, which are not clipped."""
        students: list[str] = []
        others: list[str] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (students if name.startswith("students.") else others).append(name)
        return [Group(tuple(students), clip_each=self.options.student_clip), Group(tuple(others), clip=float("inf"))]

    def student(self, stream: Stream) -> Student:
        """Return the student of a stream."""
        found = self.students[stream]
        assert isinstance(found, Student)
        return found

    def teacher(self, stream: Stream) -> Student:
        """Return the network of the teacher of a stream."""
        found = self.teachers[stream].network
        assert isinstance(found, Student)
        return found

    def encoder(self, stream: Stream) -> Encoder:
        """Return the encoder whose features are read."""
        return (self.teacher if self.options.read == "teacher" else self.student)(stream).encoder

    def features(self, view: View) -> dict[str, Features]:
        """Return each encoder's output; ``pooled`` is the mean of the patch tokens after the last norm (section 7)."""
        return {
            stream: self.encoder(stream)(clip.data, clip.length) for stream, clip in view.items() if stream in STREAMS
        }


def refine(
    video: Float[Tensor, "batch heads video_tokens"],
    audio: Float[Tensor, "batch heads audio_tokens"],
    mode: Literal["mean", "softmax"],
) -> tuple[Float[Tensor, "batch heads video_tokens"], Float[Tensor, "batch heads audio_tokens"]]:
    """Return weights of the teachers' tokens a head, from the attention of their class tokens (section 5, item 2).

    Of the outer product C[i, j] of both, ``mean`` takes the mean over the other modality's tokens, over the own mean;
    so the other enters as one number a head. ``softmax`` takes the softmax of that mean over the own tokens.
    """
    found = []
    for own, other in ((video, audio), (audio, video)):
        crossed = own * other.mean(dim=-1, keepdim=True)
        found.append(crossed.softmax(dim=-1) if mode == "softmax" else crossed / own.mean(dim=-1, keepdim=True))
    return found[0], found[1]


def weigh(
    tokens: Float[Tensor, "batch tokens width"], weights: Float[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens width"]:
    """Return the tokens times their weights, scaled so that the norm of their mean stays."""
    weighed = weights[..., None] * tokens
    before, after = (x.mean(dim=1).norm(dim=-1) for x in (tokens, weighed))
    return weighed * (before / after.clamp(min=torch.finfo(after.dtype).tiny))[:, None, None]


def _clips(batch: Batch, stream: Stream) -> list[Clip]:
    """Return the views of a stream, the global one first."""
    return [view[stream] for view in batch.views if stream in view]


def _mean(each: Float[Tensor, " batch"], counted: Bool[Tensor, " batch"]) -> Float[Tensor, ""]:
    return distributed.mean((each * counted).sum(), counted.sum().to(each.dtype))


def _look(
    video: VideoTransform, sound: AudioTransform, seconds: float, fps: float, required: bool
) -> dict[str, StreamSpec]:
    return {
        "video": StreamSpec(transform=video, seconds=seconds, rate=fps, required=required),
        "audio": StreamSpec(transform=sound, seconds=seconds, rate=16_000.0, short="zero", required=required),
    }


def _paper(config: XKDConfig, local_views: int) -> tuple[Viewing, Viewing]:
    """Return the published look (section 3): the clip whole, local crops of it, and a second of its sound.

    Local windows of picture and sound are drawn apart, so they are views of their own.
    """
    side = round(config.size // 1.16)
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
    drawn = VideoTransform(size=config.size, crop="random_resized", area=(0.2, 1.0), flip=0.5, **colours)
    local = VideoTransform(
        size=side, crop="random_resized", area=(0.08, 0.4), flip=0.5, grayscale=0.2, blur=0.5, **colours
    )
    heard = AudioTransform(
        front_end="slaney",
        mels=config.mels,
        window=1024 / 16_000,
        hop=143 / 16_000,
        low=0.0,
        floor=1.19e-7,
        steps=config.steps,
        mean=-5.3688107,
        std=4.410007,
    )
    part = {"steps": config.steps // 4, "volume": 0.2, "random_resized": SpectrogramCrop()}
    second = _look(local, heard.model_copy(update=part), 1.0, 8.0, required=True)
    whole = _look(drawn, heard.model_copy(update={"volume": 0.1}), 4.0, 8.0, required=True)
    seen = _look(VideoTransform(size=config.size), heard, 4.0, 8.0, required=False)
    views = (whole, *({"video": second["video"]},) * local_views, {"audio": second["audio"]})
    train = Viewing(windows=GlobalAndLocal(seconds=4.0), views=views)
    return train, Viewing(windows=Grid(seconds=4.0, count=3, crops=3), views=(seen,))


def paper(variant: Literal["xkd", "mas", "mats"] = "xkd") -> Recipe:
    """Return the published run of a variant: Kinetics-400, 800 epochs (sections 3 to 6)."""
    config = XKDConfig(variant=variant)
    if variant == "mas":
        rising = {"video_temperature": (0.09, 0.11), "audio_temperature": (0.04, 0.06)}
        config = config.model_copy(update=rising)
    train, test = _paper(config, local_views=1 if variant == "xkd" else 3)
    return Recipe(
        method="xkd",
        config=config,
        train=train,
        test=test,
        batch=BatchSpec(rows=256),
        epochs=800,
        optimizer=OptimizerSpec(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.3),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=30 / 800)},
    )


def base() -> Recipe:
    """Return the same for one GPU and a day: rows of all devices in the alignment, clips one after another in tests."""
    recipe = paper()
    config = XKDConfig(gather="grad")
    test = recipe.test.model_copy(update={"windows": Grid(seconds=4.0, count=None)})
    schedules = {"main": ScheduleSpec(shape="cosine", warmup=0.05)}
    changes = {"config": config, "test": test, "batch": BatchSpec(rows=128), "epochs": 100, "schedules": schedules}
    return recipe.model_copy(update=changes)


def small() -> Recipe:
    """Return the same at toy scale: minutes on two CPU cores, on windows of two seconds."""
    config = XKDConfig(
        encoder=ViTConfig(width=128, layers=2, heads=4, ratio=2.0, eps=1e-5, bias=False, margin=0.1),
        decoder=MaskedDecoderConfig(width=64, layers=1, heads=4, ratio=2.0, eps=1e-5, bias=False, norm=False),
        frames=8,
        size=48,
        tubelet=(2, 16),
        video_stem=((24, 2), (48, 2), (64, 1), (96, 2), (96, 1)),
        audio_stem=((24, 2, 2), (48, 2, 2), (64, 2, 2), (96, 1, 2)),
        steps=96,
        mels=64,
        patch=(8, 16),
        head_hidden=256,
        bottleneck=64,
        prototypes=512,
        teacher_view="global",
        video_momentum=0.99,
        audio_momentum=0.99,
        gather="grad",
    )
    seen = VideoTransform(size=48, resize=54)
    drawn = seen.model_copy(update={"crop": "random", "flip": 0.5})
    local = seen.model_copy(
        update={"size": 32, "resize": 32, "crop": "random_resized", "area": (0.3, 0.8), "flip": 0.5}
    )
    heard = AudioTransform(mels=64, hop=0.02, steps=96, low=60.0, floor=1e-4, mean=-5.0, std=3.0)
    part = _look(local, heard.model_copy(update={"steps": 48}), 1.0, 4.0, required=False)
    views = (_look(drawn, heard, 2.0, 4.0, required=False), {"video": part["video"]}, {"audio": part["audio"]})
    return Recipe(
        method="xkd",
        config=config,
        train=Viewing(windows=GlobalAndLocal(seconds=2.0), views=views),
        test=Viewing(
            windows=Grid(seconds=2.0, count=None, stride=1.0), views=(_look(seen, heard, 2.0, 4.0, required=False),)
        ),
        batch=BatchSpec(rows=32),
        steps=900,
        optimizer=OptimizerSpec(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.1)},
    )
