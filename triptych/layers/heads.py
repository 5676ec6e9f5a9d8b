"""Heads from an encoder's features to a joint space."""

from typing import Literal

from torch import nn

from triptych.layers.batch_norm import BatchNorm

Projection = Literal["linear", "none", "mlp_bn"]
"""One linear layer; the identity; or linear, batch norm, GELU, linear."""


def build_projector(kind: Projection, width: int, dim: int | None = None) -> nn.Module:
    """Return a head.

    Args:
        kind: Its form.
        width: Width of the features.
        dim: Width of the joint space, ``width`` where None; ``none`` cannot change it.

    Raises:
        ValueError: If ``none`` is asked to change the width.
    """
    dim = width if dim is None else dim
    match kind:
        case "linear":
            return nn.Linear(width, dim)
        case "mlp_bn":
            return nn.Sequential(nn.Linear(width, width), BatchNorm(width), nn.GELU(), nn.Linear(width, dim))
        case _:
            if dim != width:
                raise ValueError(f"no projection leads from {width} to {dim} dimensions")
            return nn.Identity()
