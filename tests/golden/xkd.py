"""XKD against tensors of the authors' code: encoders, autoencoders, refinement, all losses, gradients, teachers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.batch import Batch, Clip
from triptych.encoders.masked_decoder import MaskedDecoderConfig
from triptych.layers.masks import count_kept, hidden, keep_lowest
from triptych.method import Clock, Losses
from triptych.methods.xkd import XKD, XKDConfig, refine, weigh
from triptych.model import load_tensors
from triptych.weights.xkd import rename

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
COARSE = {"alignment": {"atol": 2e-3, "rtol": 0.0}, "loss": {"atol": 5e-4, "rtol": 0.0}}
"""The official squared distances are rounded, see the case's ``tolerance``."""
GRADIENT = {"rtol": 5e-3, "atol": 1e-6}


def _configure(meta: dict) -> XKDConfig:
    sizes, call = meta["config"], meta["call"]
    encoder, decoder, head = sizes["encoder"], sizes["decoder"], sizes["projector"]
    assert head["act"] == "gelu" and head["norm"] == head["last_norm"] == "ln" and head["norm_last_layer"]
    assert call["global_views_number"] == 1
    default = XKDConfig()

    def sized(config: object, found: dict) -> dict:
        named = {"width": found["embed_dim"], "layers": found["depth"], "heads": found["num_heads"]}
        return config.model_copy(update=named)  # type: ignore[attr-defined]

    return XKDConfig(
        variant={"XKD": "xkd", "XKD_MAS": "mas", "XKD_MATS": "mats"}[meta["variant"]],
        encoder=sized(default.encoder, encoder),
        decoder=MaskedDecoderConfig.model_validate(sized(default.decoder, decoder)),
        frames=sizes["T"],
        size=sizes["size"],
        tubelet=(sizes["pt"], sizes["ps"][0]),
        mels=sizes["spec"][0],
        steps=sizes["spec"][1],
        patch=(sizes["pa"][1], sizes["pa"][0]),
        video_hidden=sizes["vm"],
        audio_hidden=sizes["am"],
        head_layers=head["nlayers"],
        head_hidden=head["hidden_dim"],
        bottleneck=head["bottleneck_dim"],
        prototypes=head["out_dim"],
        student_temperature=call["student_temp"]["audio"],
        video_temperature=(call["teacher_temp"]["video"],) * 2,
        audio_temperature=(call["teacher_temp"]["audio"],) * 2,
        video_momentum=0.9,
        audio_momentum=0.8,
        refinement=call["cm_attn_mode"],
        reconstruction=call["recon_coeff"],
        distillation=call["cmkd_coeff"],
        alignment=call["align_coeff"],
    )


def _their_order(tokens: int, mels: int) -> Tensor:
    """Return our place of each of the authors' audio tokens, or values of a patch: mel bands first, then steps."""
    return torch.arange(tokens).view(-1, mels).T.flatten()


def _clip(data: Tensor) -> Clip:
    batch = len(data)
    return Clip(data, torch.full((batch,), data.shape[1]), torch.zeros(batch, 2))


def _views(inputs: dict[str, Tensor], three: bool) -> tuple[dict[str, Clip], ...]:
    video = [inputs[f"frames_{name}"].movedim(1, -1) for name in ("global", "local", "local2")]
    audio = [inputs[f"spec_{name}"][:, 0].transpose(1, 2) for name in ("global", "local")]
    both = [{"video": _clip(x), "audio": _clip(y)} for x, y in zip(video, audio, strict=False)]
    return (*both, {"video": _clip(video[2])}) if three else tuple(both)


def _parts(losses: Losses) -> dict[str, Tensor]:
    """Return the losses under the authors' names."""
    terms = losses.terms
    found = {
        "vid_recon_loss": terms["reconstruction_video"],
        "aud_recon_loss": terms["reconstruction_audio"],
        "vt2as_kd_loss": terms["video_to_audio"],
        "at2vs_kd_loss": terms["audio_to_video"],
        "as2vs_align_loss": terms["alignment_students"],
        "vt2at_align_loss": terms["alignment_teachers"],
        "loss": losses.total,
    }
    means = {"recon_loss": ("vid_recon", "aud_recon"), "cmkd_loss": ("vt2as_kd", "at2vs_kd")}
    means["alignment_loss"] = ("as2vs_align", "vt2at_align")
    return found | {k: (found[f"{first}_loss"] + found[f"{second}_loss"]) / 2 for k, (first, second) in means.items()}


