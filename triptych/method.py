"""What a method is, and what it is told.

A method is a module that turns a batch into named losses. It never sees a data loader, an optimizer, a logger or a
command line.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triptych import distributed
from triptych.batch import Batch, Stream, View
from triptych.encoders.encoder import Encoder, Features
from triptych.errors import UsageError
from triptych.recipe import Config, Recipe

Metric = Literal["cosine", "dot"]
"""How vectors of a space are compared; ``cosine`` vectors are normalised."""


@dataclass(frozen=True)
class Clock:
    """Where the training stands."""

    step: int = 0
    """Optimizer steps done in this run."""
    epoch: int = 0
    """Epoch, from 0, over all rounds."""
    round: int = 0
    """Round, from 0."""
    progress: float = 0.0
    """Share of the round that is done, in [0, 1]."""


@dataclass
class Losses:
    """Named terms to differentiate, and what is only told."""

    terms: dict[str, Float[Tensor, ""]]
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each term; 1 where absent."""
    report: Mapping[str, float | Tensor] = field(default_factory=dict)
    """Values for the log, detached: they cannot leak into the objective."""

    def __post_init__(self) -> None:
        # DDP would wait for the gradient of every parameter that an output leads to.
        self.report = {name: x.detach() if isinstance(x, Tensor) else x for name, x in self.report.items()}

    @property
    def weighted(self) -> dict[str, Float[Tensor, ""]]:
        """Each term times its weight, in float32."""
        return {name: self.weights.get(name, 1.0) * term.float() for name, term in self.terms.items()}

    @property
    def total(self) -> Float[Tensor, ""]:
        """The weighted sum that is differentiated."""
        return torch.stack(list(self.weighted.values())).sum()


@runtime_checkable
class Sweep(Protocol):
    """The whole training set, to compute targets from."""

    def batches(self, rows: Int[Tensor, " rows"] | None = None) -> Iterator[Batch]:
        """Yield this rank's share (of ``rows``, or of all) in the data set's order, seen as ``recipe.test`` says."""
        ...

    def __len__(self) -> int:
        """Return the number of rows of the data set, over all ranks."""
        ...


@dataclass(frozen=True)
class Plan:
    """What ``before_epoch`` asks of the loop."""

    order: Int[Tensor, " draws"] | None = None
    """Rows to draw this epoch, in order; None: all rows, shuffled."""
    fresh: tuple[str, ...] = ()
    """Names of parameters that were just set anew, in place: their optimizer state is dropped."""


@dataclass(frozen=True)
class Group:
    """Parameters that are optimized alike."""

    parameters: tuple[str, ...]
    """Names, as in ``named_parameters()``."""
    lr: float = 1.0
    """Factor on the recipe's learning rate."""
    decay: Literal["matrices", "all", "none"] = "matrices"
    """Which of them are decayed; ``matrices``: those of two or more axes, so no biases and norms."""
    schedule: str = "main"
    """Curve of the recipe that the rate follows."""
    clip: float | None = None
    """Largest norm over the group, instead of the recipe's; ``inf``: the group is not clipped."""
    clip_each: float | None = None
    """Largest norm of each parameter by itself, instead of the recipe's."""
    frozen_until: int = 0
    """Step of the run before which these parameters stay as they are (their batch norms' statistics still move)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the recipe's ``OptimizerSpec`` that differ for this group."""


@dataclass(frozen=True)
class Facts:
    """What only the data can say of a model's shape."""

    vocabulary: int | None = None
    """Entries of the tokenizer."""
    classes: tuple[str, ...] = ()
    """Names of the classes of the label column."""
    widths: Mapping[Stream, int] = field(default_factory=dict)
    """Widths of precomputed streams."""


class RunState(nn.Module):
    """Base of modules that belong to a run and not to its model (queues, banks, targets): saved with checkpoints only.

    Everything that a resumed run needs is a buffer, and every rank holds the same: rank 0's is saved. Buffers may be
    sized at the first ``before_epoch``; loading a checkpoint takes the stored sizes.
    """


