"""AV-HuBERT (Shi, Hsu, Lakhotia, Mohamed; ICLR 2022, arXiv 2201.02184): masked prediction of audio-visual clusters.

Lips and sound, 25 steps a second, are fused step by step and encoded by one transformer, which says of the steps hidden
from it to which cluster they were assigned beforehand. The clusters come from cepstral coefficients first, then from
the model's own features, round after round, each with a fresh model and more clusters. In training one stream is
sometimes left out altogether, so that one model reads lips, sound, or both.

What differs from the paper is what differs in the released code, which is followed here (av-hubert, sections 5 and 9).
Ours: a dropped stream is not computed, so batch norms see no dropped pictures; substitutes are drawn from a clip's own
frames, never from its padding; batch norms take their moments over all processes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from triptych import distributed
from triptych.batch import Batch, Clip, Stream, View
from triptych.clustering import assign, kmeans_in_batches
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.speech import SpeechConfig, SpeechEncoder, align, leading, step_count
from triptych.errors import TriptychError, UsageError
from triptych.layers.gradient_scale import scale_gradient
from triptych.layers.span_masks import keep_outside_spans, substitutes
from triptych.losses.masked import cosine_logits, masked_cross_entropy
from triptych.method import Clock, Group, Losses, Method, Plan, RunState, Sweep
from triptych.recipe import (
    AudioTransform,
    BatchSpec,
    Config,
    GradientSpec,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    StreamSpec,
    VideoTransform,
    Viewing,
    ViewSpec,
    Whole,
)

PROBE = ("video", "motion")
"""Stream and label of the linear probe that tells whether ``small()`` learns; chosen before it was run."""
STREAMS = ("audio", "video")
STACK = 4
"""Steps of the filter bank in a step of the model."""
SPECIAL = 4
"""Classes before the first cluster's: the special symbols of the authors' dictionaries, which are never a target."""


class Spans(Config):
    """How much of a stream is hidden."""

    share: float = Field(0.8, ge=0)
    """Of the steps that all spans together would hide if none overlapped."""
    steps: int = Field(10, ge=1)
    """Length of a span."""


class RoundConfig(Config):
    """What the model of a round predicts, and what is hidden from it."""

    clusters: tuple[int, ...] = Field((100,), min_length=1)
    """Clusters of each set of targets (published: one set)."""
    layer: int | None = Field(None, ge=1)
    """Block of the model as it stands before the round whose output, without the last norm, is clustered; None: the
    sound of the second view of the recipe's `test`."""
    hide: Literal["features", "input"] = "features"
    """Fused steps give way to a learned vector; or sound does before its linear layer, and frames to others."""
    audio: Spans = Spans()
    """Spans of the sound; of the fused steps under `features`."""
    video: Spans = Spans(share=0.3, steps=5)
    """Spans of the frames under `input`."""
    modality_dropout: float = Field(0.0, ge=0, le=1)
    """Probability that a batch is without one of the streams, as often the one as the other."""


FIRST_FOUR = tuple(
    RoundConfig(clusters=(clusters,), layer=layer) for clusters, layer in ((100, None), (100, 9), (500, 12), (1000, 12))
)
LAST = RoundConfig(clusters=(2000,), layer=12, hide="input", audio=Spans(share=0.8, steps=10), modality_dropout=0.5)


