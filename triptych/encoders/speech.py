"""Encoders of speech, seen, heard or both: light front ends, fused step by step, under one transformer (AV-HuBERT).

Frames of a mouth go through a 3-D convolution and a ResNet for each frame, sound through one linear layer; side by side
they become the steps of a pre-norm transformer whose positions come from a grouped convolution (av-hubert, section 4).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triptych.batch import Clip, Modality, Stream, View
from triptych.encoders.encoder import Encoder, Features
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.masks import pick
from triptych.layers.pooling import masked_mean
from triptych.layers.residual import flat_block
from triptych.layers.transformer import Block
from triptych.recipe import Config


class SpeechConfig(Config):
    """Sizes; the defaults are AV-HuBERT Base as it was pretrained (av-hubert, sections 4 and 6)."""

    width: int = Field(768, ge=1)
    """Width D of the transformer (Large: 1024)."""
    layers: int = Field(12, ge=1)
    """Blocks (Large: 24)."""
    heads: int = Field(12, ge=1)
    """Attention heads (Large: 16)."""
    hidden: int = Field(3072, ge=1)
    """Width of the feed-forward parts (Large: 4096)."""
    norm: Literal["pre", "post"] = "pre"
    """Place of the layer norms; `post` is fairseq's default, no published model has it."""
    stem: int = Field(64, ge=1)
    """Channels of the 3-D convolution over the frames."""
    stages: tuple[int, ...] = Field((64, 128, 256, 512), min_length=1)
    """Channels of the ResNet's stages; each but the first halves the picture."""
    stage_blocks: int = Field(2, ge=1)
    """Blocks of a stage."""
    sound_values: int = Field(104, ge=1)
    """Values of a step of sound: four steps of 26 log filter-bank energies."""
    position_kernel: int = Field(128, ge=1)
    """Steps that the convolution of positions sees."""
    position_groups: int = Field(16, ge=1)
    """Groups of its channels."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """After the fusion, after the positions, on attention weights, and after each part of a block."""
    inner_dropout: float = Field(0.0, ge=0, lt=1)
    """Inside the feed-forward parts (0.1 in fine-tuning, where `dropout` is 0)."""
    layer_drop: float = Field(0.05, ge=0, lt=1)
    """Probability that a step of training passes by a block (0.1 in fine-tuning)."""

    @model_validator(mode="after")
    def _fits(self) -> "SpeechConfig":
        for name in ("heads", "position_groups"):
            if self.width % getattr(self, name):
                raise ValueError(f"{name} {getattr(self, name)} does not divide width {self.width}")
        return self


class FrameResNet(nn.Module):
    """A 3-D convolution over grey frames, then a ResNet for each frame, then the mean over its places."""

    def __init__(self, stem: int, stages: tuple[int, ...], blocks: int) -> None:
        """Build the network.

        Args:
            stem: Channels of the 3-D convolution.
            stages: Channels of each stage.
            blocks: Of each stage.
        """
        super().__init__()
        self.width = stages[-1]
        self.convolution = nn.Conv3d(1, stem, (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False)
        self.norm = BatchNorm(stem)
        self.activation = nn.PReLU(stem)
        self.stages = nn.ModuleList()
        for number, width in enumerate(stages):
            before = stages[number - 1] if number else stem
            first = flat_block(before, width, 2 if number else 1, nn.PReLU)
            others = (flat_block(width, width, 1, nn.PReLU) for _ in range(blocks - 1))
            self.stages.append(nn.Sequential(first, *others))
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                places = module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=math.sqrt(2 / (places * module.out_channels)))

    def forward(self, data: Float[Tensor, "batch frames height width 1"]) -> Float[Tensor, "batch frames channels"]:
        """Return a vector a frame."""
        x = self.convolution(data.permute(0, 4, 1, 2, 3))
        x = self.norm(x.permute(0, 2, 3, 4, 1)).flatten(0, 1).permute(0, 3, 1, 2)
        x = functional.max_pool2d(self.activation(x), 3, 2, padding=1)
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3)).unflatten(0, data.shape[:2])


class PositionConvolution(nn.Module):
    """What a step's neighbours tell of its place: a grouped convolution over time, then GELU.

    Its weights are ``scale * direction / |direction|``, a length for each place of the kernel (weight norm over the
    last axis, as fairseq has it).
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        """Build the layer for steps of ``width`` values, a ``kernel`` of steps and ``groups`` of channels."""
        super().__init__()
        self.kernel = kernel
        self.groups = groups
        weight = torch.randn(width, width // groups, kernel) * math.sqrt(4 / (kernel * width))
        self.direction = nn.Parameter(weight)
        self.scale = nn.Parameter(weight.norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "batch steps width"]) -> Float[Tensor, "batch steps width"]:
        """Return what is added to the steps."""
        weight = self.scale * self.direction / self.direction.norm(dim=(0, 1), keepdim=True)
        around = functional.conv1d(
            x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups
        )  # an even kernel gives a step too many
        return functional.gelu(around[..., : x.shape[1]]).transpose(1, 2)


