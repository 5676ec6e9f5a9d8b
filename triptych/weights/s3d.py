"""Key names of S3D networks, of MIL-NCE on HowTo100M and of CoCLR, to ours (convnets-common, section 6)."""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.encoders.s3d import S3DConfig, Widths
from triptych.errors import TriptychError

HOWTO = (
    (r"^conv1\.(conv|bn)1\.", r"stem.\1."),
    (r"^conv_2b\.(conv|bn)1\.", r"block2.1.\1."),
    (r"^conv_2c\.", "block2.2."),
    (r"^gating\.fc\.", "blocks.0.4.linear."),
    *((rf"^mixed_(\d){letter}\.", rf"block\1.{place}.") for place, letter in enumerate("bcdef", 1)),
    (r"\.conv_b0\.(conv|bn)1\.", r".branch0.0.\1."),
    (r"\.conv_b([12])_a\.(conv|bn)1\.", r".branch\1.0.\2."),
    (r"\.conv_b([12])_b\.", r".branch\1.1."),
    (r"\.conv_b3_b\.(conv|bn)1\.", r".branch3.1.\1."),
)
"""From the names of HowTo100M's to CoCLR's, step by step."""
COCLR = (
    (r"^block1\.0\.(conv|bn)1\.", r"stem.0.\1."),
    (r"^block1\.0\.(conv|bn)2\.", r"stem.1.\1."),
    (r"^block2\.2\.(conv|bn)1\.", r"blocks.0.2.\1."),
    (r"^block2\.2\.(conv|bn)2\.", r"blocks.0.3.\1."),
    *((rf"^block{stage}\.", f"blocks.{stage - 2}.") for stage in range(2, 6)),
    (r"\.branch([12])\.1\.(conv|bn)1\.", r".branches.\1.1.\2."),
    (r"\.branch([12])\.1\.(conv|bn)2\.", r".branches.\1.2.\2."),
    (r"\.branch([0-3])\.", r".branches.\1."),
    (r"\.gating_b([0-3])\.fc\.", r".gates.\1.linear."),
    (r"\.conv\.(?=weight$)", ".convolution."),
    (r"\.bn\.", ".norm."),
)
"""From CoCLR's names to ours, step by step."""
OURS = re.compile(
    r"(stem(\.[01])?|blocks\.0\.[123]|blocks\.[123]\.\d\.branches\.[0-3]\.[012])\.(convolution\.weight|norm\.\w+)"
    r"|(blocks\.0\.4|blocks\.[123]\.\d\.gates\.[0-3])\.linear\.(weight|bias)"
)
"""What comes of a key that is known."""
DROPPED = re.compile(r"^(Conv_\d|Mixed_\d)|^fc\.|^text_module\.")
"""CoCLR's files hold every tensor twice; what follows MIL-NCE's mean, and its tower of words, are no part of S3D."""


def rename_s3d(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of either form under the names of ``encoders.s3d.S3D``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    renamed = {}
    for key, tensor in tensors.items():
        if DROPPED.match(key):
            continue
        name = key
        for pattern, replacement in (*HOWTO, *COCLR):
            name = re.sub(pattern, replacement, name)
        if not OURS.fullmatch(name):
            raise TriptychError(f"The key '{key}' is none of S3D's; are these weights of MIL-NCE's or CoCLR's code?")
        renamed[name] = tensor
    return renamed


def configure_s3d(tensors: Mapping[str, Tensor]) -> S3DConfig:
    """Return the form and sizes by the shapes of the tensors.

    Raises:
        TriptychError: If a key is unknown or missing.
    """
    ours = rename_s3d(tensors)

    def width(layer: str) -> int:
        name = f"{layer}.convolution.weight"
        if name not in ours:
            raise TriptychError(f"These are no weights of S3D: nothing in them becomes '{name}'.")
        return ours[name].shape[0]

    def widths(block: str) -> Widths:
        places = ("0.0", "1.0", "1.1", "2.0", "2.1", "3.1")
        first, second, second_out, third, third_out, fourth = (width(f"{block}.branches.{place}") for place in places)
        return first, second, second_out, third, third_out, fourth

    stages: list[list[int]] = [[], [], []]
    for name in ours:
        match = re.match(r"blocks\.([123])\.(\d)\.branches\.0\.0\.convolution", name)
        if match:
            stages[int(match[1]) - 1].append(int(match[2]))
    separable = "stem.0.convolution.weight" in ours
    deep = not separable and ours["stem.convolution.weight"].shape[1] > 3
    return S3DConfig(
        stem="separable" if separable else "space_to_depth" if deep else "whole",
        widths=(width("stem.0" if separable else "stem"), width("blocks.0.1"), width("blocks.0.2")),
        mixed=tuple(
            tuple(widths(f"blocks.{stage}.{place}") for place in sorted(places))
            for stage, places in enumerate(stages, 1)
        ),
        gates="blocks.1.1.gates.0.linear.weight" in ours,
        stem_gate="blocks.0.4.linear.weight" in ours,
        padding="symmetric" if separable else "same",
    )