class _Case:
    """A case and its model."""

    def __init__(self, case: Path) -> None:
        self.config = _configure(json.loads((case / "meta.json").read_text()))
        self.inputs, self.outputs = (load_file(case / f"{name}.safetensors") for name in ("inputs", "outputs"))
        self.weights, self.source = load_file(case / "weights.safetensors"), str(case)
        self.compared: set[str] = set()
        self.tokens = self.config.mels // self.config.patch[1]
        noise = self.inputs["noise_audio"]
        order = _their_order(noise.shape[1], self.tokens).argsort()
        self.draws = {"noise_video": self.inputs["noise_video"], "noise_audio": noise[:, order]}

    def build(self) -> XKD:
        method = XKD(self.config).train()
        load_tensors(method, rename(self.weights, self.config), self.source)
        return method

    def compare(self, key: str, value: Tensor, close: dict[str, float] = CLOSE) -> None:
        wanted = self.outputs[key]
        torch.testing.assert_close(
            value.detach().float().reshape(wanted.shape), wanted, **close, msg=lambda m: f"{key}: {m}"
        )
        self.compared.add(key)

    def theirs(self, stream: str, x: Tensor, axis: int = 1) -> Tensor:
        """Return what is in our order of tokens in theirs."""
        return x if stream == "vid" else x.index_select(axis, _their_order(x.shape[axis], self.tokens))

    def values(self, stream: str, x: Tensor) -> Tensor:
        return x if stream == "vid" else x[..., _their_order(x.shape[-1], self.config.patch[1])]

    def ours(self, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Return our name and layout of one of the authors' tensors."""
        ((name, tensor),) = rename({key: tensor}, self.config).items()
        return name, tensor


def _check_encoders(case: _Case) -> None:
    method = case.build()
    whole, local = _views(case.inputs, three=False)
    tokens, attention = {}, {}
    for short, stream in (("vid", "video"), ("aud", "audio")):
        for who, found in (("student", method.student(stream)), ("teacher", method.teacher(stream))):
            views = {"": whole, "_local": local} if who == "student" else {"": whole}
            for suffix, view in views.items():
                features = found.encoder(view[stream].data)
                assert features.special is not None
                x = torch.cat([features.special, case.theirs(short, features.tokens)], dim=1)
                case.compare(f"feat.{short}_{who}{suffix}.tokens", x)
        tokens[short], attention[short] = method.look(stream, whole[stream])
        encoder = method.teacher(stream).encoder
        x = encoder.enter(whole[stream].data)[0]
        for block in encoder.blocks[:-1]:
            x = block(x)
        weights = encoder.blocks[-1].map(x)
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + case.theirs(short, torch.arange(x.shape[1] - 1), 0)])
        case.compare(f"attn.{short}_teacher.last", weights[:, :, order][..., order])
        _check_autoencoder(case, method, short, stream, whole[stream].data)
    crossed = refine(attention["vid"], attention["aud"], case.config.refinement)
    for short, stream, weights in zip(("vid", "aud"), ("video", "audio"), crossed, strict=True):
        case.compare(f"refine.c{short[0]}attn", case.theirs(short, weights, axis=2))
        refined = weigh(tokens[short], weights.mean(dim=1))
        case.compare(f"refine.{short}_tokens", case.theirs(short, refined))
        case.compare(f"head.{short}_teacher", method.teacher(stream).head(refined.mean(dim=1)))


def _check_autoencoder(case: _Case, method: XKD, short: str, stream: str, data: Tensor) -> None:
    noise, encoder = case.draws[f"noise_{stream}"], method.student(stream).encoder
    share = case.config.video_hidden if stream == "video" else case.config.audio_hidden
    keep = keep_lowest(noise, count_kept(noise.shape[1], share, "round"))
    features = encoder(data, keep=keep)
    case.compare(f"{short}_ae.latent", torch.cat([features.special, features.tokens], dim=1))
    case.compare(f"{short}_ae.mask", case.theirs(short, hidden(keep, noise.shape[1])))
    predicted = method.decoders[stream](features.tokens, keep, features.special)
    case.compare(f"{short}_ae.pred", case.values(short, case.theirs(short, predicted)))
    case.compare(f"{short}_ae.target", case.values(short, case.theirs(short, encoder.patches(data))))


def _check_losses(case: _Case) -> None:
    batch = len(case.inputs["noise_video"])
    for kind, three in (("released", False), ("threeview", True)):
        method = case.build()
        with method.given(case.draws):
            losses = method.objective(Batch(_views(case.inputs, three), torch.arange(batch)), Clock())
        for name, value in _parts(losses).items():
            coarse = "alignment" if "align" in name else name
            case.compare(f"{kind}.{name}", value, COARSE.get(coarse, CLOSE))
        losses.total.backward()
        for key in case.outputs:
            if key.startswith(f"{kind}.grad."):
                name, wanted = case.ours(key.removeprefix(f"{kind}.grad."), case.outputs[key])
                gradient = method.get_parameter(name).grad
                assert gradient is not None, key
                torch.testing.assert_close(gradient, wanted, **GRADIENT, msg=lambda m, key=key: f"{key}: {m}")
                case.compared.add(key)
        method.after_step(Clock())
        case.compare(f"{kind}.center_after.vt2as", method.video_center)
        case.compare(f"{kind}.center_after.at2vs", method.audio_center)
    for key in case.outputs:
        if key.startswith("ema."):
            who, _, rest = key.removeprefix("ema.").partition(".")
            inner = f"encoder.{rest}" if rest.startswith("blocks.") else rest
            name, wanted = case.ours(f"{who}.backbone.{inner}", case.outputs[key])
            torch.testing.assert_close(method.get_parameter(name).detach(), wanted, **CLOSE)
            case.compared.add(key)


def check(case: Path) -> None:
    """Compare every output of a case (slug xkd, part model)."""
    found = _Case(case)
    _check_encoders(found)
    _check_losses(found)
    assert found.compared == set(found.outputs), set(found.outputs) - found.compared
