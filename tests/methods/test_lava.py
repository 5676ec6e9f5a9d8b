"""LAVA: the specification's hand-computed cases and checks."""

import pytest
import torch
from torch.nn import functional

from tests.tiny import tiny_lava
from triptych.batch import Batch, Clip, View
from triptych.errors import UsageError
from triptych.method import Clock
from triptych.methods.lava import LAVA, LAVAConfig, paper, small
from triptych.recipe import validate

A = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
V = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
T = torch.tensor([[1.0, 0.0], [0.6, 0.8]])


class Bare(LAVA):
    """The objective alone: vectors are given."""

    given_vectors: dict[str, torch.Tensor]
    given_present: dict[str, torch.Tensor]

    def vectors(self, view: View) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return self.given_vectors, self.given_present


def _bare(a: torch.Tensor, v: torch.Tensor, t: torch.Tensor, told: list[bool] | None = None, **options: object) -> Bare:
    recipe, _ = tiny_lava("config.gather=none")
    method = Bare(recipe.config.model_copy(update={"temperature": 14.285, **options}))  # type: ignore[arg-type]
    method.given_vectors = {"audio": a, "video": v, "text": t}
    full = torch.ones(len(a), dtype=torch.bool)
    method.given_present = {"audio": full, "video": full, "text": torch.tensor(told) if told else full}
    return method


def _losses(method: Bare) -> dict[str, float]:
    batch = Batch(views=({},), rows=torch.arange(2))
    return {name: float(term.detach()) for name, term in method.objective(batch, Clock()).terms.items()}


def test_the_case_of_the_specification() -> None:
    method = _bare(A, V, T)
    expected = {"av": 11.455926, "at": 0.014789, "vt": 8.585790, "ac": 0.451700, "vc": 4.668903, "tc": 0.076423}
    assert _losses(method) == pytest.approx(expected, abs=1e-4)
    centroid = method.centroid(method.given_vectors, method.given_present)
    torch.testing.assert_close(centroid, torch.tensor([[0.9558, 0.2941], [0.7593, 0.6508]]), atol=1e-4, rtol=0)
    total = method.objective(Batch(views=({},), rows=torch.arange(2)), Clock()).total
    assert float(total.detach()) == pytest.approx(25.253532, abs=1e-4)


def test_equal_and_swapped_vectors() -> None:
    assert _losses(_bare(A, A, A))["av"] == pytest.approx(6.0e-7, abs=2e-7)
    assert _losses(_bare(A, A.flip(0), A))["av"] == pytest.approx(14.285, abs=1e-4)


def test_gradient_flows_through_the_centroid() -> None:
    a = A.clone().requires_grad_()
    method = _bare(a, V, T)
    method.objective(Batch(views=({},), rows=torch.arange(2)), Clock()).total.backward()
    whole = a.grad
    b = A.clone().requires_grad_()
    method = _bare(b, V, T)
    plain = method.centroid
    method.centroid = lambda *args: plain(*args).detach()  # type: ignore[method-assign]
    method.objective(Batch(views=({},), rows=torch.arange(2)), Clock()).total.backward()
    assert whole is not None and b.grad is not None and not torch.allclose(whole, b.grad)


def test_rows_without_a_title_are_left_out_of_every_term_with_text() -> None:
    three = [torch.cat([x, functional.normalize(torch.tensor([[0.3, -0.9]]), dim=1)]) for x in (A, V, T)]
    method = _bare(*three, told=[True, True, False])
    losses = _losses(method)
    both = _losses(_bare(A, V, T))
    assert losses["at"] == pytest.approx(both["at"], abs=1e-5) and losses["vt"] == pytest.approx(both["vt"], abs=1e-5)
    centroid = method.centroid(method.given_vectors, method.given_present)[2]
    torch.testing.assert_close(centroid, functional.normalize(three[0][2] + three[1][2], dim=0))


def test_a_batch_without_any_title_is_finite() -> None:
    method = _bare(A, V, T, told=[False, False])
    losses = _losses(method)
    assert losses["at"] == losses["vt"] == losses["tc"] == 0.0 and losses["av"] == pytest.approx(11.455926, abs=1e-4)


def test_pairs_and_centroid_are_options() -> None:
    assert set(_losses(_bare(A, V, T, pairs=("av", "vt"), centroid=False))) == {"av", "vt"}


def _view(batch: int = 5) -> tuple[LAVA, View]:
    recipe, _ = tiny_lava()
    config = recipe.config
    assert isinstance(config, LAVAConfig)
    torch.manual_seed(0)
    span = torch.zeros(batch, 2)
    video = torch.rand(batch, config.frames, config.size, config.size, 3)
    audio = torch.randn(batch, config.audio_steps, config.mels)
    text = torch.randint(4, config.vocabulary, (batch, config.text_steps))
    full = torch.full((batch,), 1)
    view = {
        "video": Clip(video, full * config.frames, span),
        "audio": Clip(audio, full * config.audio_steps, span),
        "text": Clip(text, full * 6, span),
    }
    return LAVA(config).eval(), view


