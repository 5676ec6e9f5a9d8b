"""A transformer that says the next token, given those before it and a memory to look at (av-hubert, section 4)."""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from triptych.layers.positions import sincos_1d

Sinusoids = Literal["halves", "pairs"]
"""AV-HuBERT's (fairseq): sines, then cosines, of p * 10000^(-k / (width/2 - 1)), positions from 2 on, none for padding.
RAVEn's (ESPnet): sine and cosine of p * 10000^(-k / (width/2)) side by side, positions from 0 on."""

FIRST = 2
"""Position of the first token under ``halves``."""

Pair = tuple[Float[Tensor, "batch heads steps dim"], Float[Tensor, "batch heads steps dim"]]
"""Keys and values."""


class Attention(nn.Module):
    """Multi-head attention to keys and values that are made once and kept."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        """Build the layer with Xavier uniform weights and zero biases.

        Args:
            width: Of queries, keys and values.
            heads: Attention heads; must divide ``width``.
            dropout: On the attention weights.
        """
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        for layer in (self.query, self.key_value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def remember(self, memory: Float[Tensor, "batch steps width"]) -> Pair:
        """Return the keys and values of a memory."""
        key, value = self.key_value(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return key, value

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        remembered: Pair,
        mask: Bool[Tensor, "batch #tokens steps"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Attend; ``mask`` is true where a token may look."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(
            query,
            *remembered,
            attn_mask=None if mask is None else mask[:, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output


class DecoderBlock(nn.Module):
    """Attention to the tokens so far, to the memory, and a feed-forward part with ReLU, each after a layer norm."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout: float = 0.1,
        inner_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        """Build the block; arguments as of ``TokenDecoder``."""
        super().__init__()
        self.self_attention = Attention(width, heads, attention_dropout)
        self.memory_attention = Attention(width, heads, attention_dropout)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.norm3 = nn.LayerNorm(width, eps=eps)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.inner_dropout = nn.Dropout(inner_dropout)

    def look(
        self, x: Float[Tensor, "batch tokens width"], memory: Pair, mask: Bool[Tensor, "batch 1 steps"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the stream after attention to the memory and the feed-forward part."""
        x = x + self.dropout(self.memory_attention(self.norm2(x), memory, mask))
        hidden = self.inner_dropout(functional.relu(self.linear1(self.norm3(x))))
        output: Tensor = x + self.dropout(self.linear2(hidden))
        return output


@dataclass
class Cache:
    """What a decoder keeps between steps: of each clip its memory, of each of its hypotheses the tokens so far."""

    memory: list[Pair]
    """Keys and values a block."""
    mask: Bool[Tensor, "batch 1 steps"]
    """Valid steps of the memory."""
    said: list[tuple[Tensor, Tensor]]
    """Keys and values a block, each of ``batch * hypotheses`` rows; none before the first step."""
    steps: int = 0
    """Tokens so far."""

    def follow(self, parents: Int[Tensor, "batch hypotheses"]) -> "Cache":
        """Return the cache of hypotheses that go on from ``parents`` of the same clip."""
        rows = (torch.arange(len(parents), device=parents.device)[:, None] * parents.shape[1] + parents).flatten()
        said = [(key[rows], value[rows]) for key, value in self.said]
        return Cache(self.memory, self.mask, said, self.steps)


class TokenDecoder(nn.Module):
    """Embedded tokens with sinusoids, pre-norm blocks, a last norm, and scores of all tokens."""

    def __init__(
        self,
        vocabulary: int,
        width: int,
        layers: int,
        heads: int,
        hidden: int,
        memory_width: int | None = None,
        dropout: float = 0.1,
        inner_dropout: float = 0.1,
        attention_dropout: float = 0.0,
        padding: int = 0,
        sinusoids: Sinusoids = "halves",
        scaled: bool = False,
        tied: bool = True,
        eps: float = 1e-5,
    ) -> None:
        """Build the decoder.

        Args:
            vocabulary: Tokens.
            width: Width of the stream.
            layers: Blocks.
            heads: Attention heads.
            hidden: Width of the feed-forward part.
            memory_width: Width of what is looked at; a linear layer leads from it to ``width`` where they differ.
            dropout: After the embedding, after attention and after the feed-forward part.
            inner_dropout: Inside the feed-forward part.
            attention_dropout: On attention weights.
            padding: Id of padding, which has no position.
            sinusoids: Form of the positions.
            scaled: Whether embeddings are multiplied by the root of ``width`` (RAVEn).
            tied: Whether the output is the embedding, transposed, without bias (AV-HuBERT); else a layer of its own.
            eps: Of the layer norms (RAVEn: 1e-12).
        """
        super().__init__()
        self.width = width
        self.padding = padding
        self.sinusoids = sinusoids
        self.scale = math.sqrt(width) if scaled else 1.0
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=padding)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        with torch.no_grad():
            self.embedding.weight[padding].zero_()
        self.project = None
        if memory_width is not None and memory_width != width:
            self.project = nn.Linear(memory_width, width)
        blocks = [
            DecoderBlock(width, heads, hidden, dropout, inner_dropout, attention_dropout, eps) for _ in range(layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.output = None if tied else nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(dropout)

    def positions(self, tokens: Int[Tensor, "batch tokens"], first: int = 0) -> Float[Tensor, "batch tokens width"]:
        """Return what is added to the embeddings of tokens, of which ``first`` went before."""
        places = torch.arange(first, first + tokens.shape[1])
        if self.sinusoids == "halves":
            table = _halves(places + FIRST, self.width).to(tokens.device)
            return table * (tokens != self.padding)[..., None]
        table = sincos_1d(places.float(), self.width)
        pairs = table.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
        return pairs.to(tokens.device).expand(len(tokens), -1, -1)

    def forward(
        self,
        tokens: Int[Tensor, "batch tokens"],
        memory: Float[Tensor, "batch steps width"],
        length: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch tokens classes"]:
        """Return scores (before softmax) of the token after each given one (teacher forcing).

        Args:
            tokens: Padded at the end.
            memory: What is looked at.
            length: Its valid steps.
        """
        cache = self.remember(memory, length)
        count = tokens.shape[1]
        before = torch.ones(count, count, dtype=torch.bool, device=tokens.device).tril().expand(len(tokens), -1, -1)
        x = self._embed(tokens, 0)
        for block, looked in zip(self._blocks, cache.memory, strict=True):
            y = block.norm1(x)
            x = x + block.dropout(block.self_attention(y, block.self_attention.remember(y), before))
            x = block.look(x, looked, cache.mask)
        return self._score(x)

    def remember(self, memory: Float[Tensor, "batch steps width"], length: Int[Tensor, " batch"]) -> Cache:
        """Return the cache to begin decoding with."""
        mask = torch.arange(memory.shape[1], device=memory.device) < length[:, None].clamp(min=1)
        if self.project is not None:
            memory = self.project(memory)
        return Cache([block.memory_attention.remember(memory) for block in self._blocks], mask[:, None], [])

    def step(
        self, tokens: Int[Tensor, "batch hypotheses"], cache: Cache
    ) -> tuple[Float[Tensor, "batch hypotheses classes"], Cache]:
        """Return scores of the token after the last one of each hypothesis, and what to go on with.

        Args:
            tokens: The last token of each hypothesis of each clip.
            cache: From ``remember``, or from the step before, by ``follow``.
        """
        x = self._embed(tokens.flatten()[:, None], cache.steps).view(*tokens.shape, -1)
        said = []
        for number, (block, looked) in enumerate(zip(self._blocks, cache.memory, strict=True)):
            y = block.norm1(x).flatten(0, 1)[:, None]
            key, value = block.self_attention.remember(y)
            if cache.said:
                key, value = (torch.cat(pair, dim=2) for pair in zip(cache.said[number], (key, value), strict=True))
            said.append((key, value))
            x = x + block.dropout(block.self_attention(y, (key, value)).view(x.shape))
            x = block.look(x, looked, cache.mask)  # hypotheses of a clip look at one memory, as tokens would
        return self._score(x), Cache(cache.memory, cache.mask, said, cache.steps + 1)

    @property
    def _blocks(self) -> list[DecoderBlock]:
        return cast(list[DecoderBlock], list(self.blocks))

    def _embed(self, tokens: Int[Tensor, "batch tokens"], first: int) -> Float[Tensor, "batch tokens width"]:
        embedded: Tensor = self.dropout(self.scale * self.embedding(tokens) + self.positions(tokens, first))
        return embedded

    def _score(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens classes"]:
        scores: Tensor
        x = self.norm(x)
        scores = functional.linear(x, self.embedding.weight) if self.output is None else self.output(x)
        return scores


def _halves(positions: Int[Tensor, " tokens"], width: int) -> Float[Tensor, "tokens width"]:
    """Return sines, then cosines, whose frequencies end at 1 / 10000 (``sincos_1d`` ends a step before)."""
    frequencies = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2, dtype=torch.float64))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