class AVHuBERTConfig(Config):
    """Sizes and rounds; the defaults are the Base model on LRS3 (av-hubert, sections 4 to 6)."""

    encoder: SpeechConfig = SpeechConfig()
    """Front ends and transformer."""
    rounds: tuple[RoundConfig, ...] = Field((*FIRST_FOUR, LAST), min_length=1)
    """What each round predicts; further rounds are like the last. The numbers of clusters are from memory, the layers a
    maintainer's answer."""
    rate: float = Field(25.0, gt=0)
    """Steps of the model a second."""
    sound_rate: float = Field(100.0, gt=0)
    """Steps a second of the sound that the first targets are clusters of; a step of the model takes the first label of
    those that it lasts for."""
    class_width: int = Field(256, ge=1)
    """Width of the embedding of a class."""
    temperature: float = Field(0.1, gt=0)
    """What the cosine of prediction and class is divided by."""
    unmasked: float = Field(0.0, ge=0)
    """Weight w_u of the steps that are not hidden (Large: 1; the paper's alpha)."""
    penalty: float = Field(10.0, ge=0)
    """Weight of the mean square of the fused features."""
    front_gradient: float = Field(0.1, ge=0)
    """Factor on the gradient of both front ends."""
    sample: float = Field(0.1, gt=0, le=1)
    """Share of the recordings that the centres are fitted on."""
    restarts: int = Field(20, ge=1)
    """Initialisations of k-means, of which the best is kept."""
    cluster_batch: int = Field(10_000, ge=1)
    """Steps in a mini-batch of k-means (the cluster script: 20,000)."""

    @model_validator(mode="after")
    def _fits(self) -> "AVHuBERTConfig":
        if len({len(one.clusters) for one in self.rounds}) > 1:
            raise ValueError("all rounds have equally many sets of targets: `clusters` differ in length")
        for number, one in enumerate(self.rounds):
            if one.layer is not None and one.layer > self.encoder.layers:
                raise ValueError(f"round {number} clusters layer {one.layer} of {self.encoder.layers}")
        return self

    def of_round(self, number: int) -> RoundConfig:
        """Return what a round predicts, from 0."""
        return self.rounds[min(number, len(self.rounds) - 1)]


class FrameLabels(RunState):
    """A class for each step of each recording, in one line, and the centres of the clusters that they stand for."""

    round: Tensor
    labels: Tensor
    begins: Tensor
    starts: Tensor
    rate: Tensor
    centres: Tensor

    def __init__(self, sets: int) -> None:
        """Hold nothing yet, of so many sets of labels."""
        super().__init__()
        self.register_buffer("round", torch.tensor(-1))
        self.register_buffer("labels", torch.zeros(0, sets, dtype=torch.int32))
        self.register_buffer("begins", torch.zeros(1, dtype=torch.long))
        self.register_buffer("starts", torch.zeros(0))
        self.register_buffer("rate", torch.tensor(0.0))
        self.register_buffer("centres", torch.zeros(0, 0))

    def keep(
        self,
        number: int,
        found: Mapping[int, tuple[float, Int[Tensor, "steps sets"]]],
        rows: int,
        rate: float,
        centres: Float[Tensor, "clusters dim"],
    ) -> None:
        """Take the labels of a round.

        Args:
            number: The round.
            found: By row, the second that its first label begins at, and its labels (``SPECIAL + k`` for cluster k).
            rows: Of the data set; those that are not found have no label.
            rate: Labels a second.
            centres: Of the clusters, set after set.
        """
        device = self.round.device
        nothing = (0.0, self.labels[:0].cpu())
        parts = [found.get(row, nothing) for row in range(rows)]
        counts = torch.tensor([0, *(len(labels) for _, labels in parts)])
        self.round = torch.tensor(number, device=device)
        self.labels = torch.cat([labels.int() for _, labels in parts]).to(device)
        self.begins = counts.cumsum(dim=0).to(device)
        self.starts = torch.tensor([start for start, _ in parts], device=device)
        self.rate = torch.tensor(rate, device=device)
        self.centres = centres

    def of(
        self, rows: Int[Tensor, " batch"], seconds: Float[Tensor, " batch"], steps: int, rate: float
    ) -> Int[Tensor, "batch steps sets"]:
        """Return the labels of steps, -1 where a step has not all of its own; before the first round all are 0.

        Args:
            rows: Of the data set.
            seconds: Of each row, that the first step begins at.
            steps: How many.
            rate: Steps a second; each takes the first label of its time.
        """
        place = torch.arange(steps + 1, device=rows.device)
        if int(self.round) < 0:
            return torch.zeros(len(rows), steps, self.labels.shape[1], dtype=torch.long, device=rows.device)
        bounds = (place * (self.rate / rate).double() + 1e-6).floor().long()
        first = ((seconds - self.starts[rows]) * self.rate).round().long()[:, None] + bounds
        count = (self.begins[1:] - self.begins[:-1])[rows, None]
        there = (first[:, :-1] >= 0) & (first[:, 1:] <= count)
        source = (self.begins[rows, None] + first[:, :-1]).where(there, 0)
        return self.labels[source].long().where(there[..., None], -1)


