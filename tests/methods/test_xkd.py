"""XKD: the specification's checks (section 10), missing streams, variants, weights of the authors."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from triptych.batch import Batch, Clip
from triptych.encoders.masked_decoder import MaskedDecoderConfig
from triptych.encoders.vit import ViTConfig
from triptych.errors import TriptychError, UsageError
from triptych.layers.masks import count_kept
from triptych.method import Clock, Losses
from triptych.methods.xkd import XKD, XKDConfig, paper, refine, weigh
from triptych.model import load_tensors, model_tensors
from triptych.training.optimizers import build_optimizer, clip, schedule_factor
from triptych.weights.xkd import configure, rename

TINY = XKDConfig(
    encoder=ViTConfig(width=16, layers=2, heads=2, eps=1e-5, bias=False, margin=0.1),
    decoder=MaskedDecoderConfig(width=8, layers=1, heads=2, eps=1e-5, bias=False, norm=False),
    frames=4,
    size=12,
    tubelet=(2, 4),
    steps=12,
    mels=4,
    patch=(2, 2),
    video_hidden=0.5,
    audio_hidden=0.5,
    head_hidden=12,
    bottleneck=6,
    prototypes=10,
)


def _build(**options: object) -> XKD:
    torch.manual_seed(0)
    return XKD(TINY.model_copy(update=options)).train()


def _clip(data: Tensor, length: Tensor | None = None) -> Clip:
    whole = torch.full((len(data),), data.shape[1])
    return Clip(data, whole if length is None else length * whole, torch.zeros(len(data), 2))


def _batch(rows: int = 4, video: Tensor | None = None, audio: Tensor | None = None, locals_: int = 1) -> Batch:
    """A batch of a global view and local ones; ``video`` and ``audio`` are 0 where a row lacks the stream."""
    torch.manual_seed(1)
    views = [{"video": _clip(torch.randn(rows, 4, 12, 12, 3), video), "audio": _clip(torch.randn(rows, 12, 4), audio)}]
    views.append({"audio": _clip(torch.randn(rows, 6, 4), audio)})
    views += [{"video": _clip(torch.randn(rows, 2, 8, 8, 3), video)} for _ in range(locals_)]
    return Batch(tuple(views), torch.arange(rows))


def _draws(method: XKD, rows: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {f"noise_{s}": torch.rand(rows, math.prod(method.student(s).encoder.grid)) for s in ("video", "audio")}


def _run(method: XKD, batch: Batch) -> Losses:
    with method.given(_draws(method, len(batch))):
        return method.objective(batch, Clock())


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------- refinement


def test_refinement_gives_the_values_computed_by_hand() -> None:
    """Check 3."""
    video = torch.tensor([[[0.2, 0.3, 0.1], [0.5, 0.1, 0.1]]])
    audio = torch.tensor([[[0.4, 0.2], [0.1, 0.7]]])
    found, _ = refine(video, audio, "mean")
    wanted = torch.tensor([[[0.30, 0.45, 0.15], [0.857143, 0.171429, 0.171429]]])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    refined = weigh(tokens, found.mean(dim=1))
    wanted = torch.tensor([[[1.8664, 0.0], [0.0, 1.0023], [0.5184, 0.5184]]])
    torch.testing.assert_close(refined, wanted, atol=1e-4, rtol=0)
    for x in (tokens, refined):
        assert float(x.mean(dim=1).square().sum()) == pytest.approx(0.888889, abs=1e-6)


def test_refinement_is_that_of_the_outer_product() -> None:
    video, audio = torch.rand(2, 3, 5), torch.rand(2, 3, 4)
    crossed = video[..., :, None] * audio[..., None, :]
    by_mean = refine(video, audio, "mean")
    torch.testing.assert_close(by_mean[0], crossed.mean(dim=3) / video.mean(dim=2, keepdim=True))
    torch.testing.assert_close(by_mean[1], crossed.mean(dim=2) / audio.mean(dim=2, keepdim=True))
    by_softmax = refine(video, audio, "softmax")
    torch.testing.assert_close(by_softmax[0], crossed.mean(dim=3).softmax(dim=2))
    torch.testing.assert_close(by_softmax[1], crossed.mean(dim=2).softmax(dim=2))


def test_every_mode_of_refinement_has_a_value_of_its_own() -> None:
    modes = ("mean", "softmax", "none")
    values = [_run(_build(refinement=mode), _batch()).terms["video_to_audio"].item() for mode in modes]
    assert all(map(math.isfinite, values)) and len(set(values)) == 3


# ---------------------------------------------------------------- teachers and gradients


def test_no_gradient_reaches_a_teacher_and_only_momentum_moves_it() -> None:
    """Check 4."""
    method = _build(video_momentum=0.5, audio_momentum=1.0)
    before = {name: p.clone() for name, p in method.teachers.named_parameters()}
    _run(method, _batch()).total.backward()
    assert all(p.grad is None for p in method.teachers.parameters())
    with torch.no_grad():
        for parameter in method.students.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in method.teachers.named_parameters())
    method.after_step(Clock())
    for name, parameter in method.teachers.named_parameters():
        moved = 0.5 if name.startswith("video") else 0.0
        torch.testing.assert_close(parameter, before[name] + moved)


def test_alignment_gives_gradients_to_both_students_and_to_no_teacher() -> None:
    """Check 6."""
    method = _build()
    terms = _run(method, _batch()).terms
    terms["alignment_students"].backward()
    for stream in ("video", "audio"):
        assert all(p.grad is not None and p.grad.any() for p in method.student(stream).head.parameters())
    assert not terms["alignment_teachers"].requires_grad


def test_the_total_is_the_weighted_mean_of_the_three_parts() -> None:
    """Trap 14: (alignment + distillation + 5 reconstruction) / 7, each the mean of two."""
    losses = _run(_build(), _batch())
    parts = {name: float(term.detach()) for name, term in losses.terms.items()}
    alignment = (parts["alignment_students"] + parts["alignment_teachers"]) / 2
    distilled = (parts["video_to_audio"] + parts["audio_to_video"]) / 2
    rebuilt = (parts["reconstruction_video"] + parts["reconstruction_audio"]) / 2
    assert losses.total.item() == pytest.approx((alignment + distilled + 5 * rebuilt) / 7, rel=1e-5)


def test_centres_follow_the_teachers_scores_after_the_step() -> None:
    """Check 2, with all parts of an accumulated step and without the rows that lack a stream."""
    method = _build()
    method.video_center.copy_(torch.arange(10.0))
    seen = []
    for video in (torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 1, 1])):
        batch = _batch(video=video)
        clips = {stream: [view[stream] for view in batch.views if stream in view] for stream in ("video", "audio")}
        seen.append(method._teach(clips, video.bool())["video"][video.bool()])
    assert torch.equal(method.video_center, torch.arange(10.0))
    method.after_step(Clock())
    torch.testing.assert_close(method.video_center, 0.9 * torch.arange(10.0) + 0.1 * torch.cat(seen).mean(dim=0))
    after = method.video_center.clone()
    method.after_step(Clock())
    assert torch.equal(method.video_center, after)


def test_students_are_clipped_tensor_by_tensor_and_decoders_not() -> None:
    method = _build()
    optimizer = build_optimizer(method, paper().optimizer)
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    clip(optimizer, 0.1, None)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            norm = parameter.numel() ** 0.5
            wanted = min(norm, 0.3) if name.startswith("students.") else norm
            assert float(parameter.grad.norm()) == pytest.approx(wanted, rel=1e-3), name


# ---------------------------------------------------------------- schedules, counts


def test_rates_of_the_published_run() -> None:
    """Check 7: 0 at the beginning, 1e-4 at epoch 30, 5e-5 half way from there to epoch 800."""
    recipe = paper()
    rate = [recipe.optimizer.lr * schedule_factor(recipe.schedules["main"], e / 800, 1) for e in (0, 30, 415, 800)]
    assert rate == pytest.approx([0.0, 1e-4, 5e-5, 0.0], abs=1e-12)


def test_temperatures_rise_over_their_share_of_the_run() -> None:
    method = _build(video_temperature=(0.09, 0.11), audio_temperature=(0.04, 0.06))
    found = [
        method._temperature(stream, Clock(progress=share))
        for stream in ("video", "audio")
        for share in (0, 15 / 800, 1)
    ]
    assert found == pytest.approx([0.09, 0.10, 0.11, 0.04, 0.05, 0.06])


def test_published_numbers_of_parameters_and_tokens() -> None:
    """Section 4, and checks 5 and 9."""
    config = XKDConfig()
    with torch.device("meta"):
        method = XKD(config)
        views = {
            "video": [torch.empty(1, 32, 112, 112, 3), torch.empty(1, 8, 96, 96, 3)],
            "audio": [torch.empty(1, 448, 80), torch.empty(1, 112, 80)],
        }
    counts = {stream: _count(method.student(stream).encoder) for stream in views}
    assert counts == {"video": 87_691_008, "audio": 85_509_888}
    head = method.student("video").head
    assert _count(head) + head.gain.numel() == 8_405_248
    assert _count(method.decoders["video"].blocks) == _count(method.decoders["audio"].blocks) == 7_093_248
    for stream, tokens in (("video", (392, 72)), ("audio", (560, 140))):
        encoder = method.student(stream).encoder
        assert tuple(math.prod(encoder.grid_of(data)) for data in views[stream]) == tokens
    assert count_kept(392, config.video_hidden, "round") == 59
    assert count_kept(560, config.audio_hidden, "round") == 112


def test_the_published_views_have_the_published_sizes() -> None:
    whole, local, second = paper().train.views
    assert whole["video"].transform.size == 112 and local["video"].transform.size == 96
    assert local["video"].seconds == 1.0 and local["video"].rate == 8.0
    assert whole["audio"].transform.steps == 448 and second["audio"].transform.steps == 112
    assert [sum("video" in view for view in paper(kind).train.views) for kind in ("xkd", "mas", "mats")] == [2, 4, 4]


def test_masks_of_both_streams_are_drawn_apart() -> None:
    """Check 5."""
    method, seen = _build(), {}
    inner = method.draw

    def draw(name: str, sample: object, shared: bool = False) -> Tensor:
        seen[name] = inner(name, sample, shared)  # type: ignore[arg-type]
        return seen[name]

    method.draw = draw  # type: ignore[method-assign, assignment]
    method.objective(_batch(), Clock())
    assert {name: tuple(noise.shape) for name, noise in seen.items()} == {
        "noise_video": (4, 18),
        "noise_audio": (4, 12),
    }
    assert not torch.equal(seen["noise_video"][:, :12], seen["noise_audio"])
    assert not torch.equal(seen["noise_video"][0], seen["noise_video"][1])


# ---------------------------------------------------------------- variants


def test_mas_shares_the_students_blocks_and_mats_the_teachers_too() -> None:
    """Check 8."""
    for variant, shared in (("xkd", (False, False)), ("mas", (True, False)), ("mats", (True, True))):
        method = _build(variant=variant)
        for network, same in zip((method.student, method.teacher), shared, strict=True):
            assert (network("video").encoder.blocks is network("audio").encoder.blocks) is same
        for stream in ("video", "audio"):
            for name, parameter in method.teacher(stream).named_parameters():
                assert torch.equal(parameter, method.student(stream).get_parameter(name)), name


def test_a_step_of_video_changes_the_features_of_sound_where_blocks_are_shared() -> None:
    for variant, changes in (("xkd", False), ("mas", True)):
        method = _build(variant=variant, read="student")
        batch = _batch()
        before = method.features({"audio": batch.views[0]["audio"]})["audio"].pooled
        _run(method, Batch(({"video": batch.views[0]["video"]},), batch.rows)).total.backward()
        torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=1.0).step()
        after = method.features({"audio": batch.views[0]["audio"]})["audio"].pooled
        assert (not torch.allclose(before, after)) is changes


def test_shared_teacher_blocks_move_twice() -> None:
    """Check 8: 0.8 (0.9 t + 0.1 s) + 0.2 s."""
    method = _build(variant="mats", video_momentum=0.9, audio_momentum=0.8)
    with torch.no_grad():
        for parameter in method.students.parameters():
            parameter.add_(torch.randn_like(parameter))
    name = "encoder.blocks.0.attention.qkv.weight"
    teacher, student = method.teacher("video").get_parameter(name).clone(), method.student("video").get_parameter(name)
    method.after_step(Clock())
    wanted = 0.8 * (0.9 * teacher + 0.1 * student) + 0.2 * student
    torch.testing.assert_close(method.teacher("audio").get_parameter(name), wanted)


# ---------------------------------------------------------------- views and missing streams


def test_the_teacher_sees_the_view_that_it_is_told_to() -> None:
    batch = _batch()
    for view, shown in (("local", 1), ("global", 0)):
        method = _build(teacher_view=view)
        before = _run(method, batch).terms["alignment_teachers"]
        for number in (0, 1):
            views = list(batch.views)
            views[number] = {**views[number], "audio": _clip(views[number]["audio"].data + torch.randn(4, 1, 4))}
            after = _run(method, Batch(tuple(views), batch.rows)).terms["alignment_teachers"]
            assert (after.item() != before.item()) is (number == shown)


def test_a_teacher_without_its_view_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="teacher_view=global"):
        _run(_build(), Batch(_batch().views[:1], torch.arange(4)))
    assert _run(_build(teacher_view="global"), Batch(_batch().views[:1], torch.arange(4))).total.isfinite()


def test_students_have_scores_of_all_their_views() -> None:
    method, batch = _build(), _batch(locals_=3)
    clips = [view["video"] for view in batch.views if "video" in view]
    with method.given(_draws(method, 4)):
        _, scores = method._learn("video", clips)
    assert scores.shape == (4, 4, 10)
    student = method.student("video")
    for view, found in zip(clips[1:], scores[1:], strict=True):
        torch.testing.assert_close(student.head(student.encoder(view.data).pooled), found)
    assert not torch.allclose(student.head(student.encoder(clips[0].data).pooled), scores[0])  # the masked pass


def test_a_row_that_lacks_a_stream_learns_only_to_rebuild_the_other() -> None:
    method = _build()
    lacking = torch.tensor([1, 1, 0, 1])
    found = _run(method, _batch(audio=lacking)).terms
    batch, places = _batch(), lacking.nonzero()[:, 0]
    draws = _draws(method, 4)

    def rows(clip: Clip) -> Clip:
        return Clip(clip.data[places], clip.length[places], clip.span[places])

    kept = tuple({stream: rows(clip) for stream, clip in view.items()} for view in batch.views)
    with method.given({name: noise[places] for name, noise in draws.items()}):
        wanted = method.objective(Batch(kept, places), Clock()).terms
    for name in wanted:
        if name == "reconstruction_video":
            whole = _run(method, batch).terms[name]
            torch.testing.assert_close(found[name], whole)
            assert not torch.allclose(wanted[name], whole)
        else:
            torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-5)


def test_a_batch_of_one_stream_is_rebuilt_and_no_more() -> None:
    batch = _batch()
    views = tuple({s: clip for s, clip in view.items() if s == "video"} for view in batch.views)
    assert set(_run(_build(), Batch(views, batch.rows)).terms) == {"reconstruction_video"}


# ---------------------------------------------------------------- weights


NAMES = {"attention.qkv": "attn.qkv", "attention.output": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2"}


def _block_keys(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    found = {}
    for key, tensor in state.items():
        if key.startswith("blocks."):
            for ours, theirs in NAMES.items():
                key = key.replace(ours, theirs)
            found[f"{place}.{key}"] = tensor
    return found


def _swap(x: Tensor, first: int, second: int, axis: int = 0) -> Tensor:
    return x.unflatten(axis, (first, second)).transpose(axis, axis + 1).flatten(axis, axis + 1)


def _official(encoder: nn.Module, config: XKDConfig, stream: str) -> dict[str, Tensor]:
    """Return the weights of an encoder under the authors' names, mel bands before steps."""
    state = encoder.state_dict()
    table, kernel = state["positions.table"], state["project.weight"]
    if stream == "audio":
        places = _swap(table[1:], config.steps // config.patch[0], config.mels // config.patch[1])
        table, kernel = torch.cat([table[:1], places]), _swap(kernel, *config.patch, axis=1)
    embed = "cuboid_embed" if stream == "video" else "patch_embed"
    return {
        "cls_token": state["class_token"][None],
        "enc_pos_embed": table[None],
        f"{embed}.proj.weight": kernel,
        f"{embed}.proj.bias": state["project.bias"],
        "encoder_norm.weight": state["norm.weight"],
        "encoder_norm.bias": state["norm.bias"],
        **_block_keys(state, "encoder"),
    }


def _whole(method: XKD) -> dict[str, Tensor]:
    """Return all weights under the authors' names, shared ones as often as their state has them."""
    config, found = method.options, {}
    for short, stream in (("vid", "video"), ("aud", "audio")):
        for who, network in (("student", method.student(stream)), ("teacher", method.teacher(stream))):
            for key, tensor in _official(network.encoder, config, stream).items():
                found[f"{short}_{who}.backbone.{key}"] = tensor
            head, place = network.head.state_dict(), f"{short}_{who}.head"
            for number, layer in enumerate(("hidden.0", "hidden.1", "bottleneck")):
                for kind in ("weight", "bias"):
                    found[f"{place}.mlp.{3 * number}.{kind}"] = head[f"{layer}.{kind}"]
                    if layer != "bottleneck":
                        found[f"{place}.mlp.{3 * number + 1}.{kind}"] = head[f"norm.{kind}"]
            found[f"{place}.last_layer.weight_g"] = head["gain"]
            found[f"{place}.last_layer.weight_v"] = head["prototypes"]
        state, place = method.decoders[stream].state_dict(), f"{short}_ae"
        table, weight, bias = state["positions.table"], state["predict.weight"], state["predict.bias"]
        if stream == "audio":
            places = _swap(table[1:], config.steps // config.patch[0], config.mels // config.patch[1])
            table, weight, bias = torch.cat([table[:1], places]), *(_swap(x, *config.patch) for x in (weight, bias))
        found |= {f"{place}.mask_token": state["mask_token"][None], f"{place}.dec_pos_embed": table[None]}
        found |= {f"{place}.mid_proj.{kind}": state[f"embed.{kind}"] for kind in ("weight", "bias")}
        found |= {f"{place}.out_proj.weight": weight, f"{place}.out_proj.bias": bias}
        found |= _block_keys(state, f"{place}.decoder")
        found[f"{place}.encoder.cls_token"] = found[f"{short}_student.backbone.cls_token"]
    found["vt2as_ce_loss.center"], found["at2vs_ce_loss.center"] = method.video_center[None], method.audio_center[None]
    return found


def test_a_bare_encoder_becomes_the_students_and_the_teachers() -> None:
    method, other = _build(), XKD(TINY)
    renamed = rename(_official(method.student("audio").encoder, TINY, "audio"), TINY)
    assert all(name.startswith(("students.audio.encoder.", "teachers.audio.network.encoder.")) for name in renamed)
    load_tensors(other, {**model_tensors(other), **renamed}, "test")
    data = torch.randn(2, 12, 4)
    for encoder in (other.student("audio").encoder, other.teacher("audio").encoder):
        torch.testing.assert_close(encoder(data).pooled, method.student("audio").encoder(data).pooled)


@pytest.mark.parametrize("variant", ["xkd", "mas", "mats"])
def test_a_whole_model_comes_back_with_its_configuration(variant: str) -> None:
    changes = {"encoder": XKDConfig().encoder.model_copy(update={"width": 64, "layers": 2, "heads": 1})}
    changes["decoder"] = XKDConfig().decoder.model_copy(update={"width": 32, "layers": 1, "heads": 1})
    sizes = {"head_hidden": 12, "bottleneck": 6, "prototypes": 10, "variant": variant}
    method = XKD(XKDConfig().model_copy(update={**changes, **sizes}))
    for parameter in method.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    weights = _whole(method)
    assert configure(weights) == method.options
    renamed, wanted = rename(weights), model_tensors(method)
    assert renamed.keys() == wanted.keys()
    assert all(torch.equal(renamed[name], wanted[name]) for name in wanted)


def test_odd_weights_are_refused_by_name() -> None:
    weights = _official(_build().student("audio").encoder, TINY, "audio")
    with pytest.raises(TriptychError, match="odd"):
        rename({**weights, "odd": torch.zeros(1)}, TINY)
    with pytest.raises(TriptychError, match=r"encoder\.blocks\.1\.norm2\.bias"):
        rename({key: x for key, x in weights.items() if key != "encoder.blocks.1.norm2.bias"}, TINY)
    with pytest.raises(TriptychError, match="enc_pos_embed"):
        configure(weights)
    with pytest.raises(TriptychError, match="cls_token"):
        configure({"encoder_norm.weight": torch.ones(16)})


def test_the_published_encoders_give_the_published_configuration() -> None:
    with torch.device("meta"):
        method = XKD(XKDConfig())
        for stream in ("video", "audio"):
            assert configure(_official(method.student(stream).encoder, method.options, stream)) == XKDConfig()


def test_positions_are_resampled_as_the_released_code_does() -> None:
    method = _build()
    positions = {stream: method.student(stream).encoder.positions for stream in ("video", "audio")}
    assert {stream: found.resampling for stream, found in positions.items()} == {"video": "linear", "audio": "cubic"}
    assert all(found.margin == 0.1 for found in positions.values())
