"""AV-HuBERT (slug av-hubert): the model with its losses and gradients, its decoder and CTC head, and the front ends."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from triptych.batch import Batch, Clip
from triptych.data.audio import draw_sound, finish_sound
from triptych.data.mixing import mix_noise
from triptych.data.video import cut, draw_box, draw_colours, finish_video
from triptych.encoders.speech import SpeechConfig, align
from triptych.layers.decoder import TokenDecoder
from triptych.losses.masked import masked_cross_entropy
from triptych.losses.sequence import ctc, smoothed_cross_entropy
from triptych.method import Clock
from triptych.methods.av_hubert import SPECIAL, AVHuBERT, AVHuBERTConfig, RoundConfig
from triptych.model import load_tensors
from triptych.recipe import AudioTransform, VideoTransform
from triptych.weights.av_hubert import QKV, rename

ENCODER, LOGITS, LOSS = 2e-5, 1e-4, 1e-4
"""Absolute, absolute and relative (av-hubert, section 10)."""


SOUND = "speech.project.audio.weight"
DECODER = {
    "embed_tokens": "embedding",
    "self_attn_layer_norm": "norm1",
    "encoder_attn_layer_norm": "norm2",
    "final_layer_norm": "norm3",
    "layer_norm": "norm",
    "self_attn": "self_attention",
    "encoder_attn": "memory_attention",
    "k_proj": "key_value",
    "q_proj": "query",
    "out_proj": "output",
    "layers.": "blocks.",
    "fc": "linear",
}
"""Parts of the decoder's key names, and ours, in the order in which they are looked for."""


class Comparison:
    """What was computed, against what the case holds."""

    def __init__(self, outputs: dict[str, Tensor]) -> None:
        self.outputs = outputs
        self.compared: set[str] = set()

    def __call__(self, key: str, value: Tensor, atol: float = ENCODER, rtol: float = 0.0) -> None:
        wanted = self.outputs[key]
        torch.testing.assert_close(
            value.detach().reshape(wanted.shape).to(wanted.dtype),
            wanted,
            atol=atol,
            rtol=rtol,
            msg=lambda m: f"{key}: {m}",
        )
        self.compared.add(key)

    def finish(self) -> None:
        assert self.compared == set(self.outputs), set(self.outputs) - self.compared


def check(case: Path) -> None:
    """Compare every output of a case."""
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    compare = Comparison(outputs)
    if meta["part"] == "frontend":
        _check_front_ends(inputs, compare)
    else:
        weights = load_file(case / "weights.safetensors")
        method = _build(meta["config"], weights, case)
        _check_model(method, meta["config"], inputs, compare)
        _check_text(meta, weights, inputs, compare)
    compare.finish()


def _build(sizes: dict, weights: dict[str, Tensor], case: Path) -> AVHuBERT:  # type: ignore[type-arg]
    encoder = SpeechConfig(
        width=sizes["encoder_embed_dim"],
        layers=sizes["encoder_layers"],
        heads=sizes["encoder_attention_heads"],
        hidden=sizes["encoder_ffn_embed_dim"],
        norm="pre" if sizes["layer_norm_first"] else "post",
        stem=sizes["stem"],
        stages=tuple(sizes["planes"]),
        sound_values=sizes["audio_feat_dim"],
        position_kernel=sizes["conv_pos"],
        position_groups=sizes["conv_pos_groups"],
        dropout=sizes["dropout"],
        layer_drop=sizes["encoder_layerdrop"],
    )
    now = RoundConfig(
        clusters=tuple(count - SPECIAL for count in sizes["num_classes"]),
        hide="input" if sizes["masking_type"] == "input" else "features",
    )
    config = AVHuBERTConfig(
        encoder=encoder,
        rounds=(now,),
        rate=sizes["label_rate"],
        class_width=sizes["final_dim"],
        temperature=sizes["logit_temp"],
        unmasked=1.0,
        front_gradient=1.0,
    )
    method = AVHuBERT(config).eval()
    load_tensors(method, rename(weights), str(case))
    return method