@dataclass(frozen=True)
class Guess:
    """What the model makes of steps, some of which are hidden."""

    tokens: Float[Tensor, "batch steps width"]
    """After the last norm."""
    joined: Float[Tensor, "batch steps both"]
    """Both front ends side by side."""
    hidden: Bool[Tensor, "batch steps"]
    """Steps that are hidden in either stream."""
    length: Int[Tensor, " batch"]
    """Valid steps."""


class AVHuBERT(Method):
    """One encoder for lips and sound, a head, and an embedding for each class."""

    config_class: ClassVar[type[Config]] = AVHuBERTConfig

    def __init__(self, config: AVHuBERTConfig) -> None:
        """Build the model; classes, and vectors in the place of hidden steps, begin uniform in [0, 1)."""
        super().__init__(config)
        self.options = config
        self.speech = SpeechEncoder(config.encoder)
        sets = zip(*(one.clusters for one in config.rounds), strict=True)
        self.sizes = [max(clusters) + SPECIAL for clusters in sets]
        self.head = nn.Linear(config.encoder.width, config.class_width * len(self.sizes))
        self.classes = nn.Parameter(torch.rand(sum(self.sizes), config.class_width))
        widths = {"features": config.encoder.width, "input": config.encoder.sound_values}
        kinds = sorted({one.hide for one in config.rounds})
        self.instead = nn.ParameterDict({kind: nn.Parameter(torch.rand(widths[kind])) for kind in kinds})
        self.targets = FrameLabels(len(self.sizes))

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Cross entropy of the hidden steps, w_u times that of the others, and a penalty (section 5).

        The former are sums over the steps that have a label, divided by the number of hidden ones, or of all if w_u is
        not 0. The penalty is the mean square of the fused features before their norm, padding included.
        """
        view, now = batch.views[0], self.options.of_round(clock.round)
        guess = self.guess(view, now)
        steps = guess.hidden.shape[1]
        targets = self.targets.of(batch.rows, leading(view)[1], steps, self.options.rate)
        told = (targets[..., 0] >= 0) & (torch.arange(steps, device=targets.device) < guess.length[:, None])
        parts = {"masked": guess.hidden & told, "unmasked": ~guess.hidden & told}
        counted = ["masked", "unmasked"] if self.options.unmasked else ["masked"]
        count = torch.stack([parts[name].sum() for name in counted]).sum().float()
        scores = self.logits(guess.tokens, now.clusters)
        terms = {}
        for name in counted:
            each = [
                masked_cross_entropy(logits, targets[..., number], parts[name]) for number, logits in enumerate(scores)
            ]
            terms[name] = distributed.mean(torch.stack(each).sum(), count)
        wide = torch.promote_types(guess.joined.dtype, torch.float32)
        squares = guess.joined.to(wide).square()
        terms["penalty"] = distributed.mean(squares.sum(), squares.new_tensor(squares.numel()))
        right = scores[0].argmax(dim=-1) == targets[..., 0]
        report = {f"accuracy_{name}": (right & part).sum() / part.sum().clamp(min=1) for name, part in parts.items()}
        return Losses(terms, {"unmasked": self.options.unmasked, "penalty": self.options.penalty}, report)

    def guess(self, view: View, now: RoundConfig) -> Guess:
        """Return what the model makes of a view under the masks of a round."""
        length, _ = leading(view)
        clips = self._drop_modality({stream: view[stream] for stream in STREAMS if stream in view}, now)
        steps = step_count(view)
        data = {stream: align(clip, steps) for stream, clip in clips.items()}
        if now.hide == "input":
            masks = {stream: self._spans(stream, getattr(now, stream), length, steps) for stream in STREAMS}
            data = {stream: self._hide(stream, x, masks[stream], length) for stream, x in data.items()}
            kept = masks["audio"] & masks["video"]
        else:
            kept = self._spans("features", now.audio, length, steps)
        fronts = {
            stream: scale_gradient(self._front(stream, x, clips[stream]), self.options.front_gradient)
            for stream, x in data.items()
        }
        joined = self.speech.join(fronts)
        fused = self.speech.fuse(joined)
        if now.hide == "features":
            fused = fused.where(kept[..., None], self.instead["features"].to(fused.dtype))
        found = self.speech.run(*self.speech.place(fused, length))
        return Guess(found.tokens, joined, ~kept, length)

    def logits(
        self, tokens: Float[Tensor, "batch steps width"], clusters: tuple[int, ...]
    ) -> list[Float[Tensor, "batch steps classes"]]:
        """Return for each set of targets the cosine of each step with its classes, over the temperature."""
        guesses = self.head(tokens).chunk(len(self.sizes), dim=-1)
        sets = zip(guesses, self.classes.split(self.sizes), clusters, strict=True)
        return [cosine_logits(x, classes[: count + SPECIAL], self.options.temperature) for x, classes, count in sets]

    def _drop_modality(self, clips: View, now: RoundConfig) -> View:
        """Leave out one of two streams, as all ranks do."""
        if not (self.training and now.modality_dropout and len(clips) == 2):
            return clips
        device = next(iter(clips.values())).length.device
        drop, which = self.draw("modality", lambda: torch.rand(2, device=device), shared=True).tolist()
        if drop >= now.modality_dropout:
            return clips
        kept = "video" if which < 0.5 else "audio"
        return {kept: clips[kept]}

    def _spans(self, name: str, spans: Spans, length: Int[Tensor, " batch"], steps: int) -> Bool[Tensor, "batch steps"]:
        """Draw what is kept of each row."""
        device = length.device

        def sample() -> Tensor:
            if not spans.share:
                return torch.ones(len(length), steps, dtype=torch.bool, device=device)
            places, thinning = torch.rand(2, len(length), steps, device=device)
            number = torch.rand(len(length), device=device)
            return keep_outside_spans(length, spans.share, spans.steps, number, places, thinning)

        return self.draw(f"kept.{name}", sample)

    def _hide(
        self, stream: Stream, data: Tensor, kept: Bool[Tensor, "batch steps"], length: Int[Tensor, " batch"]
    ) -> Tensor:
        """Put a learned vector in the place of hidden sound, other frames in that of hidden ones; zeros, if alone."""
        if len(data) == 1:
            return data.where(kept.view(*kept.shape, *[1] * (data.ndim - 2)), 0.0)
        if stream == "audio":
            return data.where(kept[..., None], self.instead["input"].to(data.dtype))
        source = self.draw("shown.video", lambda: substitutes(kept, length, torch.rand(kept.shape, device=kept.device)))
        return data[torch.arange(len(data), device=data.device)[:, None], source]

    def _front(self, stream: Stream, data: Tensor, clip: Clip) -> Float[Tensor, "batch steps width"]:
        """Return a front end's features, zeros for the rows that do not have the stream."""
        return self.speech.front(stream, data) * clip.present[:, None, None]

    def _encode(self, fronts: dict[Stream, Tensor], length: Int[Tensor, " batch"], layers: bool = False) -> Features:
        fused = self.speech.fuse(self.speech.join(fronts))
        return self.speech.run(*self.speech.place(fused, length), layers)

    def features(self, view: View) -> dict[str, Features]:
        """Return the transformer's output after its norm, of each stream alone and of both (``video+audio``)."""
        fronts = self._fronts(view)
        found = {stream: self._encode({stream: front}, view[stream].length) for stream, front in fronts.items()}
        return found | {"video+audio": self._encode(fronts, leading(view)[0])} if len(found) == 2 else found

    def feature(self, view: View, stream: Stream) -> Features:
        """Return the transformer's output of a stream alone or of ``video+audio``."""
        clips = {name: view[name] for name in stream.split("+")}
        return self._encode(self._fronts(clips), leading(clips)[0])

    def _fronts(self, view: View) -> dict[Stream, Float[Tensor, "batch steps width"]]:
        """Return the front ends' features of the streams that are there, equally many steps of each."""
        clips = {stream: view[stream] for stream in STREAMS if stream in view}
        steps = max(clip.data.shape[1] for clip in clips.values())
        return {stream: self._front(stream, align(clip, steps), clip) for stream, clip in clips.items()}

    def encoder(self, stream: Stream) -> Encoder:
        """Return the one encoder of all streams; the shape of its input tells which it is."""
        return self.speech

    def parameter_groups(self) -> list[Group]:
        """Return one group, all of which is decayed (section 6)."""
        return [Group(tuple(name for name, _ in self.named_parameters()), decay="all")]

    @torch.no_grad()
    def before_epoch(self, clock: Clock, sweep: Sweep) -> Plan:
        """Label every step of every recording where a round begins, then begin it with a fresh model."""
        if int(self.targets.round) == clock.round:
            return Plan()
        self.eval()
        options, now = self.options, self.options.of_round(clock.round)
        order = torch.randperm(len(sweep))
        sample, rest = order.tensor_split([max(round(options.sample * len(sweep)), 1)])
        sampled = list(self._points(sweep, sample.sort().values, now.layer))
        width = max(distributed.every(sampled[0][2].shape[1] if sampled else 0))
        if not width:
            raise TriptychError("None of the recordings that the clusters are fitted on has anything to cluster.")
        points = torch.cat([torch.zeros(0, width, device=self.classes.device), *(x for _, _, x in sampled)])
        centres = [kmeans_in_batches(points, count, options.cluster_batch, options.restarts) for count in now.clusters]
        mine = {}
        for row, second, x in chain(sampled, self._points(sweep, rest.sort().values, now.layer)):
            labels = torch.stack([SPECIAL + assign(x, one) for one in centres], dim=1)
            mine[row] = (second, labels.int().cpu())
        found = {row: labels for part in distributed.every(mine) for row, labels in part.items()}
        rate = options.sound_rate if now.layer is None else options.rate
        self.targets.keep(clock.round, found, len(sweep), rate, torch.cat(centres))
        if clock.round == 0 and now.layer is None:
            return Plan()
        state = self.state_dict()
        for name, tensor in type(self)(options).state_dict().items():
            if not name.startswith("targets."):
                state[name].copy_(tensor)
        return Plan(fresh=tuple(name for name, _ in self.named_parameters()))

    def _points(
        self, sweep: Sweep, rows: Int[Tensor, " rows"], layer: int | None
    ) -> Iterator[tuple[int, float, Float[Tensor, "steps dim"]]]:
        """Yield this rank's rows, the second that the first step of each begins at, and what is clustered of it."""
        for batch in sweep.batches(rows):
            if layer is None and (len(batch.views) < 2 or "audio" not in batch.views[1]):
                raise UsageError(
                    "av_hubert clusters sound first: the recipe's `test` needs a second view with the stream 'audio'."
                )
            view = batch.views[1] if layer is None else batch.views[0]
            for place, row in enumerate(batch.rows.tolist()):
                clips = {stream: take(clip, place) for stream, clip in view.items() if clip.present[place]}
                if not clips:
                    continue
                length, seconds = leading(clips)
                if layer is None:
                    yield row, float(seconds), clips["audio"].data[0]
                    continue
                fronts = {stream: self._front(stream, align(clip, int(length)), clip) for stream, clip in clips.items()}
                outputs = self._encode(fronts, length, layers=True).layers
                assert outputs is not None
                yield row, float(seconds), outputs[layer - 1][0]


