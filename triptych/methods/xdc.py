"""XDC: Cross-Modal Deep Clustering (Alwassel et al., NeurIPS 2020, arXiv 1911.12667), with SDC, MDC and CDC.

A network of pictures learns to tell to which cluster of SOUNDS a clip belongs, a network of sounds to which cluster of
PICTURES. Clusters are made anew of the whole data set round after round, from what the networks have learnt. Each
modality is so made to see what the other one can tell apart. No negatives, no common space.

What differs from the paper: its training code was not published, and its text was not at hand. The loop is that of
DeepCluster (Caron et al. 2018), as far as specification xdc, section 5, verified it; when clusters are made anew, that
networks go on from round to round, and that rows are drawn uniformly over the clusters that a network predicts, are
recommendations. Log-mels in ``small()`` are ours.
"""

import logging
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from triptych import distributed
from triptych.batch import Batch, Stream, View
from triptych.clustering import assign, cluster_uniform_order, kmeans, mutual_information, whiten
from triptych.encoders.audio_resnet import AudioResNet, AudioResNetConfig
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.video_resnet import VideoResNet, VideoResNetConfig
from triptych.errors import TriptychError
from triptych.method import Clock, Group, Losses, Method, Plan, RunState, Sweep
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
    VideoTransform,
    Viewing,
)

PROBE = ("video", "kind")
"""Stream and label of the linear probe that tells whether ``small()`` learns; chosen before it was run."""
STREAMS = ("video", "audio")
"""In the order of the epochs that train them."""
BOTH = "both"
"""What CDC clusters: both streams side by side."""
SOURCES: dict[str, dict[Stream, tuple[str, ...]]] = {
    "sdc": {"video": ("video",), "audio": ("audio",)},
    "mdc": {"video": ("audio", "video"), "audio": ("video", "audio")},
    "cdc": {"video": (BOTH,), "audio": (BOTH,)},
    "xdc": {"video": ("audio",), "audio": ("video",)},
}
"""By variant and network, whose clusters it predicts; rows are drawn uniformly over those of the first."""

log = logging.getLogger(__name__)


class XDCConfig(Config):
    """Sizes and options. Clusters and rounds are from memory of the paper (unverified)."""

    variant: Literal["xdc", "sdc", "mdc", "cdc"] = "xdc"
    """Whose clusters a network predicts: the other modality's, its own, both, or those of both side by side."""
    video: VideoResNetConfig = VideoResNetConfig()
    """Network of pictures: R(2+1)D-18 by VMZ's rule."""
    audio: AudioResNetConfig = AudioResNetConfig()
    """Network of log-mels: VMZ's acoustic ResNet-18 (a recommendation; the paper says ResNet-18)."""
    clusters: int = Field(128, ge=2)
    """Clusters k: 64 to 128 for Kinetics, 256 for AudioSet."""
    dim: int | None = Field(256, ge=1)
    """Main components that are clustered, of norm 1 (DeepCluster). None: the features as they are."""
    whiten: bool = True
    """Whether they are divided by their deviation (DeepCluster; whether XDC does so is not known)."""
    iterations: int = Field(20, ge=1)
    """Of k-means."""
    turns: Literal["apart", "joint"] = "apart"
    """`apart`: epochs train the networks in turn, each on rows drawn uniformly over the clusters that it predicts.
    `joint`: each step trains both, on all rows alike."""
    head_std: float = Field(0.01, gt=0)
    """Deviation of the first weights of a head."""


