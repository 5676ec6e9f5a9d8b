"""Speech recognition: a pretrained method, and a head that says the words that are seen, heard, or both.

No paper of its own. The head is CTC's linear layer, a transformer that says token after token (AV-HuBERT's fine-tuning:
Shi, Hsu, Lakhotia, Mohamed; ICLR 2022, arXiv 2201.02184), or both at once (RAVEn's: Haliassos et al.; ICLR 2023, arXiv
2212.06246). It reads the tokens of any method's features of ``video``, ``audio`` or ``video+audio``; at first the base
may stay as it is. One model reads whichever of its streams are there.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from triptych import catalog, distributed
from triptych.batch import Batch, Stream, View
from triptych.decoding import Hypothesis, attention_beam, ctc_greedy, ctc_prefix_beam, joint_beam
from triptych.encoders.encoder import Features
from triptych.errors import UsageError
from triptych.layers.decoder import TokenDecoder
from triptych.losses.sequence import ctc, smoothed_cross_entropy
from triptych.method import Clock, Facts, Losses
from triptych.methods.supervised import Finetuned, FinetunedConfig
from triptych.recipe import (
    Aligned,
    AudioTransform,
    Background,
    BatchSpec,
    Config,
    OptimizerSpec,
    Recipe,
    ScheduleSpec,
    StreamSpec,
    TextTransform,
    TokenizerSpec,
    Viewing,
    ViewSpec,
    Whole,
)

PADDING, BEGIN, END, UNKNOWN = 0, 1, 2, 3
"""Ids of the tokenizer's special tokens; that of padding stands for CTC's blank."""
TEXT = "text"
"""Stream of the transcripts."""


class RecognitionConfig(FinetunedConfig):
    """A head and how it is searched. Defaults are AV-HuBERT's Base (av-hubert, sections 4, 6 and 7)."""

    base: str = "av_hubert"
    """Method whose features are read."""
    streams: tuple[str, ...] = Field(("video+audio",), min_length=1, max_length=1)
    """Features that are read: `video`, `audio`, or `video+audio`, of which either may be absent."""
    head: Literal["ctc", "seq2seq", "joint"] = "seq2seq"
    """A linear layer under CTC, a transformer decoder, or both (RAVEn)."""
    vocabulary: int = Field(1000, ge=4)
    """Tokens; filled in from the data."""
    layers: int = Field(6, ge=1)
    """Blocks of the decoder (Large: 9)."""
    width: int | None = Field(None, ge=4)
    """Width of the decoder; the features' where None (768; Large: 1024)."""
    heads: int = Field(4, ge=1)
    """Attention heads of the decoder (Large: 8)."""
    hidden: int = Field(3072, ge=1)
    """Width of the decoder's feed-forward parts (Large: 4096)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Of the decoder, and before CTC's linear layer."""
    inner_dropout: float = Field(0.1, ge=0, lt=1)
    """Inside the decoder's feed-forward parts."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """On the decoder's attention weights."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Share of a label that is spread over the other tokens, in the decoder's loss."""
    ctc_share: float = Field(0.1, ge=0, le=1)
    """Weight of CTC under `joint`, in the loss and in the search (raven, sections 6 and 7)."""
    modality_dropout: float = Field(0.0, ge=0, le=1)
    """Probability that a batch of `video+audio` is without one of the two, as often the one as the other."""
    beam: int = Field(50, ge=1)
    """Hypotheses of a search (RAVEn: 40); under `ctc`, 1 takes the best symbol of each step."""
    penalty: float = 1.0
    """Under `seq2seq`, scores are divided by the number of tokens to this power."""
    longest: float = Field(1.0, gt=0)
    """Under `seq2seq`, tokens at most, over the steps of the features."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "RecognitionConfig":
        if self.width is not None and self.width % self.heads:
            raise ValueError(f"heads {self.heads} does not divide width {self.width}")
        return self