def take(clip: Clip, place: int) -> Clip:
    """Return one row of a clip, without its padding."""
    one = slice(place, place + 1)
    return Clip(clip.data[one, : int(clip.length[place])], clip.length[one], clip.span[one])


def _look(config: AVHuBERTConfig, train: bool, side: int = 88, stored: int = 96) -> ViewSpec:
    """Return how lips and sound are seen (section 3): grey crops, and log filter banks stacked to the model's steps."""
    video = VideoTransform(
        size=side,
        resize=stored,
        crop="random" if train else "centre",
        flip=0.5 if train else 0.0,
        channels=1,
        mean=(0.421, 0.421, 0.421),
        std=(0.165, 0.165, 0.165),
    )
    hop = 1 / (STACK * config.rate)
    bands = config.encoder.sound_values // STACK
    sound = AudioTransform(
        front_end="logfbank", mels=bands, low=0.0, emphasis=0.97, hop=hop, stack=STACK, standardize=True
    )
    return {
        "video": StreamSpec(transform=video, rate=config.rate, required=train),
        "audio": StreamSpec(transform=sound, rate=16_000, required=train),
    }


def _cepstra(config: AVHuBERTConfig) -> ViewSpec:
    """Return the sound of the first targets: 13 cepstral coefficients, their slopes, and those of the slopes."""
    cepstra = AudioTransform(front_end="mfcc", mels=23, hop=1 / config.sound_rate, derivatives=2)
    return {"audio": StreamSpec(transform=cepstra, rate=16_000, required=False)}