class Clusters(RunState):
    """A cluster for each row of the data set and each source, and how well the last two rounds agree."""

    round: Tensor
    labels: Tensor
    agreement: Tensor

    def __init__(self, sources: int) -> None:
        """Hold nothing yet, of so many sources."""
        super().__init__()
        self.register_buffer("round", torch.tensor(-1))
        self.register_buffer("labels", torch.zeros(0, sources, dtype=torch.long))
        self.register_buffer("agreement", torch.zeros(sources))

    def keep(self, number: int, labels: Int[Tensor, "rows sources"]) -> None:
        """Take the clusters of a round; -1 where a row has none."""
        if int(self.round) >= 0:
            pairs = zip(self.labels.T, labels.T, strict=True)
            self.agreement = torch.tensor([mutual_information(a, b) for a, b in pairs], device=labels.device)
        self.round = torch.tensor(number, device=labels.device)
        self.labels = labels

    def of(self, rows: Int[Tensor, " batch"], source: int) -> Int[Tensor, " batch"]:
        """Return the clusters of rows; before the first round all are 0."""
        return torch.zeros_like(rows) if int(self.round) < 0 else self.labels[rows, source]


class XDC(Method):
    """Two networks that share nothing, and for each a linear head a source of clusters."""

    config_class: ClassVar[type[Config]] = XDCConfig

    def __init__(self, config: XDCConfig) -> None:
        """Build the networks and their heads."""
        super().__init__(config)
        self.options = config
        self.sources = sorted({source for found in SOURCES[config.variant].values() for source in found})
        encoders = {"video": VideoResNet(config.video), "audio": AudioResNet(config.audio)}
        self.encoders = nn.ModuleDict(encoders)
        self.heads = nn.ModuleDict(
            {
                stream: nn.ModuleDict(
                    {source: nn.Linear(encoders[stream].width, config.clusters) for source in sources}
                )
                for stream, sources in SOURCES[config.variant].items()
            }
        )
        self.targets = Clusters(len(self.sources))
        self._renew_heads()

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Return the cross entropy of each head of the networks that this epoch trains (section 5)."""
        view = batch.views[0]
        terms, report = {}, {}
        for stream in self._trained(clock):
            if stream not in view:
                continue
            clip = view[stream]
            pooled = self.encoder(stream)(clip.data, clip.length).pooled
            for source in SOURCES[self.options.variant][stream]:
                scores = self._head(stream, source)(pooled).float()
                labels = self.targets.of(batch.rows, self.sources.index(source))
                counted = clip.present & (labels >= 0)
                each = functional.cross_entropy(scores, labels.clamp(min=0), reduction="none")
                name = f"{stream}_of_{source}"
                terms[name] = distributed.mean((each * counted).sum(), counted.sum().to(each.dtype))
                right = (scores.argmax(dim=1) == labels) & counted
                report[f"accuracy_{name}"] = right.sum() / counted.sum().clamp(min=1)
        for number, source in enumerate(self.sources):
            report[f"agreement_{source}"] = self.targets.agreement[number]
        return Losses(terms or {"nothing": self._nothing()}, report=report)

    def before_epoch(self, clock: Clock, sweep: Sweep) -> Plan:
        """Cluster the data set where a round begins, with new heads; draw uniformly over the clusters (section 5)."""
        fresh: tuple[str, ...] = ()
        if int(self.targets.round) != clock.round:
            self.targets.keep(clock.round, self._cluster(sweep))
            self._renew_heads()
            fresh = tuple(name for name, _ in self.named_parameters() if name.startswith("heads."))
        if self.options.turns == "joint":
            return Plan(fresh=fresh)
        (stream,) = self._trained(clock)
        source = SOURCES[self.options.variant][stream][0]
        labels = self.targets.labels[:, self.sources.index(source)]
        return Plan(order=cluster_uniform_order(labels.cpu()), fresh=fresh)

    def parameter_groups(self) -> list[Group]:
        """Return the networks, and the heads, which have no momentum: they are new each round (section 5, step 4)."""
        names = [name for name, _ in self.named_parameters()]
        heads = tuple(name for name in names if name.startswith("heads."))
        return [
            Group(tuple(name for name in names if not name.startswith("heads.")), decay="all"),
            Group(heads, decay="all", options={"momentum": 0.0, "nesterov": False}),
        ]

    def features(self, view: View) -> dict[str, Features]:
        """Return each network's output; ``pooled`` is what the heads read."""
        return {s: self.encoder(s)(clip.data, clip.length) for s, clip in view.items() if s in STREAMS}

    def encoder(self, stream: Stream) -> Encoder:
        """Return the network of a stream."""
        found = self.encoders[stream]
        assert isinstance(found, Encoder)
        return found

    def _trained(self, clock: Clock) -> tuple[Stream, ...]:
        return STREAMS if self.options.turns == "joint" else (STREAMS[clock.epoch % len(STREAMS)],)

    def _head(self, stream: Stream, source: str) -> nn.Linear:
        heads = self.heads[stream]
        assert isinstance(heads, nn.ModuleDict)
        found = heads[source]
        assert isinstance(found, nn.Linear)
        return found

    def _nothing(self) -> Tensor:
        """Return 0 with a gradient of 0, for a batch that has nothing of the trained stream."""
        return 0.0 * torch.stack([parameter.float().sum() for parameter in self.parameters()]).sum()

    @torch.no_grad()
    def _renew_heads(self) -> None:
        """Set the heads anew in place: cluster ids mean nothing from one round to the next."""
        for stream, sources in SOURCES[self.options.variant].items():
            for source in sources:
                head = self._head(stream, source)
                head.weight.normal_(0.0, self.options.head_std)
                head.bias.zero_()

    @torch.no_grad()
    def _cluster(self, sweep: Sweep) -> Int[Tensor, "rows sources"]:
        """Return the clusters of all rows, the same on all ranks whatever their number."""
        self.eval()
        rows, vectors, present = self._sweep(sweep)
        labels = torch.full((len(sweep), len(self.sources)), -1, device=rows.device)
        for number, source in enumerate(self.sources):
            if source == BOTH:
                there = present["video"] & present["audio"]
                points = torch.cat([functional.normalize(vectors[stream], dim=1) for stream in STREAMS], dim=1)
            else:
                there, points = present[source], vectors[source]
            points = points[there]
            if self.options.dim is not None:
                points = whiten(points, self.options.dim, self.options.whiten)
            count = sum(distributed.every(len(points)))
            if count < 2:
                raise TriptychError(f"xdc clusters '{source}', which only {count} of the recordings have.")
            clusters = min(self.options.clusters, count)
            if count < 10 * self.options.clusters:
                log.warning("xdc makes %d clusters of %d recordings; ten each would be better.", clusters, count)
            found = assign(points, kmeans(points, clusters, self.options.iterations))
            for mine, places in distributed.every((rows[there].cpu(), found.cpu())):
                labels[mine.to(labels.device), number] = places.to(labels.device)
        return labels

    def _sweep(
        self, sweep: Sweep
    ) -> tuple[Int[Tensor, " mine"], dict[Stream, Float[Tensor, "mine width"]], dict[Stream, Bool[Tensor, " mine"]]]:
        """Return this rank's rows, the features of each stream (of its first window), and which rows have it."""
        rows: list[Tensor] = []
        vectors: dict[Stream, list[Tensor]] = {stream: [] for stream in STREAMS}
        present: dict[Stream, list[Tensor]] = {stream: [] for stream in STREAMS}
        for batch in sweep.batches():
            rows.append(batch.rows)
            for stream in STREAMS:
                clip = batch.views[0][stream].first()
                vectors[stream].append(self.encoder(stream)(clip.data, clip.length).pooled.float())
                present[stream].append(clip.present)
        device = next(self.parameters()).device
        none = torch.zeros(0, dtype=torch.long, device=device)
        widths = {stream: self.encoder(stream).width for stream in STREAMS}
        found = {s: torch.cat([none.new_zeros(0, widths[s]).float(), *vectors[s]]) for s in STREAMS}
        return torch.cat([none, *rows]), found, {s: torch.cat([none.bool(), *present[s]]) for s in STREAMS}