def test_permuting_all_modalities_changes_no_loss_and_one_does() -> None:
    method, view = _view()
    order = torch.tensor([3, 0, 4, 1, 2])
    rows = torch.arange(5)

    def total(view: View) -> float:
        return float(method.objective(Batch(views=(view,), rows=rows), Clock()).total.detach())

    shuffled = {name: Clip(c.data[order], c.length[order], c.span[order]) for name, c in view.items()}
    assert total(shuffled) == pytest.approx(total(view), rel=1e-5)
    assert total({**view, "audio": shuffled["audio"]}) != pytest.approx(total(view), rel=1e-5)


def test_the_feature_token_is_last_and_not_among_the_tokens() -> None:
    method, view = _view()
    for stream, found in method.features(view).items():
        encoder = method.encoders[stream]
        count = encoder.grid[0] * encoder.grid[1] * encoder.grid[2]
        assert found.tokens.shape[1] == count and encoder.positions.shape[0] == count + 1
        assert found.special is not None
        torch.testing.assert_close(found.pooled, encoder.head(found.special[:, 0]))


def test_each_modality_stands_alone() -> None:
    method, view = _view()
    together = method.embed(view)["joint"]
    for stream in view:
        alone = method.embed({stream: view[stream]})["joint"]
        assert set(alone) == {stream}
        torch.testing.assert_close(alone[stream], together[stream])


def test_padding_takes_part_in_attention_unless_masked() -> None:
    method, view = _view()
    clip = view["text"]
    changed = Clip(clip.data.clone(), clip.length, clip.span)
    changed.data[:, 6:] = 5
    assert not torch.allclose(
        method.embed({"text": clip})["joint"]["text"], method.embed({"text": changed})["joint"]["text"]
    )
    masked = LAVA(method.options.model_copy(update={"mask_padding": True})).eval()
    torch.testing.assert_close(
        masked.embed({"text": clip})["joint"]["text"], masked.embed({"text": changed})["joint"]["text"]
    )


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        config = paper().config
        assert isinstance(config, LAVAConfig)
        method = LAVA(config)
    sizes = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in method.encoders.items()}
    assert sizes == {
        "audio": pytest.approx(27.0, abs=0.1),
        "video": pytest.approx(36.2, abs=0.1),
        "text": pytest.approx(47.9, abs=0.1),
    }
    assert sum(p.numel() for p in method.heads.parameters()) / 1e6 == pytest.approx(3.1, abs=0.1)
    grids = {name: encoder.grid for name, encoder in method.encoders.items()}
    assert grids == {"audio": (64, 1, 1), "video": (4, 8, 8), "text": (128, 1, 1)}


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Exception, match=r"tubelet .* does not divide"):
        validate(LAVAConfig, {"size": 30}, "x")


def test_one_frozen_sentence_vector_may_stand_for_the_text() -> None:
    recipe, _ = tiny_lava("config.sentence_width=12")
    method = LAVA(recipe.config)  # type: ignore[arg-type]
    clip = Clip(torch.randn(3, 1, 12), torch.ones(3, dtype=torch.long), torch.zeros(3, 2))
    assert method.embed({"text": clip})["joint"]["text"].shape == (3, 16)


def _small() -> tuple[LAVA, View]:
    recipe, _ = tiny_lava()
    config = small().config.model_copy(update={"vocabulary": recipe.config.vocabulary})  # type: ignore[attr-defined]
    _, view = _view()
    torch.manual_seed(0)
    return LAVA(config).eval(), view


def test_stems_yield_the_tokens_that_tubelets_and_patches_say() -> None:
    method, view = _small()
    for stream, count in (("video", 4 * 3 * 3), ("audio", 12)):
        assert method.encoder(stream)(view[stream].data).tokens.shape == (5, count, 128)
    with pytest.raises(UsageError, match="strides in time of audio_stem"):
        validate(LAVAConfig, {"audio_stem": [[8, 2, 2]]}, "x")
    with pytest.raises(UsageError, match="strides of video_stem"):
        validate(LAVAConfig, {"video_stem": [[8, 3]]}, "x")


def test_a_tubelet_of_a_stem_is_the_maximum_over_its_places() -> None:
    method, _ = _small()
    encoder = method.encoders["video"]
    maps = torch.arange(6 * 6, dtype=torch.float32).view(1, 6, 6, 1).expand(8, 6, 6, 96)
    encoder.stem.forward = lambda x: maps
    tokens = encoder.raw_tokens(torch.zeros(1, 8, 48, 48, 3))
    assert tokens.shape == (1, 36, 192)
    assert tokens[0, :9, 0].tolist() == [7, 9, 11, 19, 21, 23, 31, 33, 35]


def test_the_maximum_is_over_valid_tokens_and_the_feature_token() -> None:
    recipe, _ = tiny_lava("config.pool=max")
    encoder = LAVA(recipe.config).eval().encoders["text"]  # type: ignore[arg-type]
    tokens = torch.zeros(2, 25, 16)
    tokens[:, 5] = 9.0
    tokens[:, -1] = 1.0
    torch.testing.assert_close(encoder.finish(tokens, torch.tensor([6, 5])).pooled[0], encoder.head(tokens[0, 5]))
    torch.testing.assert_close(encoder.finish(tokens, torch.tensor([6, 5])).pooled[1], encoder.head(tokens[0, -1]))
