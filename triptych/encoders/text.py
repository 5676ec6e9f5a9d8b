"""A text encoder in the style of T5, as VATT has it (section 4)."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.encoders.raw_signal import EPS, Pool, TransformerSize, read_out
from triptych.layers.glorot import glorot
from triptych.layers.t5 import T5Block, relative_buckets
from triptych.layers.word_table import WordTable


class T5Size(TransformerSize):
    """A stack of T5 layers; the default is VATT's Small."""

    layers: int = Field(6, ge=1)
    """Layers."""
    width: int = Field(512, ge=1)
    """Width of the stream."""
    heads: int = Field(8, ge=1)
    """Attention heads."""
    hidden: int = Field(2048, ge=1)
    """Width of the feed-forward part."""
    buckets: int = Field(32, ge=4)
    """Buckets of relative positions, half of them for keys after the query."""
    distance: int = Field(64, ge=2)
    """From this distance on, in words, all is one bucket."""


class T5Encoder(Encoder):
    """Word vectors, an aggregation vector of their width before them, one projection with GELU, T5 layers.

    The bias of relative positions is learned once and used by all layers. Id 0 is padding, which is not attended to.
    """

    last = ("norm",)

    def __init__(
        self, size: T5Size, vocabulary: int, word_width: int, frozen: bool, dropout: float, pool: Pool = "agg"
    ) -> None:
        """Build the encoder.

        Args:
            size: Of the transformer.
            vocabulary: Entries of the table of word vectors.
            word_width: Their width.
            frozen: Whether they are kept as they are.
            dropout: On embeddings, attention weights, residual branches, hidden units and the output.
            pool: What a sentence's vector is read from.
        """
        super().__init__()
        self.modality: Modality = "text"
        self.width = size.width
        self.size = size
        self.pool = pool
        self.words = WordTable(vocabulary, word_width, frozen)
        self.agg = nn.Parameter(torch.empty(word_width))
        nn.init.trunc_normal_(self.agg, std=word_width**-0.5, a=-2 * word_width**-0.5, b=2 * word_width**-0.5)
        self.project = nn.Linear(word_width, size.width, bias=False)
        self.relative = nn.Embedding(size.buckets, size.heads)
        self.blocks = nn.ModuleList(
            T5Block(size.width, size.heads, size.head_width, size.hidden, dropout, EPS) for _ in range(size.layers)
        )
        self.norm = nn.RMSNorm(size.width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        glorot(self)
        with torch.no_grad():
            nn.init.normal_(self.relative.weight, std=size.width**-0.5)
            for block in self.blocks:
                assert isinstance(block, T5Block)
                # The scores are not scaled, so the queries begin small, as in T5.
                block.attention.qkv.weight[: size.heads * size.head_width].mul_(size.head_width**-0.5)

    def tokenize(self, data: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch tokens width"]:
        """Return the projected word vectors, without the aggregation token."""
        return self._enter(self.words(data))

    def _enter(self, vectors: Float[Tensor, "*axes words"]) -> Float[Tensor, "*axes width"]:
        entered: Tensor = self.dropout(functional.gelu(self.project(vectors)))
        return entered

    def bias(
        self, places: Int[Tensor, "rows all_tokens"], there: Bool[Tensor, "batch all_tokens"]
    ) -> Float[Tensor, "batch heads all_tokens all_tokens"]:
        """Return what is added to the scores, for tokens at ``places`` of which ``there`` may be attended to."""
        relative = places[:, None, :] - places[:, :, None]
        learned = self.relative(relative_buckets(relative, self.size.buckets, self.size.distance)).permute(0, 3, 1, 2)
        return torch.where(there[:, None, None, :], learned, -1e9)

    def finish(self, tokens: Float[Tensor, "batch all_tokens width"], valid: Bool[Tensor, "batch tokens"]) -> Features:
        """Return the features of what the last layer put out, aggregation token first."""
        read: Tensor = self.dropout(self.norm(tokens))
        return Features(
            tokens=read[:, 1:], pooled=read_out(read, valid, self.pool), length=valid.sum(dim=1), special=read[:, :1]
        )

    def forward(
        self,
        data: Int[Tensor, "batch steps"],
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; see ``Encoder.forward``. The words say themselves which are valid, ``length`` is not read."""
        tokens, valid = self.tokenize(data), data != 0
        places = torch.arange(data.shape[1] + 1, device=data.device)[None]
        if keep is not None:
            tokens = tokens.gather(1, keep[..., None].expand(-1, -1, self.width))
            valid = valid.gather(1, keep)
            places = functional.pad(keep + 1, (1, 0))
        x = torch.cat([self._enter(self.agg).expand(len(tokens), 1, -1), tokens], dim=1)
        bias = self.bias(places, functional.pad(valid, (1, 0), value=True))
        outputs = []
        for block in self.blocks:
            x = block(x, bias)
            if layers:
                outputs.append(x)
        grid = (data.shape[1], 1, 1) if keep is None else None
        return replace(self.finish(x, valid), grid=grid, layers=tuple(outputs) if layers else None)
