"""Weights made with the released AVE code of LAVISH (none were published): its names to ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from triptych.errors import TriptychError
from triptych.methods.lavish import LAVISHConfig
from triptych.recipe import Config, Viewing
from triptych.weights import timm

LICENCE = "The code is MIT (GenjiB/LAVISH); the backbone's weights keep the licence of their makers."

DROPPED = re.compile(r"^adapter_token_downsampler\.")
"""Made by the authors' module and never run."""

PREFIXES = ("swin.", "ViT.v.")
"""Of the backbone, which is one of the two."""
STREAMS = {"audio": "audio", "vis": "video"}
PARTS = {"p1": "attend", "p2": "feed"}
ADAPTER = {
    "my_tokens": "tokens",
    "gate_av": "read_gate",
    "gate": "gate",
    "down_sampler": "down",
    "up_sampler": "up",
    "bn1": "down_norm",
    "bn2": "up_norm",
    "ln_before": "norm_before",
    "ln_post": "norm_after",
}
HEAD = {"mlp_class": "head.0", "mlp_class_2": "head.1"}


def configure(tensors: Mapping[str, Tensor]) -> LAVISHConfig:
    """Return the sizes that the shapes say, and which norms and gates there are; see ``timm.configure``.

    The names of the classes are not known: they are numbers.

    Raises:
        TriptychError: If these are no weights of LAVISH.
    """
    first = "audio_adapter_blocks_p1.0."
    needed = (f"{first}down_sampler.weight", f"{first}up_sampler.weight", "mlp_class.weight", "mlp_class_2.weight")
    for key in needed:
        if key not in tensors:
            raise TriptychError(f"There is no '{key}'; are these weights of LAVISH's AVE model?")
    down, up = tensors[needed[0]], tensors[needed[1]]
    tokens = tensors.get(f"{first}my_tokens")
    return LAVISHConfig(
        base_config=timm.configure(_backbone(tensors)),
        streams=("audio", "video") if any(key.startswith("ViT.v.") for key in tensors) else ("video", "audio"),
        classes=tuple(str(number) for number in range(tensors["mlp_class_2.weight"].shape[0])),
        tokens=0 if tokens is None else tokens.shape[0],
        reduction=up.shape[0] // down.shape[0],
        groups=up.shape[0] // down.shape[1],
        batch_norm=f"{first}bn1.weight" in tensors,
        norm_before=f"{first}ln_before.weight" in tensors,
        norm_after=f"{first}ln_post.weight" in tensors,
        audio_gate=f"{first}gate" in tensors,
        hidden=tensors["mlp_class.weight"].shape[0],
    )


def look(config: Config) -> Viewing:
    """Return how the AVE runs look at a video, whose backbone this is."""
    assert isinstance(config, LAVISHConfig)
    return timm.look(config.base_config)


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors under the names of ``triptych.methods.lavish.LAVISH``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    renamed = {f"base.{name}": tensor for name, tensor in timm.rename(_backbone(tensors)).items()}
    for key, tensor in tensors.items():
        if not key.startswith(PREFIXES) and not DROPPED.search(key):
            renamed[rename_trained(key)] = tensor.flatten(1) if tensor.ndim == 4 else tensor
    return renamed


def rename_trained(key: str) -> str:
    """Return our name of a tensor of the adapters or the head.

    Raises:
        TriptychError: If there is no such tensor.
    """
    adapter = re.fullmatch(r"(audio|vis)_adapter_blocks_(p[12])\.(\d+)\.(\w+)(\.\w+)?", key)
    if adapter and adapter[4] in ADAPTER:
        place = f"adapters.{STREAMS[adapter[1]]}.{adapter[3]}.{PARTS[adapter[2]]}"
        return f"{place}.{ADAPTER[adapter[4]]}{adapter[5] or ''}"
    layer, _, kind = key.rpartition(".")
    if layer in HEAD:
        return f"{HEAD[layer]}.{kind}"
    raise TriptychError(f"The key '{key}' is none of LAVISH's; are these weights of its AVE model?")


def _backbone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's tensors under timm's names."""
    found: dict[str, Tensor] = {}
    for prefix in PREFIXES:
        found |= {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return found
