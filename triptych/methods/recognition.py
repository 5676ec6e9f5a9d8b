"""Speech recognition: a pretrained method, and a head that says the words that are seen, heard, or both.

No paper of its own. The head is CTC's linear layer, a transformer that says token after token (AV-HuBERT's fine-tuning:
Shi, Hsu, Lakhotia, Mohamed; ICLR 2022, arXiv 2201.02184), or both at once (RAVEn's: Haliassos et al.; ICLR 2023, arXiv
2212.06246). It reads the tokens of any method's features of ``video``, ``audio`` or ``video+audio``; at first the base
may stay as it is. One model reads whichever of its streams are there.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
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
        """Return the features of the streams that are there, valid for the rows that have any of them."""
        found = self.read(view, clock)
        name = max(found, key=lambda name: name.count("+"))
        return replace(found[name], length=found[name].length * self._present(view, name))

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


def paper() -> Recipe:
    """Return lip reading by AV-HuBERT Base with the 433 hours of LRS3 (av-hubert, section 6), from its own weights.

    Mouth crops of 96 pixels at 25 fps are expected. 8 devices of 40 seconds.
    """
    made = like("av_hubert", "video", recipe="paper", layer_drop=0.1, dropout=0.0, inner_dropout=0.1)
    return made.model_copy(
        update={
            "config": made.config.model_copy(update={"frozen_until": 60_000}),
            "batch": BatchSpec(seconds=320.0),
            "steps": 120_000,
            "tokenizer": TokenizerSpec(kind="unigram", vocabulary=1000),
        }
    )


def base() -> Recipe:
    """Return recognition of lips and sound, with noise, for one GPU and a day (a recommendation, not run)."""
    made = like("av_hubert", "video+audio", recipe="base", layer_drop=0.1, dropout=0.0, inner_dropout=0.1)
    return made.model_copy(
        update={
            "config": made.config.model_copy(update={"frozen_until": 10_000, "modality_dropout": 0.5}),
            "train": with_background(made.train, Background()),
            "batch": BatchSpec(seconds=160.0),
            "steps": 40_000,
            "tokenizer": TokenizerSpec(kind="unigram", vocabulary=1000),
        }
    )


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
    """Return a recipe that trains a head on a method, which looks at recordings as in its own recipe.

    Optimizer and schedule are AV-HuBERT's for fine-tuning: Adam without decay, up from 1 % over a third of the steps,
    down to 5 % exponentially.

    Args:
        method: The base.
        streams: What is read: ``video``, ``audio`` or ``video+audio``.
        head: Its form.
        recipe: Of the base: it gives configuration, views, batch and length.
        encoder: Fields of the base's ``encoder`` that differ in fine-tuning.
    """
    found: Recipe = getattr(importlib.import_module(catalog.CATALOG[method].target.split(":")[0]), recipe)()
    base_config: Any = found.config
    if encoder:
        base_config = base_config.model_copy(update={"encoder": base_config.encoder.model_copy(update=encoder)})
    transcript = StreamSpec(transform=TextTransform(steps=256))
    return Recipe(
        method="recognition",
        config=RecognitionConfig(base=method, base_config=base_config, streams=(streams,), head=head),
        train=found.train.model_copy(update={"views": (only(found.train, streams) | {TEXT: transcript},)}),
        test=found.test.model_copy(update={"views": (only(found.test, streams),)}),
        batch=found.batch,
        steps=found.steps,
        epochs=found.epochs,
        tokenizer=TokenizerSpec(kind="characters", vocabulary=64),
        optimizer=OptimizerSpec(name="adam", lr=1e-3, betas=(0.9, 0.98)),
        schedules={"main": ScheduleSpec(shape="exponential", warmup=1 / 3, start=0.01, end=0.05)},
    )


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