def recipe_for(
    config: AVHuBERTConfig, longest: float | None = None, side: int = 88, stored: int = 96, **options: Any
) -> Recipe:
    """Return a recipe with the optimizer of the paper, whose views have the rates and sizes of a configuration.

    Args:
        config: Of the model.
        longest: Seconds of a clip at most; a longer recording gives a drawn part.
        side: Of the crops that are seen, pixels.
        stored: Of the frames that they are cut from.
        options: Other fields of the recipe.
    """
    given: dict[str, Any] = {
        "optimizer": OptimizerSpec(lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01),
        "schedules": {"main": ScheduleSpec(shape="linear", warmup=0.08)},
        "gradients": GradientSpec(clip_norm=10.0),
    }
    return Recipe(
        method="av_hubert",
        config=config,
        train=Viewing(windows=Whole(longest=longest), views=(_look(config, True, side, stored),)),
        test=Viewing(windows=Whole(), views=(_look(config, False, side, stored), _cepstra(config))),
        rounds=len(config.rounds),
        **given | options,
    )


def paper() -> Recipe:
    """Return the Base model on LRS3: five rounds of 400,000 updates on 32 devices of 40 seconds (sections 5 and 6).

    Mouth crops of 96 pixels at 25 fps are expected. Of a recording of more than 20 seconds a part is drawn; the authors
    left them out.
    """
    return recipe_for(
        AVHuBERTConfig(),
        longest=20.0,
        batch=BatchSpec(seconds=1280.0),
        steps=400_000,
    )