def _check_model(
    method: AVHuBERT,
    sizes: dict,
    inputs: dict[str, Tensor],
    compare: Comparison,  # type: ignore[type-arg]
) -> None:
    speech, outputs = method.speech, compare.outputs
    video = inputs["video"].permute(0, 2, 3, 4, 1)
    audio = inputs["audio"].transpose(1, 2)
    length = (~inputs["padding_mask"]).sum(dim=1)
    span = torch.zeros(len(video), 2)
    view = {"video": Clip(video, length, span), "audio": Clip(audio, length, span)}

    with torch.no_grad():
        fronts = {stream: speech.front(stream, clip.data) for stream, clip in view.items()}
        for stream, front in fronts.items():
            compare(f"features_{stream}", front.transpose(1, 2))
        compare("resnet_features", speech.frames(video))
        # In double precision: the order of summation shows in float32 moments of a batch.
        frames = copy.deepcopy(speech.frames).double().train()
        compare("resnet_features_train_bn", frames(video.double()))
        joined = speech.join(fronts)
        compare("fused_layer_norm", speech.joint_norm(joined))
        fused = speech.fuse(joined)
        compare("post_extract_proj", fused)
        valid = torch.arange(fused.shape[1]) < length[:, None]
        compare("pos_conv", speech.positions(fused.where(valid[..., None], 0.0)))
        placed = speech.place(fused, length)
        found = speech.run(*placed, layers=True)
        assert found.layers is not None
        for number, layer in enumerate(found.layers, start=1):
            compare(f"layer_{number}", layer)
        compare("final", found.tokens)
        for stream in ("audio", "video"):
            only = speech.join({stream: fronts[stream]})
            compare(f"final_{stream}_only", speech.run(*speech.place(speech.fuse(only), length)).tokens)

    # The released code lets padding into the front ends as it is, ours clears it: what counts is what comes out.
    draws = {
        "kept.audio": ~inputs["mask_audio"],
        "kept.video": ~inputs["mask_video"],
        "kept.features": ~inputs["mask_audio"],
        "shown.video": inputs["video_source_index"],
    }
    now = method.options.rounds[0]
    with method.given(draws):
        guess = method.guess(view, now)
        if now.hide == "input":
            for stream, data in (("audio", audio), ("video", video)):
                hidden = method._hide(stream, data, draws[f"kept.{stream}"], length)
                layout = hidden.transpose(1, 2) if stream == "audio" else hidden.permute(0, 4, 1, 2, 3)
                compare(f"masked_{stream}", layout, atol=0.0)
    compare("mask_combined", guess.hidden)
    compare("masked_final", guess.tokens)
    compare("features_pen", guess.joined.square().mean())
    scores = method.logits(guess.tokens, now.clusters)
    masked, unmasked = guess.hidden & valid, ~guess.hidden & valid
    sums = {"masked": torch.zeros(()), "unmasked": torch.zeros(())}
    targets = [inputs[f"target_{number}"] for number in range(len(scores))]
    for number, logits in enumerate(scores):
        compare(f"logits_{number}", logits, atol=LOGITS)
        for name, counted in (("masked", masked), ("unmasked", unmasked)):
            each = masked_cross_entropy(logits, targets[number], counted).sum()
            compare(f"loss_{name}_sum_{number}", each, atol=0.0, rtol=LOSS)
            sums[name] = sums[name] + each
    size = torch.stack([masked.sum(), (masked | unmasked).sum()])
    compare("sample_size", size, atol=0.0)

    labels = {row: (0.0, of_row) for row, of_row in enumerate(torch.stack(targets, dim=-1))}
    method.targets.keep(0, labels, len(video), sizes["label_rate"], torch.zeros(0, 0))
    for weight, count in ((0.0, size[0]), (1.0, size[1])):
        method.options = method.options.model_copy(update={"unmasked": weight})
        method.zero_grad()
        with method.given(draws):
            losses = method.objective(Batch((view,), torch.arange(len(video))), Clock())
        compare(f"loss_total_w1_{weight:.0f}", losses.total * count, atol=0.0, rtol=LOSS)
    (losses.total * size[1]).backward()  # type: ignore[no-untyped-call]
    sound = "feature_extractor_audio.proj.weight"  # tells which vector stands in the place of what is hidden
    keys = {key: key.removeprefix("grad.") for key in outputs if key.startswith("grad.")}
    for key, inner in keys.items():
        part = QKV.match(inner)
        if part:
            whole = method.get_parameter(f"speech.blocks.{part[1]}.attention.qkv.{part[3]}").grad
            assert whole is not None
            gradient: Tensor | None = whole.chunk(3)["qkv".index(part[2])]
        else:
            shape = torch.zeros(1, sizes["audio_feat_dim"])
            (name,) = set(rename({sound: shape, inner: outputs[key]})) - ({SOUND} if inner != sound else set())
            gradient = method.get_parameter(name).grad
        assert gradient is not None, key
        compare(key, gradient, atol=1e-4 * float(outputs[key].abs().max()))


