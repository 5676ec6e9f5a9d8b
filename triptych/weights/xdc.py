"""Weights of XDC's release: five R(2+1)D-18 video encoders; neither audio encoders nor heads were published."""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.methods.xdc import XDCConfig
from triptych.weights.convnets import configure_video, rename_video

LICENCE = "MIT (HumamAlwassel/XDC)."
RANDOM = re.compile(r"^(encoders\.audio|heads)\.")


def configure(tensors: Mapping[str, Tensor]) -> XDCConfig:
    """Return the configuration whose video network the tensors fit; the sound's is VMZ's ResNet-18."""
    return XDCConfig(video=configure_video(tensors))


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the released tensors under the names of ``triptych.methods.xdc.XDC``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    return {f"encoders.video.{name}": tensor for name, tensor in rename_video(tensors).items()}
