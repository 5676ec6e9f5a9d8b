"""Weights of VATT's released code (TensorFlow): object-graph keys of its checkpoints, or Keras's names, to ours.

The object-graph keys follow the official rules of naming; no checkpoint was opened (vatt, section 8). Those of heads
and text encoder are not known: they are taken to end as Keras's names do.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.encoders.raw_signal import TransformerSize
from triptych.encoders.text import T5Size
from triptych.errors import TriptychError
from triptych.methods.vatt import VATTConfig, published
from triptych.recipe import Recipe, TokenizerSpec

LICENCE = "The code is Apache-2.0 (google-research/google-research, vatt); no licence of the weights is stated."

DROPPED = re.compile(r"\.OPTIMIZER_SLOT|^optimizer|^save_counter|^global_step|^_CHECKPOINTABLE_OBJECT_GRAPH")
"""What a checkpoint holds besides weights."""

PATHS = tuple(
    (re.compile(pattern), path)
    for pattern, path in (
        (r"/\.ATTRIBUTES/VARIABLE_VALUE$|:0$", ""),
        (r"^model/layer_with_weights-\d+/_base_layer/", ""),
        (r"/_base/", "/"),
        (r"^(?:vit|vid_backbone)/", "video/"),
        (r"^(?:wat|aud_backbone)/", "audio/"),
        (r"^(?:text_module|txt_backbone)/", "text/"),
        (r"^(?:unified_backbone/)?unified_transformer/", "shared/"),
        (r"^shared/raw_to_embeddings/(\w+)/", r"\1/"),
        (r"^shared/(?=voxel_to_patch)", "video/"),
        (r"^shared/(?=waveform_to_patch)", "audio/"),
        (r"^shared/text_embedding/", "text/embedding/"),
        (r"^shared/(\w+?)_(pre|post)_tx_projection/", r"\1/\2_proj/"),
        (r"^shared/(pre|post)_proj/(\w+)/", r"\2/\1_proj/"),
        (r"^shared/pos_embedding_lookup/(\w+)/", r"\1/positions/"),
        (r"^shared/(\w+?)_(?:spatio_)?temporal_embeddings/", r"\1/positions/"),
        (r"^(\w+)/(?:pos_embedding_lookup|(?:spatio_)?temporal_embeddings)/", r"\1/positions/"),
        (r"^shared/vid_agg_embedding$", "video/agg_embedding"),
        (r"^shared/aud_agg_embedding$", "audio/agg_embedding"),
        (r"^shared/txt_agg_embedding$", "text/agg_embedding"),
        (r"/(?:tx|t5_encoder)/", "/transformer/"),
        (r"/layers/(\d+)/", r"/layer_\1/"),
        (r"/(?:mha|multi_head_attention)/", "/attention/"),
        (r"/self_attention/", "/"),
        (r"/feed_forward/(?:mlp|dense_gelu_dense)/", "/feed_forward/"),
        (r"/layernorm/", "/layer_norm/"),
    )
)
"""Both kinds of keys to one kind of path, step by step."""

NAMES = tuple(
    (re.compile(f"(?:^|/){pattern}$"), name)
    for pattern, name in (
        (r"(video|audio)/(?:voxel|wave|waveform)_to_patch/(kernel|bias)", "encoders.{}.project.{}"),
        (r"(video|audio|text)/agg_(?:embedding|token_embd)", "encoders.{}.agg"),
        (r"text/embedding(?:_\d+)?/(embeddings)", "encoders.text.words.{}"),
        (r"(text)/pre_proj/(kernel)", "encoders.{}.project.{}"),
        (r"(video|audio|text)/positions/temporal_position_embeddings/embeddings", "encoders.{}.positions.tables.time"),
        (
            r"(video|audio|text)/positions/vertical_position_embeddings/embeddings",
            "encoders.{}.positions.tables.height",
        ),
        (
            r"(video|audio|text)/positions/horizontal_position_embeddings/embeddings",
            "encoders.{}.positions.tables.width",
        ),
        (r"(video|audio|text)/positions/layer_norm/(gamma|beta)", "encoders.{}.positions.norm.{}"),
        (
            r"(video|audio|text|shared)/transformer/layer_(\d+)/layer_norm/(gamma|beta|weight)",
            "STACK.blocks.{}.norm1.{}",
        ),
        (
            r"(video|audio|text|shared)/transformer/layer_(\d+)/attention/([qkv]|o)/(kernel|bias)",
            "STACK.blocks.{}.attention.{}.{}",
        ),
        (r"text/transformer/layer_0/attention/relative_attention_bias/(embeddings)", "encoders.text.relative.{}"),
        (
            r"(video|audio|text|shared)/transformer/layer_(\d+)/feed_forward/layer_norm/(gamma|beta)",
            "STACK.blocks.{}.norm2.{}",
        ),
        (
            r"(video|audio|text|shared)/transformer/layer_(\d+)/feed_forward/(wi|wo)/(kernel|bias)",
            "STACK.blocks.{}.{}.{}",
        ),
        (r"(video|audio|text|shared)/transformer/final_layer_norm/(gamma|beta|weight)", "STACK.norm.{}"),
        (r"vid_to_hid/(kernel)", "head.video_fine.0.{}"),
        (r"hid_to_va/pre_bn/(\w+)", "head.video_fine.1.{}"),
        (r"hid_to_va/linear_projection/(kernel)", "head.video_fine.3.{}"),
        (r"hid_to_va/bn/(\w+)", "head.video_fine.4.{}"),
        (r"va_to_vat/linear_projection/(kernel)", "head.video_coarse.1.{}"),
        (r"va_to_vat/bn/(\w+)", "head.video_coarse.2.{}"),
        (r"aud_to_vid/(kernel|bias)", "head.audio_fine.{}"),
        (r"txt_to_vid/(kernel|bias)", "head.text_coarse.{}"),
        (r"(vid|aud|txt)_to_vat/linear_projection/(kernel)", "head.heads.{}.1.{}"),
        (r"(vid|aud|txt)_to_vat/bn/(\w+)", "head.heads.{}.2.{}"),
    )
)
"""Pattern of a path's end and our name, where STACK is a transformer's, see ``STACKS``."""

AGNOSTIC = tuple(
    (re.compile(f"^{pattern}$"), name)
    for pattern, name in (
        (r"(text)/embedding(?:_\d+)?/(embeddings)", "encoders.{}.cut.words.{}"),
        (r"(\w+)/pre_proj/(kernel|bias)", "encoders.{}.before.0.{}"),
        (r"(\w+)/post_proj/(kernel|bias)", "encoders.{}.after.0.{}"),
    )
)
"""The same, tried first, of a modality-agnostic model."""

STACKS = {
    "video": "encoders.video.transformer",
    "audio": "encoders.audio.transformer",
    "text": "encoders.text",
    "shared": "encoders.video.transformer",  # shared layers are stored with the first encoder that has them
}
WORDS = {
    "kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "vid": "video",
    "aud": "audio",
    "txt": "text",
    "o": "output",
    "wi": "linear1",
    "wo": "linear2",
}


def rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return TensorFlow's tensors under the names, and in the layouts, of ``triptych.methods.vatt.VATT``.

    Raises:
        TriptychError: If a key is unknown; it names the key.
    """
    paths = {key: _path(key) for key in tensors if not DROPPED.search(key)}
    table = (*AGNOSTIC, *NAMES) if any(path.startswith("shared/") for path in paths.values()) else NAMES
    renamed: dict[str, Tensor] = {}
    apart: dict[str, dict[str, Tensor]] = {}
    for key, path in paths.items():
        name = _name(path, table)
        if name is None:
            raise TriptychError(f"The key '{key}' is none of VATT's; are these weights of the released code?")
        tensor = tensors[key].flatten(0, -2).T.contiguous() if path.endswith("kernel") else tensors[key]
        part = re.fullmatch(r"(.*)\.([qkv])\.(weight|bias)", name)
        if part:
            apart.setdefault(f"{part[1]}.qkv.{part[3]}", {})[part[2]] = tensor
        else:
            renamed[name] = tensor
        if name.endswith("running_mean"):
            renamed[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return renamed | {name: torch.cat([parts[letter] for letter in "qkv"]) for name, parts in apart.items()}


def _path(key: str) -> str:
    for pattern, path in PATHS:
        key = pattern.sub(path, key)
    return key


def _name(path: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str | None:
    for pattern, name in table:
        match = pattern.search(path)
        if match:
            groups = list(match.groups())
            if name.startswith("STACK."):
                name = name.replace("STACK", STACKS[groups.pop(0)])
            return name.format(*(WORDS.get(group, group) for group in groups))
    return None


def configure(tensors: Mapping[str, Tensor]) -> VATTConfig:
    """Return the configuration that the shapes say; heads are 64 wide, as in all that was published.

    Raises:
        TriptychError: As ``rename``.
    """
    ours = rename(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.items()}
    (kernel,) = (tuple(tensor.shape) for key, tensor in tensors.items() if _path(key).endswith("voxel_to_patch/kernel"))
    agnostic = "encoders.text.cut.words.weight" in shapes
    patch = shapes["encoders.audio.project.weight"][1]
    vectors = shapes["encoders.text.cut.words.weight" if agnostic else "encoders.text.words.weight"]
    sizes = {
        "frames": kernel[0] * shapes["encoders.video.positions.tables.time"][0],
        "size": tuple(kernel[1] * shapes[f"encoders.video.positions.tables.{axis}"][0] for axis in ("height", "width")),
        "tubelet": kernel[:2],
        "audio_steps": patch * shapes["encoders.audio.positions.tables.time"][0],
        "audio_patch": (patch, 1),
        "vocabulary": vectors[0],
        "word_width": vectors[1],
    }
    if agnostic:
        sizes |= {
            "shared": _size(shapes, "encoders.video.transformer.blocks"),
            "projected": shapes["encoders.video.after.0.weight"][0],
            "text_steps": shapes["encoders.text.positions.tables.time"][0],
        }
    else:
        buckets, heads = shapes["encoders.text.relative.weight"]
        text = _size(shapes, "encoders.text.blocks", heads).model_dump()
        sizes |= {
            "video": _size(shapes, "encoders.video.transformer.blocks"),
            "audio": _size(shapes, "encoders.audio.transformer.blocks"),
            "text": T5Size(**text, buckets=buckets),
        }
    if "head.heads.video.1.weight" in shapes:
        sizes |= {"head": "joint", "fine": shapes["head.heads.video.1.weight"][0]}
    elif "head.audio_fine.weight" in shapes:
        sizes |= {
            "hidden": shapes["head.video_fine.0.weight"][0],
            "fine": shapes["head.audio_fine.weight"][0],
            "coarse": shapes["head.text_coarse.weight"][0],
        }
    return VATTConfig(**sizes)


def recipe(config: VATTConfig) -> Recipe:
    """Return the published recipe; the words of the checkpoint's table are those of a tokenizer that is to be given."""
    return published(config).model_copy(update={"tokenizer": TokenizerSpec(kind="words", vocabulary=config.vocabulary)})


def _size(shapes: Mapping[str, tuple[int, ...]], blocks: str, heads: int | None = None) -> TransformerSize:
    layers = {name.removeprefix(f"{blocks}.").split(".")[0] for name in shapes if name.startswith(f"{blocks}.")}
    inner, width = shapes[f"{blocks}.0.attention.qkv.weight"][0] // 3, shapes[f"{blocks}.0.attention.qkv.weight"][1]
    heads = heads or inner // 64
    hidden = shapes[f"{blocks}.0.linear1.weight"][0]
    return TransformerSize(layers=len(layers), width=width, heads=heads, head_width=inner // heads, hidden=hidden)