def _check_text(meta: dict, weights: dict[str, Tensor], inputs: dict[str, Tensor], compare: Comparison) -> None:  # type: ignore[type-arg]
    """Compare what decoder and CTC head say of lips alone."""
    sizes, outputs = meta["decoder"], compare.outputs
    width = weights["decoder.embed_tokens.weight"].shape[1]
    decoder = TokenDecoder(
        meta["vocab"],
        width,
        sizes["layers"],
        sizes["heads"],
        sizes["ffn"],
        memory_width=meta["config"]["encoder_embed_dim"],
        padding=sizes["pad"],
    ).eval()
    decoder.load_state_dict(_rename_decoder(weights))
    memory, length = outputs["final_video_only"], (~inputs["padding_mask"]).sum(dim=1)
    before, after = inputs["dec_prev_output_tokens"], inputs["dec_target"]
    said = (after != sizes["pad"]).sum(dim=1)
    with torch.inference_mode():
        compare("dec_positions", decoder.positions(before))
        logits = decoder(before, memory, length)
        compare("dec_logits", logits, atol=LOGITS)
        smoothed = smoothed_cross_entropy(logits, after, said, sizes["label_smoothing"]).sum()
        compare("dec_label_smoothed_loss_sum", smoothed, atol=0.0, rtol=LOSS)
        compare("dec_nll_sum", smoothed_cross_entropy(logits, after, said, 0.0).sum(), atol=0.0, rtol=LOSS)
        scores = functional.linear(memory, weights["ctc_proj.weight"], weights["ctc_proj.bias"])
        compare("ctc_logits", scores, atol=LOGITS)
        compare("ctc_loss_sum", ctc(scores, length, after, said - 1, sizes["bos_blank"]).sum(), atol=0.0, rtol=LOSS)


def _rename_decoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in weights.items():
        if not key.startswith("decoder.") or ".v_proj." in key:
            continue
        if ".k_proj." in key:
            tensor = torch.cat([tensor, weights[key.replace(".k_proj.", ".v_proj.")]])
        name = key.removeprefix("decoder.")
        for theirs, ours in DECODER.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def _check_front_ends(inputs: dict[str, Tensor], compare: Comparison) -> None:
    sound, noise = (inputs[name].float()[None] / 32_768 for name in ("wav", "noise"))
    length = torch.tensor([sound.shape[1]])

    def finish(**options: object) -> Tensor:
        transform = AudioTransform(**options)  # type: ignore[arg-type]
        draws = {name: draw[None] for name, draw in draw_sound(transform, torch.Generator()).items()}
        found, steps = finish_sound(sound, length, 16_000.0, draws, transform)
        assert int(steps) == found.shape[1]
        return found

    bank = {"front_end": "logfbank", "mels": 26, "low": 0.0, "emphasis": 0.97}
    compare("logfbank", finish(**bank), atol=1e-3)
    stacked = finish(**bank, stack=4)
    compare("stacked", stacked, atol=1e-3)
    frames = len(inputs["video"])
    clip = Clip(stacked, torch.tensor([stacked.shape[1]]), torch.zeros(1, 2))
    compare("aligned", align(clip, frames), atol=1e-3)
    clip = Clip(finish(**bank, stack=4, standardize=True), clip.length, clip.span)
    compare("normalized", align(clip, frames), atol=1e-3)
    compare("mfcc39", finish(front_end="mfcc", mels=23, derivatives=2), atol=1e-3)
    for key in compare.outputs:
        if key.startswith("mix_snr"):
            mixed = mix_noise(sound, length, noise, torch.tensor([float(key.removeprefix("mix_snr"))]))
            compare(key, (32_768 * mixed).trunc().int(), atol=1.0)
    size, side = compare.outputs["video_center"].shape[-1], inputs["video"].shape[-1]
    transform = VideoTransform(size=size, resize=side, channels=1, mean=(0.421,) * 3, std=(0.165,) * 3)
    box = draw_box(transform, side, side, torch.Generator())
    frames_of_three = cut(inputs["video"][..., None].expand(-1, -1, -1, 3), box, size)[None]
    draws = {name: draw[None] for name, draw in draw_colours(transform, torch.Generator()).items()}
    compare("video_center", finish_video(frames_of_three, draws, transform), atol=1e-6)