def paper(variant: Literal["xdc", "sdc", "mdc", "cdc"] = "xdc") -> Recipe:
    """Return the run on Kinetics as far as it is known (sections 3 and 6; most of it from memory, unverified)."""
    config = XDCConfig(variant=variant)
    pixels = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
    sound = AudioTransform(front_end="vmz", mels=40, window=0.016, hop=0.01, steps=100)

    def view(train: bool) -> dict[str, StreamSpec]:
        crop = "random" if train else "centre"
        video = VideoTransform(size=224, resize=256, crop=crop, flip=0.5 if train else 0.0, **pixels)
        return {
            "video": StreamSpec(transform=video, rate=30.0, required=train),
            "audio": StreamSpec(transform=sound, rate=16_000.0, short="zero", required=train),
        }

    seconds = 8 / 30
    return Recipe(
        method="xdc",
        config=config,
        train=Viewing(windows=Aligned(seconds=seconds), views=(view(train=True),)),
        test=Viewing(windows=Grid(seconds=seconds, count=1), views=(view(train=False),)),
        batch=BatchSpec(rows=2048),  # 32 a device, on 64
        rounds=4,
        epochs=2 * 45 * 1_000_000 / 240_000,  # for each network 45 epochs of a million clips, of 240,000 videos
        optimizer=OptimizerSpec(name="sgd", lr=0.64, momentum=0.9, weight_decay=1e-4),  # 0.01 a device, scaled
        schedules={"main": ScheduleSpec(shape="steps", warmup=10 / 45, milestones=(20 / 45, 30 / 45, 40 / 45))},
        precision="float32",
    )


