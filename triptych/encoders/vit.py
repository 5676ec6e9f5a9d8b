"""Vision transformers over tubelets of frames: MAE's, VideoMAE's, XKD's, LAVISH's (vision-transformers-common).

One class for all: patches through one linear layer, plus positions, a class token first if there is one, pre-norm
blocks, and a norm on tokens or on what is pooled of them. An image is a clip of one frame.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Modality
from triptych.encoders.encoder import Encoder, Features
from triptych.layers.glorot import glorot
from triptych.layers.grid_positions import Grid, GridPositions, PositionKind, Resampling
from triptych.layers.masks import hidden, pick
from triptych.layers.patches import ConvolutionalStem, patchify_video, unpatchify_video
from triptych.layers.transformer import Block
from triptych.recipe import Config


class ViTConfig(Config):
    """A vision transformer; the defaults are ViT-B as MAE has it (vision-transformers-common, section 1)."""

    width: int = Field(768, ge=1)
    """Width of the stream."""
    layers: int = Field(12, ge=1)
    """Blocks."""
    heads: int = Field(12, ge=1)
    """Attention heads."""
    ratio: float = Field(4.0, gt=0)
    """Width of the feed-forward parts over `width`."""
    eps: float = Field(1e-6, gt=0)
    """Of the layer norms (XKD and CAV-MAE: 1e-5, PyTorch's default)."""
    bias: bool = True
    """Whether queries, keys and values have biases (XKD: no)."""
    class_token: bool = True
    """Whether a learned token stands before the others (VideoMAE, CAV-MAE: no)."""
    positions: PositionKind = "learned"
    """One learned row a place; a learned row a time step plus one a place in space (mae_st); or a fixed table of sines
    and cosines (MAE)."""
    resampling: Resampling = "cubic"
    """How the positions are brought to clips of another size: `linear` or `cubic` along each axis that differs, or
    `flat`: linearly along the sequence of all tokens, the class token among them (LAVISH)."""
    margin: float = Field(0.0, ge=0)
    """Added to the new size of an axis in the factor that the resampler maps coordinates by (XKD: 0.1)."""
    norm: Literal["tokens", "pooled", "none"] = "tokens"
    """Where the last layer norm acts: on all tokens (pretraining), on the pooled vector alone (fine-tuned MAE), nowhere
    (MAViL before its fusion)."""
    pool: Literal["mean", "class"] = "mean"
    """What the feature is: the mean of the patch tokens, or the class token."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Probability that a row passes by the last block's parts (stochastic depth); it rises from 0 at the first."""


class ViT(Encoder):
    """What transformers over patches have in common; ``patches`` and ``grid_of`` say how data are cut.

    Tokens stand in the order time, height (mels), width. ``length`` counts raw steps of time; attention and mean take
    all tokens, as the papers do.
    """

    def __init__(
        self, config: ViTConfig, grid: Grid, values: int, steps: int, stem: ConvolutionalStem | None = None
    ) -> None:
        """Build the encoder, initialised as MAE: Xavier uniform, zero biases, class token of deviation 0.02.

        Args:
            config: Sizes.
            grid: Tokens along time, height and width that the positions are made for.
            values: Values of a patch, after the stem where there is one.
            steps: Raw steps of time in a patch.
            stem: Convolutions that the patches pass together, see ``convolve``.

        Raises:
            ValueError: If the class token is to be pooled and there is none.
        """
        super().__init__()
        if config.pool == "class" and not config.class_token:
            raise ValueError("`pool` is the class token, but `class_token` is off")
        self.width = config.width
        self.grid = grid
        self.steps = steps
        self.pool = config.pool
        self.norm_on = config.norm
        self.special = int(config.class_token)
        self.stem = stem
        self.project = nn.Linear(values, config.width)
        self.positions = GridPositions(
            grid, config.width, config.positions, config.class_token, config.resampling, config.margin
        )
        if config.class_token:
            self.class_token = nn.Parameter(0.02 * torch.randn(1, config.width))
        drops = [config.drop_path * number / max(config.layers - 1, 1) for number in range(config.layers)]
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.ratio, eps=config.eps, bias=config.bias, drop_path=drop)
            for drop in drops
        )
        self.norm = nn.Identity() if config.norm == "none" else nn.LayerNorm(config.width, eps=config.eps)
        glorot(self, whole=True)

    def patches(self, data: Tensor) -> Float[Tensor, "batch tokens values"]:
        """Cut data into patches; what does not fill one is left out."""
        raise NotImplementedError

    def grid_of(self, data: Tensor) -> Grid:
        """Return the number of patches along time, height and width."""
        raise NotImplementedError

    def convolve(
        self, patches: Float[Tensor, "batch tokens values"], grid: Grid
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return what the stem makes of all patches, put together again: the maximum over the places of each."""
        raise NotImplementedError

    def embed(self, data: Tensor, keep: Int[Tensor, "batch kept"] | None) -> Float[Tensor, "batch kept width"]:
        """Return the projected patches that are kept; a stem finds zeros in the place of the others."""
        patches = self.patches(data)
        if self.stem is not None:
            if keep is not None:
                patches = patches.masked_fill(hidden(keep, patches.shape[1])[..., None], 0.0)
            patches = self.convolve(patches, self.grid_of(data))
        embedded: Tensor = self.project(patches if keep is None else pick(patches, keep))
        return embedded

    def tokenize(self, data: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return the patches, projected, with their positions; no class token."""
        return self.enter(data)[0][:, self.special :]

    def enter(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch all_tokens width"], Int[Tensor, " batch"]]:
        """Return what the first block reads, class token first, and how many tokens of each row are no padding."""
        grid = self.grid_of(data)
        table = self.positions(grid)
        places = table[self.special :]
        x = self.embed(data, keep) + (places if keep is None else places[keep])
        if self.special:
            first = self.class_token + table[:1]
            x = torch.cat([first.expand(len(x), 1, -1), x], dim=1)
        frames, height, across = grid
        if length is None:
            length = torch.full((len(data),), frames * self.steps, device=x.device)
        valid = (-(-length // self.steps)).clamp(max=frames) * height * across
        if keep is not None:
            valid = keep.lt(valid[:, None]).sum(dim=1)
        return x, valid

    def finish(
        self,
        tokens: Float[Tensor, "batch all_tokens width"],
        valid: Int[Tensor, " batch"],
        grid: Grid | None = None,
    ) -> Features:
        """Return the features of what the last block put out.

        Args:
            tokens: Class token first.
            valid: Tokens of each row that are no padding.
            grid: Of the tokens, where none was dropped and it is not the encoder's own.
        """
        if self.norm_on == "tokens":
            tokens = self.norm(tokens)
        special, patches = tokens[:, : self.special], tokens[:, self.special :]
        pooled = special[:, 0] if self.pool == "class" else patches.mean(dim=1)
        if self.norm_on == "pooled":
            pooled = self.norm(pooled)
        frames, height, across = grid or self.grid
        whole = patches.shape[1] == frames * height * across
        return Features(
            tokens=patches,
            pooled=pooled,
            length=valid,
            grid=(frames, height, across) if whole else None,
            special=special if self.special else None,
        )

    def forward(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode a batch; see ``Encoder.forward``. Only the kept patches are computed."""
        x, valid = self.enter(data, length, keep)
        outputs = []
        for block in self.blocks:
            x = block(x)
            if layers:
                outputs.append(x)
        features = self.finish(x, valid, self.grid_of(data))
        return replace(features, layers=tuple(outputs)) if layers else features


class VideoViT(ViT):
    """Tubelets of frames, whose values stand in the order time, height, width, channel."""

    modality: Modality = "video"

    def __init__(
        self,
        config: ViTConfig,
        frames: int = 16,
        size: int = 224,
        tubelet: tuple[int, int] = (2, 16),
        stem: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Build the encoder.

        Args:
            config: Sizes of the transformer.
            frames: Frames that the positions are made for; 1 for images.
            size: Side of these frames, pixels.
            tubelet: Frames and side of a token.
            stem: Convolutions on each frame before the tubelets: channels and stride of each.
        """
        length, side = tubelet
        grid = (frames // length, size // side, size // side)
        values, layers = 3 * length * side * side, None
        if stem:
            widths, strides = zip(*stem, strict=True)
            values, layers = length * widths[-1], ConvolutionalStem(3, widths, [(step, step) for step in strides])
        super().__init__(config, grid, values, length, layers)
        self.tubelet = (length, side, side)

    def patches(self, data: Float[Tensor, "batch frames height width 3"]) -> Float[Tensor, "batch tokens values"]:
        """Cut the frames into tubelets; frames, rows and columns that fill none are left out."""
        frames, height, width = (n * side for n, side in zip(self.grid_of(data), self.tubelet, strict=True))
        return patchify_video(data[:, :frames, :height, :width], self.tubelet)

    def grid_of(self, data: Float[Tensor, "batch frames height width 3"]) -> Grid:
        """Return the number of tubelets along time, height and width."""
        frames, height, width = (size // side for size, side in zip(data.shape[1:4], self.tubelet, strict=True))
        return frames, height, width

    def convolve(
        self, patches: Float[Tensor, "batch tokens values"], grid: Grid
    ) -> Float[Tensor, "batch tokens channels"]:
        """Pass each frame through the stem; the frames of a tubelet stand side by side."""
        assert self.stem is not None
        frames = unpatchify_video(patches, self.tubelet, grid)
        maps = self.stem(frames.flatten(0, 1)).permute(0, 3, 1, 2)
        pooled = functional.adaptive_max_pool2d(maps, grid[1:]).permute(0, 2, 3, 1)
        return patchify_video(pooled.unflatten(0, frames.shape[:2]), (self.steps, 1, 1))