class Recognition(Finetuned):
    """A pretrained method under a head that says words."""

    config_class: ClassVar[type[Config]] = RecognitionConfig
    options: RecognitionConfig

    def __init__(self, config: RecognitionConfig) -> None:
        """Build the base with fresh weights, and the head."""
        super().__init__(config)
        self.classify, self.decoder = None, None
        if config.head != "seq2seq":
            self.classify = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(self.width, config.vocabulary))
        if config.head != "ctc":
            self.decoder = TokenDecoder(
                config.vocabulary,
                config.width or self.width,
                config.layers,
                config.heads,
                config.hidden,
                memory_width=self.width,
                dropout=config.dropout,
                inner_dropout=config.inner_dropout,
                attention_dropout=config.attention_dropout,
                padding=PADDING,
            )

    @classmethod
    def complete(cls, recipe: Recipe, facts: Facts) -> Recipe:
        """Take the vocabulary, and what the base takes, from the data.

        Raises:
            UsageError: If the recipe's training view has no transcripts between marks of begin and end.
        """
        spec = recipe.train.views[0].get(TEXT)
        if spec is None or not isinstance(spec.transform, TextTransform) or not spec.transform.marks:
            raise UsageError("recognition needs a stream 'text' with marks in the first view: the transcripts.")
        recipe = super().complete(recipe, facts)
        changes = {"vocabulary": facts.vocabulary} if facts.vocabulary else {}
        return recipe.model_copy(update={"config": recipe.config.model_copy(update=changes)})

    def objective(self, batch: Batch, clock: Clock) -> Losses:
        """Cross entropy with smoothed labels, or CTC, summed over a clip's tokens; the mean over the clips."""
        view, told = batch.views[0], batch.views[0][TEXT]
        features = self._read(self._drop_modality(view), clock)
        there = (told.length > 2) & (features.length > 0)  # something is said between the marks
        count, terms, report = there.sum().float(), {}, {}
        data = told.data[:, : max(int(told.length.max()), 2)]
        before, after = data[:, :-1], data[:, 1:]
        steps = features.length.clamp(min=1)
        if self.classify is not None:
            words = (told.length - 2).clamp(min=0)
            each = ctc(self.classify(features.tokens), steps, after, words, PADDING)
            terms["ctc"] = distributed.mean((each * there).sum(), count)
        if self.decoder is not None:
            tokens = (told.length - 1).clamp(min=0) * there
            scores = self.decoder(before, features.tokens, steps)
            each = smoothed_cross_entropy(scores, after, tokens, self.options.smoothing)
            terms["tokens"] = distributed.mean(each.sum(), count)
            said = torch.arange(after.shape[1], device=after.device) < tokens[:, None]
            right = (scores.argmax(dim=-1) == after) & said
            report["accuracy"] = right.sum() / said.sum().clamp(min=1)
        share = self.options.ctc_share
        weights = {"ctc": share, "tokens": 1 - share} if self.options.head == "joint" else {}
        return Losses(terms, weights, report)

    def predict(self, view: View) -> dict[str, Tensor]:
        """Return ``words``: the tokens that are most probably said, without marks, filled up with 0."""
        features = self._read(view)
        found = self.search(features)
        rows = [torch.tensor(one[0].tokens if one else (), dtype=torch.long) for one in found]
        words = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
        return {"words": words.to(features.tokens.device)}

    def search(self, features: Features) -> list[list[Hypothesis]]:
        """Return what may have been said in each clip, best first; nothing where there is nothing to read."""
        options, tokens, length = self.options, features.tokens, features.length
        log_probs = None if self.classify is None else self.classify(tokens).float().log_softmax(dim=-1)
        if self.decoder is None:
            assert log_probs is not None
            if options.beam == 1:
                return [[one] for one in ctc_greedy(log_probs, length, PADDING)]
            return ctc_prefix_beam(log_probs, length, options.beam, symbols=2 * options.beam, blank=PADDING)
        never = (PADDING, BEGIN, UNKNOWN)
        if log_probs is None:
            longest = (options.longest * length).long()
            return attention_beam(
                self.decoder, tokens, length, options.beam, options.penalty, BEGIN, END, never, longest
            )
        weight = options.ctc_share
        return joint_beam(self.decoder, tokens, length, log_probs, options.beam, weight, BEGIN, END, never, PADDING)

    def _read(self, view: View, clock: Clock | None = None) -> Features:
        """Return the features of the streams that are there, a token a time, none for rows that have none of them."""
        name = "+".join(stream for stream in self.options.streams[0].split("+") if stream in view)
        found = self.read(view, clock, name)[name]
        found = replace(found, length=found.length * self._present(view, name))
        if found.grid is None or found.grid[1:] == (1, 1):
            return found
        places = found.grid[1] * found.grid[2]  # of one time: they become one step
        tokens = found.tokens.unflatten(1, (-1, places)).mean(dim=2)
        return replace(found, tokens=tokens, length=found.length // places, grid=(found.grid[0], 1, 1))

    def _drop_modality(self, view: View) -> View:
        """Leave out one of two streams, as all ranks do."""
        streams: Sequence[Stream] = self.options.streams[0].split("+")
        if not (self.training and self.options.modality_dropout and len(streams) == 2 and set(streams) <= set(view)):
            return view
        device = view[TEXT].length.device
        drop, which = self.draw("modality", lambda: torch.rand(2, device=device), shared=True).tolist()
        if drop >= self.options.modality_dropout:
            return view
        return {name: clip for name, clip in view.items() if name != streams[int(which < 0.5)]}


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Published:
    """A fine-tuning of AV-HuBERT as its authors ran it (av-hubert, section 6), for a pretrained configuration."""

    steps: int
    frozen_until: int
    streams: str = "video"
    warmup: float = 1 / 3
    devices: int = 8
    """Of 40 seconds each."""

    def __call__(self, config: Config) -> Recipe:
        """Return the recipe on that configuration; one of the width of Large gets the decoder of Large."""
        found = _recipe_of("av_hubert", "paper").model_copy(update={"config": config})
        made = upon(found, self.streams, layer_drop=0.1, dropout=0.0, inner_dropout=0.1)
        assert isinstance(made.config, RecognitionConfig)
        options: dict[str, Any] = {"frozen_until": self.frozen_until}
        if made.config.base_config.encoder.width >= 1024:  # type: ignore[attr-defined]
            options |= {"layers": 9, "heads": 8, "hidden": 4096}
        noisy = "audio" in self.streams
        return made.model_copy(
            update={
                "config": made.config.model_copy(update=options),
                "train": with_background(made.train, Background()) if noisy else made.train,
                "batch": BatchSpec(seconds=40.0 * self.devices),
                "steps": self.steps,
                "tokenizer": TokenizerSpec(kind="unigram", vocabulary=1000),
                "schedules": {"main": made.schedules["main"].model_copy(update={"warmup": self.warmup})},
            }
        )


BOTH = "video+audio"
FINETUNING: dict[str, dict[str, Callable[[Config], Recipe]]] = {
    "av_hubert": {
        "base-lrs3-30h": Published(30_000, 30_000),
        "base-lrs3-433h": Published(120_000, 60_000),
        "base-vox-30h": Published(30_000, 24_000),
        "base-vox-433h": Published(45_000, 22_500),
        "large-lrs3-30h": Published(18_000, 14_400),
        "large-lrs3-433h": Published(30_000, 18_000),
        "large-vox-30h": Published(30_000, 30_000),
        "large-vox-433h": Published(30_000, 30_000),
        "large-self-training": Published(100_000, 80_000, warmup=0.1, devices=32),
        "base-noise-30h": Published(30_000, 24_000, BOTH),
        "base-noise-433h": Published(60_000, 48_000, BOTH),
        "large-noise-30h": Published(18_000, 30_000, BOTH),
        "large-noise-433h": Published(60_000, 48_000, BOTH),
    }
}
"""By method: what ``triptych finetune --task words --recipe`` takes. Where a model is frozen for as many steps as it is
trained, only its decoder learns: so the authors' files have it."""


def paper() -> Recipe:
    """Return lip reading by AV-HuBERT Base with the 433 hours of LRS3, in mouth crops of 96 pixels at 25 fps."""
    return FINETUNING["av_hubert"]["base-lrs3-433h"](_recipe_of("av_hubert", "paper").config)


def base() -> Recipe:
    """Return recognition of lips and sound, with noise, for one GPU and a day (a recommendation, not run)."""
    made = Published(40_000, 10_000, BOTH, devices=4)(_recipe_of("av_hubert", "base").config)
    return made.model_copy(update={"config": made.config.model_copy(update={"modality_dropout": 0.5})})


def small() -> Recipe:
    """Return CTC over characters on AV-HuBERT's small encoder, which reads the toy world's mouths, voices or both."""
    made = like("av_hubert", "video+audio", "ctc")
    options = {"modality_dropout": 0.5, "dropout": 0.0, "beam": 10}
    return made.model_copy(update={"config": made.config.model_copy(update=options)})


def like(
    method: str,
    streams: str,
    head: Literal["ctc", "seq2seq", "joint"] = "seq2seq",
    recipe: Literal["small", "base", "paper"] = "small",
    **encoder: Any,
) -> Recipe:
    """Return the recipe that trains a head on a method of the catalogue; see ``upon``."""
    return upon(_recipe_of(method, recipe), streams, head, **encoder)


def upon(found: Recipe, streams: str, head: Literal["ctc", "seq2seq", "joint"] = "seq2seq", **encoder: Any) -> Recipe:
    """Return the recipe that trains a head on the method of another recipe, which looks at recordings as that does.

    Whole utterances are read; a method that looks at windows of some seconds reads so much from the beginning.
    Optimizer and schedule are AV-HuBERT's for fine-tuning: Adam without decay, up from 1 % over a third of the steps,
    down to 5 % exponentially.

    Args:
        found: Gives the base, its configuration, views, batches and length.
        streams: What is read: ``video``, ``audio`` or ``video+audio``.
        head: Its form.
        encoder: Fields of the base's ``encoder`` that differ in fine-tuning.
    """
    base_config: Any = found.config
    if encoder:
        base_config = base_config.model_copy(update={"encoder": base_config.encoder.model_copy(update=encoder)})
    transcript = StreamSpec(transform=TextTransform(steps=256))
    return Recipe(
        method="recognition",
        config=RecognitionConfig(base=found.method, base_config=base_config, streams=(streams,), head=head),
        train=_utterances(found.train, only(found.train, streams) | {TEXT: transcript}),
        test=_utterances(found.test, only(found.test, streams)),
        batch=found.batch,
        steps=found.steps,
        epochs=found.epochs,
        tokenizer=TokenizerSpec(kind="characters", vocabulary=64),
        optimizer=OptimizerSpec(name="adam", lr=1e-3, betas=(0.9, 0.98)),
        schedules={"main": ScheduleSpec(shape="exponential", warmup=1 / 3, start=0.01, end=0.05)},
    )


def _recipe_of(method: str, which: str) -> Recipe:
    found: Recipe = getattr(importlib.import_module(catalog.CATALOG[method].target.split(":")[0]), which)()
    return found


def _utterances(viewing: Viewing, view: ViewSpec) -> Viewing:
    windows = viewing.windows
    if not isinstance(windows, Whole):
        windows = Aligned(seconds=windows.seconds, place="start")
    return Viewing(windows=windows, views=(view,))


def only(viewing: Viewing, streams: str) -> ViewSpec:
    """Return the first view with these streams alone; if there are several, none of them is required."""
    names = streams.split("+")
    required = {"required": True} if len(names) == 1 else {}
    view = viewing.views[0]
    return {name: spec.model_copy(update=required) for name, spec in view.items() if name in names}


def with_background(viewing: Viewing, background: Background | None) -> Viewing:
    """Return a viewing with noise under all its sounds, or with none."""

    def laid(spec: StreamSpec) -> StreamSpec:
        if not isinstance(spec.transform, AudioTransform):
            return spec
        return spec.model_copy(update={"transform": spec.transform.model_copy(update={"background": background})})

    views = tuple({name: laid(spec) for name, spec in view.items()} for view in viewing.views)
    return viewing.model_copy(update={"views": views})