def base() -> Recipe:
    """Return the same for one GPU at 112 pixels: ten epochs a round and network (a recommendation, not run)."""
    published = paper()
    changes = {"batch": BatchSpec(rows=128), "epochs": 20.0}
    curve = ScheduleSpec(shape="cosine", warmup=0.1)
    optimizer = published.optimizer.model_copy(update={"lr": 0.04})

    def closer(viewing: Viewing) -> Viewing:
        views = []
        for view in viewing.views:
            video = view["video"].transform
            assert isinstance(video, VideoTransform)
            smaller = video.model_copy(update={"size": 112, "resize": 128})
            views.append({**view, "video": view["video"].model_copy(update={"transform": smaller})})
        return viewing.model_copy(update={"views": tuple(views)})

    changes |= {"train": closer(published.train), "test": closer(published.test), "precision": "auto"}
    return published.model_copy(update={**changes, "optimizer": optimizer, "schedules": {"main": curve}})


def small() -> Recipe:
    """Return the same at toy scale: small networks on windows of two seconds, two rounds in minutes on two cores.

    Both networks are trained in every step, for in minutes steps count for more than uniform clusters.
    """
    config = XDCConfig(
        video=VideoResNetConfig(widths=(24, 48, 96, 128), blocks=(1, 1, 1, 1), stem=16, pool=True, eps=1e-5),
        audio=AudioResNetConfig(stem=None, widths=(24, 48, 96, 128), blocks=(1, 1, 1, 1), eps=1e-5),
        clusters=24,
        dim=24,
        turns="joint",
    )

    def view(train: bool) -> dict[str, StreamSpec]:
        video = VideoTransform(size=48, resize=54, crop="random" if train else "centre", flip=0.5 if train else 0.0)
        sound = AudioTransform(mels=64, hop=0.02, steps=96, low=60.0, floor=1e-4, mean=-5.0, std=3.0)
        return {
            "video": StreamSpec(transform=video, rate=4.0, required=False),
            "audio": StreamSpec(transform=sound, rate=16_000.0, short="zero", required=False),
        }

    return Recipe(
        method="xdc",
        config=config,
        train=Viewing(windows=Aligned(seconds=2.0), views=(view(train=True),)),
        test=Viewing(windows=Grid(seconds=2.0, count=1), views=(view(train=False),)),
        batch=BatchSpec(rows=32),
        rounds=2,
        steps=600,
        optimizer=OptimizerSpec(lr=2e-3, weight_decay=0.01),
        schedules={"main": ScheduleSpec(shape="cosine", warmup=0.1)},
        gradients=GradientSpec(clip_norm=5.0),
    )