class Method(nn.Module):
    """A paper. Subclasses set ``config_class`` and ``spaces`` and answer ``objective``, ``features`` and ``embed``.

    A module of methods offers three functions that return a ``Recipe``: ``paper()``, the published run; ``base()``,
    the same on one GPU in a day; ``small()``, the same at toy scale in minutes on a CPU.
    """

    config_class: ClassVar[type[Config]]
    """Class of the configuration."""
    spaces: dict[str, Metric]
    """Joint spaces by name, and how their vectors are compared; empty where the paper has none."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.spaces = {}
        self._given: Mapping[str, Tensor] = {}

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Return the recipe with what only the data can say filled in; called once, before the model is built."""
        return recipe

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Return the losses of a batch; masked means go through ``distributed.mean``."""
        raise NotImplementedError

    def features(self, view: View) -> dict[str, Features]:
        """Return what probes and fine-tuning read, by stream (or ``"video+audio"``), of the streams that are there.

        Gradients flow to all that ``backbone`` names, also where pretraining keeps it frozen.
        """
        raise NotImplementedError

    def feature(self, view: View, stream: Stream) -> Features:
        """Return ``features(view)[stream]``; a method that would compute others for nothing says it more shortly."""
        return self.features(view)[stream]

    def encoder(self, stream: Stream) -> Encoder:
        """Return the encoder that the features of a stream come from: fine-tuning and the supervised line take it."""
        raise NotImplementedError

    def backbone(self, stream: Stream) -> list[nn.Module]:
        """Return the modules that ``features`` of a stream (or of ``"video+audio"``) runs through.

        Fine-tuning keeps and trains them with all their parameters (what is constant is a buffer), and drops the rest.
        """
        return [self.encoder(part) for part in stream.split("+")]

    def width(self, stream: Stream) -> int:
        """Return the width of the features of a stream (or of ``"video+audio"``)."""
        return self.encoder(stream).width

    def resize(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors of this method in other sizes (of clips, of frames) in those of this one.

        By default they are as they were. A method whose position tables can be interpolated does it here.

        Args:
            tensors: By the names of ``state_dict``; some may be absent.
        """
        return dict(tensors)

    def take_words(self, vectors: Float[Tensor, "entries width"]) -> None:
        """Fill the table of words with the vectors of a file; called once, when a model of new weights is made.

        Args:
            vectors: By the tokenizer's ids.

        Raises:
            UsageError: If the method has no such table.
        """
        raise UsageError(f"{type(self).__name__} has no table of words to fill: give a tokenizer of another kind.")

    def embed(self, view: View) -> dict[str, dict[str, Float[Tensor, "batch dim"]]]:
        """Return vectors of the joint spaces: space -> stream -> vectors, of the streams that are there."""
        return {}

    def predict(self, view: View) -> dict[str, Tensor]:
        """Return what a fine-tuned model says, by kind.

        ``classes``: a score for each class, ``batch classes``; ``events``: the same for each of some parts of equal
        length of the window, ``batch parts classes`` (both before softmax or sigmoid); ``words``: ids of the model's
        tokenizer, ``batch steps``, 0 where there is none.
        """
        raise NotImplementedError

    def parameter_groups(self) -> list[Group]:
        """Return the groups of parameters that are trained; by default one of all that require gradients."""
        return [Group(tuple(name for name, parameter in self.named_parameters() if parameter.requires_grad))]

    def before_epoch(self, clock: Clock, sweep: Sweep) -> Plan:
        """Recompute targets over the whole data set, if the method has any, and say what is drawn this epoch.

        All ranks call it, seeded alike, and must come to the same result. Parameters are set in place, never replaced.
        ``objective`` works before the first call, too, on targets that say nothing: runs are estimated by it.
        """
        return Plan()

    def after_step(self, clock: Clock) -> None:
        """Move teachers, fill queues, clamp scales."""

    def draw(self, name: str, sample: Callable[[], Tensor], shared: bool = False) -> Tensor:
        """Return ``sample()``, or what ``given`` put under ``name``.

        Args:
            name: Name of the draw; a golden case gives noise under it.
            sample: Draws from torch's generator, which every step seeds.
            shared: Whether all ranks must use one value; it is then rank 0's.
        """
        if name in self._given:
            return self._given[name]
        return distributed.share(sample()) if shared else sample()

    @contextmanager
    def given(self, draws: Mapping[str, Tensor]) -> Iterator[None]:
        """Use ``draws`` in the place of randomness."""
        before, self._given = self._given, draws
        try:
            yield
        finally:
            self._given = before

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        """Return ``objective``: the loop calls the module, so that DDP and FSDP2 can stand round it."""
        return self.objective(batch, clock)