class SpeechEncoder(Encoder):
    """Lips, sound, or both, to one transformer. Its stages are public: ``front``, ``join``, ``fuse``, ``run``."""

    modality: Modality = "video"
    last = ("norm",)

    def __init__(self, config: SpeechConfig) -> None:
        """Build the encoder; the transformer's weights begin with a deviation of 0.02, its biases with 0."""
        super().__init__()
        width = config.width
        self.width = width
        self.post = config.norm == "post"
        self.layer_drop = config.layer_drop
        self.frames = FrameResNet(config.stem, config.stages, config.stage_blocks)
        self.project = nn.ModuleDict(
            {"audio": nn.Linear(config.sound_values, width), "video": nn.Linear(self.frames.width, width)}
        )
        self.joint_norm = nn.LayerNorm(2 * width)
        self.joint = nn.Linear(2 * width, width)
        self.positions = PositionConvolution(width, config.position_kernel, config.position_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                ratio=config.hidden / width,
                norm=config.norm,
                dropout=config.dropout,
                eps=1e-5,
                inner_dropout=config.inner_dropout,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def front(self, stream: Stream, data: Tensor) -> Float[Tensor, "batch steps width"]:
        """Return what the front end of a stream makes of its steps.

        Args:
            stream: ``video`` (grey frames, ``batch frames height width 1``) or ``audio`` (``batch steps values``).
            data: Zeros where it is padded.
        """
        projected: Tensor = self.project[stream](self.frames(data) if stream == "video" else data)
        return projected

    def join(self, fronts: Mapping[Stream, Float[Tensor, "batch steps width"]]) -> Float[Tensor, "batch steps both"]:
        """Return sound and picture side by side, sound first; zeros for the stream that is not there."""
        some = next(iter(fronts.values()))
        return torch.cat([fronts.get(stream, torch.zeros_like(some)) for stream in ("audio", "video")], dim=-1)

    def fuse(self, joined: Float[Tensor, "batch steps both"]) -> Float[Tensor, "batch steps width"]:
        """Return one vector a step: layer norm, linear layer, dropout."""
        fused: Tensor = self.dropout(self.joint(self.joint_norm(joined)))
        return fused

    def place(
        self,
        x: Float[Tensor, "batch steps width"],
        length: Int[Tensor, " batch"],
        keep: Int[Tensor, "batch kept"] | None = None,
    ) -> tuple[Float[Tensor, "batch kept_steps width"], Bool[Tensor, "batch kept_steps"]]:
        """Return fused steps with their positions, zeros where they are padding, and which of them are none."""
        valid = torch.arange(x.shape[1], device=x.device) < length[:, None]
        x = x.where(valid[..., None], 0.0)
        x = x + self.positions(x)
        x = self.dropout(self.norm(x) if self.post else x)
        return (x, valid) if keep is None else (pick(x, keep), valid.gather(1, keep))

    def run(
        self, x: Float[Tensor, "batch tokens width"], valid: Bool[Tensor, "batch tokens"], layers: bool = False
    ) -> Features:
        """Return the features of placed steps; of each block without the last norm, if asked for."""
        mask = valid | ~valid.any(dim=1, keepdim=True)  # a row of nothing attends to itself
        outputs = []
        for block in self.blocks:
            if not (self.training and self.layer_drop and float(torch.rand(())) < self.layer_drop):
                x = block(x, mask)
            if layers:
                outputs.append(x)
        features = self.finish(x, valid)
        return replace(features, layers=tuple(outputs)) if layers else features

    def finish(self, tokens: Float[Tensor, "batch tokens width"], valid: Bool[Tensor, "batch tokens"]) -> Features:
        """Return the features of what the last block put out; ``pooled`` is the mean over the valid steps."""
        tokens = tokens if self.post else self.norm(tokens)
        return Features(tokens=tokens, pooled=masked_mean(tokens, valid), length=valid.sum(dim=1))

    def enter(
        self, data: Tensor, length: Int[Tensor, " batch"] | None = None, keep: Int[Tensor, "batch kept"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens width"], Bool[Tensor, "batch tokens"]]:
        """Return what the first block reads of one stream, and which of it is no padding."""
        if length is None:
            length = torch.full((len(data),), data.shape[1], device=data.device)
        stream = "video" if data.ndim == 5 else "audio"
        front = self.front(stream, clear(data, length))
        return self.place(self.fuse(self.join({stream: front})), length, keep)

    def forward(
        self,
        data: Tensor,
        length: Int[Tensor, " batch"] | None = None,
        keep: Int[Tensor, "batch kept"] | None = None,
        layers: bool = False,
    ) -> Features:
        """Encode one stream, which its shape tells; see ``Encoder.forward``."""
        return self.run(*self.enter(data, length, keep), layers)


def clear(data: Shaped[Tensor, "batch steps *values"], length: Int[Tensor, " batch"]) -> Tensor:
    """Return data with zeros in the place of padding, so that a convolution over time sees nothing there."""
    valid = torch.arange(data.shape[1], device=data.device) < length[:, None]
    return data.where(valid.view(*valid.shape, *[1] * (data.ndim - 2)), 0.0)


def leading(view: View) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Return each row's steps and the second that they begin at: the picture's, or the sound's where there is none."""
    clips = [view[stream] for stream in ("video", "audio") if stream in view]
    first, last = clips[0], clips[-1]
    seen = first.present
    return first.length.where(seen, last.length), first.span[:, 0].where(seen, last.span[:, 0])


def step_count(view: View) -> int:
    """Return the steps of a batch: the picture's, or the sound's where these are more in a row without a picture."""
    if "video" not in view or "audio" not in view:
        return next(view[stream].data.shape[1] for stream in ("audio", "video") if stream in view)
    seen = view["video"].data.shape[1]
    return seen if bool(view["video"].present.all()) else max(seen, view["audio"].data.shape[1])


def align(clip: Clip, steps: int) -> Tensor:
    """Return a clip's data cut or filled up to so many steps, zeros wherever it is padding."""
    data = clip.data[:, :steps]
    missing = data.new_zeros(len(data), steps - data.shape[1], *data.shape[2:])
    return clear(torch.cat([data, missing], dim=1), clip.length)