def base() -> Recipe:
    """Return the same model for one GPU and a day: three rounds with smaller batches (a recommendation, not run)."""
    shapes = ((100, None), (500, 9), (2000, 12))
    rounds = tuple(LAST.model_copy(update={"clusters": (count,), "layer": layer}) for count, layer in shapes)
    return recipe_for(
        AVHuBERTConfig(rounds=rounds),
        longest=20.0,
        batch=BatchSpec(seconds=160.0),
        steps=100_000,
    )


def small() -> Recipe:
    """Return the same at toy scale: minutes on two CPU cores, 16 steps a second as the toy world has frames.

    Two rounds. Sound and frames are hidden apart from the first on, and streams left out, for there are few updates to
    learn to read lips alone.
    """
    spans = {"audio": Spans(share=0.8, steps=6), "video": Spans(share=0.3, steps=4)}
    first = RoundConfig(clusters=(50,), hide="input", modality_dropout=0.5, **spans)
    second = first.model_copy(update={"clusters": (100,), "layer": 3})
    encoder = SpeechConfig(
        width=128,
        layers=3,
        heads=4,
        hidden=256,
        stem=16,
        stages=(16, 32, 64, 96),
        stage_blocks=1,
        position_kernel=16,
        position_groups=8,
        dropout=0.0,
        layer_drop=0.0,
    )
    config = AVHuBERTConfig(
        encoder=encoder,
        rounds=(first, second),
        rate=16.0,
        sound_rate=64.0,
        class_width=64,
        front_gradient=1.0,
        sample=0.2,
        restarts=5,
        cluster_batch=2_000,
    )
    return recipe_for(
        config,
        longest=None,
        side=32,
        stored=36,
        batch=BatchSpec(seconds=48.0),
        steps=400,
        optimizer=OptimizerSpec(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01),
    )
