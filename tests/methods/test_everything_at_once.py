"""The checks of the specification (everything-at-once, section 10), with their numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from triptych.batch import Batch, Clip
from triptych.encoders.davenet import ResDAVEnet
from triptych.encoders.fusion import FusionTransformer, GatedUnit, TokenSet
from triptych.errors import TriptychError, UsageError
from triptych.layers.batch_norm import BatchNorm
from triptych.layers.pooling import masked_mean
from triptych.losses.contrastive import info_nce
from triptych.method import Clock, Facts
from triptych.methods.everything_at_once import SIDES, EverythingAtOnce, EverythingAtOnceConfig, paper, small

BATCH = 5


def _config(**changes: object) -> EverythingAtOnceConfig:
    sizes = {
        "video": ("two", "three"),
        "video_widths": (6, 4),
        "word_width": 7,
        "mels": 8,
        "audio_widths": (8, 8, 12),
        "audio_blocks": (2, 1),
        "width": 16,
        "heads": 2,
        "dim": 12,
    }
    return EverythingAtOnceConfig.model_validate(sizes | changes)


@pytest.fixture
def method() -> EverythingAtOnce:
    torch.manual_seed(0)
    return EverythingAtOnce(_config()).eval()


def _clip(data: Tensor, *length: int) -> Clip:
    kept = torch.tensor(length) if length else torch.full((len(data),), data.shape[1])
    return Clip(data, kept, torch.zeros(len(data), 2))


@pytest.fixture
def view() -> dict[str, Clip]:
    torch.manual_seed(1)
    return {
        "two": _clip(torch.randn(BATCH, 3, 6)),
        "three": _clip(torch.randn(BATCH, 3, 4)),
        "audio": _clip(torch.randn(BATCH, 16, 8), 16, 9, 16, 4, 16),
        "text": _clip(torch.randn(BATCH, 6, 7), 6, 0, 2, 6, 1),
    }


def _terms(method: EverythingAtOnce, view: dict[str, Clip]) -> dict[str, Tensor]:
    terms = method.objective(Batch((view,), torch.arange(BATCH)), Clock()).terms
    return {name: term.detach() for name, term in terms.items()}


def _take(view: dict[str, Clip], rows: list[int]) -> dict[str, Clip]:
    return {name: Clip(clip.data[rows], clip.length[rows], clip.span[rows]) for name, clip in view.items()}


# ------------------------------------------------------------------------------------------------ the loss by hand


def _both(similarity: Tensor, scale: float, margin: float = 0.0) -> float:
    one = torch.eye(len(similarity), dtype=similarity.dtype)
    return float(sum(info_nce(x, one, scale, margin=margin).mean() for x in (similarity, similarity.T)))


def test_both_directions_are_summed() -> None:
    similarity = torch.tensor([[0.8, 0.2], [0.1, 0.6]], dtype=torch.float64)
    assert _both(similarity, 1.0) == pytest.approx(0.913883, abs=1e-6)
    # Single precision makes it 1.93925e-4, as the specification has it.
    exact = (math.log1p(math.exp(-12)) + math.log1p(math.exp(-10))) / 2
    exact += (math.log1p(math.exp(-14)) + math.log1p(math.exp(-8))) / 2
    assert _both(similarity, 1 / 0.05) == pytest.approx(exact, rel=1e-9)
    assert _both(similarity.float(), 1 / 0.05) == pytest.approx(1.93925e-4, rel=1e-3)
    assert _both(similarity, 1.0, margin=0.001) == pytest.approx(0.914616, abs=1e-6)


def test_equal_orthonormal_vectors() -> None:
    same = torch.eye(4, dtype=torch.float64)
    assert _both(same, 1 / 0.05) == pytest.approx(2 * math.log1p(3 * math.exp(-20)), rel=1e-6)
    assert _both(same, 1 / 0.05) == pytest.approx(1.2367e-8, rel=1e-4)


def test_equal_terms_give_their_value_whatever_the_weights(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    losses = method.objective(Batch((view,), torch.arange(BATCH)), Clock())
    assert losses.weights == pytest.approx(
        {"tv": 1 / 1.5, **dict.fromkeys(["ta", "va", "t_va", "v_ta", "a_tv"], 0.1 / 1.5)}
    )
    equal = replace(losses, terms=dict.fromkeys(losses.terms, torch.tensor(3.0)))
    assert float(equal.total) == pytest.approx(3.0)
    less = EverythingAtOnce(_config(weights={"tv": 3.0, "va": 1.0, "ta": 0.0}))
    found = less.objective(Batch((view,), torch.arange(BATCH)), Clock())
    assert found.weights == {"tv": 0.75, "va": 0.25}
    without_text = {name: clip for name, clip in view.items() if name != "text"}
    alone = method.objective(Batch((without_text,), torch.arange(BATCH)), Clock())
    assert alone.weights == {"va": 1.0}
    with pytest.raises(UsageError, match="needs two of text, audio and video features"):
        method.objective(Batch(({"audio": view["audio"]},), torch.arange(BATCH)), Clock())


def test_the_margin_form_has_no_temperature(view: dict[str, Clip]) -> None:
    found = []
    for temperature in (0.05, 1.0):
        torch.manual_seed(0)
        method = EverythingAtOnce(_config(loss="mms", temperature=temperature)).eval()
        found.append(_terms(method, view)["va"].item())
    vectors = {name: vector.detach() for name, vector in method.vectors(view)[0].items()}
    cosine = nn.functional.cosine_similarity(vectors["v"][:, None], vectors["a"][None], dim=2)
    assert found[0] == found[1] == pytest.approx(_both(cosine, 1.0, margin=0.001), abs=1e-5)


# ------------------------------------------------------------------------------------------------ sets of tokens


def test_the_order_of_tokens_and_what_is_masked_do_not_matter(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    sets = {name: method.fusion.fill(found) for name, found in method.token_sets(view).items()}
    before = method._project(sets)
    for name in sets:
        order = torch.randperm(sets[name].tokens.shape[1])
        shuffled = TokenSet(sets[name].tokens[:, order], sets[name].mask[:, order])
        garbage = TokenSet(
            torch.cat([shuffled.tokens, torch.full((BATCH, 2, 16), 1e3)], dim=1),
            torch.cat([shuffled.mask, torch.zeros(BATCH, 2, dtype=torch.bool)], dim=1),
        )
        for changed in (shuffled, garbage):
            after = method._project({**sets, name: changed})
            for other, vectors in before.items():
                torch.testing.assert_close(after[other], vectors, atol=1e-5, rtol=0)


def test_the_order_of_the_modalities_does_not_matter(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    sets = {name: method.fusion.fill(found) for name, found in method.token_sets(view).items()}
    one = method._project({name: sets[name] for name in ("text", "video")})
    other = method._project({name: sets[name] for name in ("video", "text")})
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=0)


def test_a_row_without_tokens_gets_the_masking_token() -> None:
    fusion = FusionTransformer(8, 2)
    found = TokenSet(torch.randn(2, 3, 8), torch.tensor([[False, False, False], [False, True, False]]))
    filled = fusion.fill(found)
    assert filled.mask.tolist() == [[True, False, False], [False, True, False]]
    assert torch.equal(filled.tokens[0, 0], fusion.masking_token) and torch.equal(filled.tokens[1], found.tokens[1])
    assert found.mask.sum() == 1, "the caller's mask was changed"
    assert not fusion.masking_token.requires_grad


def test_a_gated_unit_gates_value_by_value() -> None:
    unit = GatedUnit(3, 4)
    x = torch.randn(2, 5, 3)
    h = unit.linear(x)
    torch.testing.assert_close(unit(x), h * torch.sigmoid(unit.gate(h)))


def test_means_leave_out_what_is_masked_even_if_it_is_no_number() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [math.nan]], [[math.nan], [math.nan], [math.nan]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(tokens, mask).tolist() == [[2.0], [0.0]]


# ------------------------------------------------------------------------------------------------ what a row lacks


def test_what_an_absent_text_says_changes_nothing(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    """Row 1 has no text: neither its vectors without text nor the loss nor a gradient depend on its text's values."""
    other = view["text"].data.clone()
    other[1] = 9.0
    found = []
    for data in (view["text"].data, other):
        changed = {**view, "text": replace(view["text"], data=data)}
        method.zero_grad()
        losses = method.objective(Batch((changed,), torch.arange(BATCH)), Clock())
        losses.total.backward()
        gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        vectors, present = method.vectors(changed)
        found.append((losses.terms, gradients, {name: vectors[name][1] for name in ("v", "a", "va")}))
        assert present["t"].tolist() == [True, False, True, True, True] == present["ta"].tolist()
    assert found[0][1].keys() == {name for name, _ in method.named_parameters()}
    for first, second in zip(*found, strict=True):
        for name, value in first.items():
            assert torch.equal(value, second[name]), name


def test_a_row_without_text_takes_part_in_no_term_with_text(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    whole, less = _terms(method, view), _terms(method, _take(view, [0, 2, 3, 4]))
    for name in SIDES:
        if name == "va":
            assert abs(float(whole[name] - less[name])) > 1e-3
        else:
            torch.testing.assert_close(whole[name], less[name], atol=1e-5, rtol=0)


def test_a_batch_without_any_text_teaches_the_others(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    silent = {**view, "text": replace(view["text"], length=torch.zeros(BATCH, dtype=torch.long))}
    losses = method.objective(Batch((silent,), torch.arange(BATCH)), Clock())
    assert {name for name, term in losses.terms.items() if term != 0} == {"va"}
    losses.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_sound_alone_has_nine_vectors(view: dict[str, Clip]) -> None:
    method = EverythingAtOnce(_config(late=True)).eval()
    nothing = torch.zeros(BATCH, dtype=torch.long)
    alone = {name: clip if name == "audio" else replace(clip, length=nothing) for name, clip in view.items()}
    spaces = method.embed(alone)
    assert set(spaces["joint"]) == set(spaces["late"])
    assert set(spaces["joint"]) == {"text", "two+three", "audio", "text+two+three", "text+audio", "two+three+audio"}
    for vectors in (vectors for space in spaces.values() for vectors in space.values()):
        assert vectors.isfinite().all()
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(BATCH))
    assert not torch.allclose(spaces["joint"]["text+audio"], spaces["late"]["text+audio"], atol=1e-3)
    late = spaces["late"]["text"] + spaces["late"]["audio"]
    torch.testing.assert_close(spaces["late"]["text+audio"], nn.functional.normalize(late, dim=1))


def test_video_needs_all_of_its_streams(method: EverythingAtOnce, view: dict[str, Clip]) -> None:
    assert set(method.embed({"two": view["two"], "audio": view["audio"]})["joint"]) == {"audio"}
    less = {**view, "three": replace(view["three"], length=torch.tensor([3, 0, 2, 3, 3]))}
    assert method.token_sets(less)["video"].mask.sum(dim=1).tolist() == [3, 0, 2, 3, 3]
    # A batch of which no row has the stream comes without a width.
    for width in (0, 1):
        lacking = Clip(torch.zeros(BATCH, width, width), torch.zeros(BATCH, dtype=torch.long), view["two"].span)
        none = {**view, "three": lacking}
        assert not method.token_sets(none)["video"].present.any()
        assert all(vectors.isfinite().all() for vectors in method.embed(none)["joint"].values())
    wrong = {**view, "three": _clip(torch.randn(BATCH, 3, 5))}
    with pytest.raises(TriptychError, match="Vectors of 'three' have 5 values; the model was made for 4"):
        method.token_sets(wrong)


# ------------------------------------------------------------------------------------------------ the audio network


@pytest.mark.parametrize(("steps", "tokens"), [(768, 12), (3072, 48), (4608, 72), (256, 4), (65, 2)])
def test_sixty_four_steps_are_a_token(steps: int, tokens: int) -> None:
    with torch.device("meta"):
        found = ResDAVEnet()(torch.zeros(1, steps, 40))
    assert found.tokens.shape == (1, tokens, 4096) and found.grid == (tokens, 1, 1)


def test_a_token_is_valid_if_any_of_its_steps_is() -> None:
    network = ResDAVEnet(4, (4,) * 7, (1,) * 6).eval()
    found = network(torch.randn(4, 256, 4), torch.tensor([100, 256, 65, 0]))
    assert found.length.tolist() == [2, 4, 2, 0]
    torch.testing.assert_close(found.pooled[0], found.tokens[0, :2].mean(dim=0))
    assert not found.pooled[3].any()
    assert len(network(torch.randn(1, 64, 4), layers=True).layers or ()) == 6


def test_convolutions_begin_as_the_authors_do() -> None:
    torch.manual_seed(0)
    network = ResDAVEnet(40, (64, 64), (1,))
    assert float(network.project.weight.detach().std()) == pytest.approx(math.sqrt(2 / (40 * 64)), rel=0.05)
    convolution = network.get_submodule("blocks.0.0.conv2")
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is None
    assert float(convolution.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.05)


def test_moments_can_be_frozen(view: dict[str, Clip]) -> None:
    method = EverythingAtOnce(_config(frozen_moments=True)).train()
    assert method.training and not any(m.training for m in method.modules() if isinstance(m, BatchNorm))
    before = method.davenet.norm.running_mean.clone()
    method.objective(Batch((view,), torch.arange(BATCH)), Clock()).total.backward()
    assert torch.equal(method.davenet.norm.running_mean, before)
    assert method.davenet.norm.weight.grad is not None and method.davenet.norm.weight.grad.any()


# ------------------------------------------------------------------------------------------------ sizes and recipes


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({}, 689.4),
        ({"video": ("clip",), "video_widths": (512,), "word_width": 512}, 675.6),
        ({"video": ("s3d",), "video_widths": (1024,)}, 676.8),
    ],
)
def test_published_sizes(changes: dict[str, object], millions: float) -> None:
    with torch.device("meta"):
        method = EverythingAtOnce(EverythingAtOnceConfig.model_validate(changes))

    def count(*modules: nn.Module) -> float:
        return sum(p.numel() for module in modules for p in module.parameters()) / 1e6

    left_out = (method.fusion.masking_token.numel() + 2 * 4096 + 2) / 1e6  # the constant, and two dead norms
    assert round(count(method) + left_out, 1) == millions
    assert round(count(method.davenet), 1) == 314.7 and round(count(method.fusion), 1) == 100.7
    assert [round(count(head), 1) for head in method.heads.values()] == [62.9] * 3


def test_the_data_say_widths_and_words() -> None:
    facts = Facts(vocabulary=50, widths={"resnet152": 12, "resnext101": 10, "text": 5})
    found = EverythingAtOnce.complete(paper(), facts).config
    assert isinstance(found, EverythingAtOnceConfig)
    assert (found.video_widths, found.vocabulary, found.word_width) == ((12, 10), 50, 5)
    unknown = EverythingAtOnce.complete(small(), Facts(vocabulary=9)).config
    assert isinstance(unknown, EverythingAtOnceConfig) and unknown.video_widths == (128,)


def test_what_features_run_through(method: EverythingAtOnce) -> None:
    assert method.backbone("audio") == [method.davenet, method.tokens["audio"], method.fusion]
    assert method.backbone("two+three") == [method.tokens["video"], method.fusion]
    assert method.width("audio") == 16 and method.encoder("audio") is method.davenet
    with pytest.raises(UsageError, match=r"has features of text, two\+three, audio, not of 'two\+audio'"):
        method.backbone("two+audio")
    with pytest.raises(UsageError, match="has no encoder of 'two': it reads it as precomputed vectors"):
        method.encoder("two")


def test_words_are_looked_up_in_a_table_that_a_file_fills() -> None:
    method = EverythingAtOnce(_config(vocabulary=5)).eval()
    table = torch.randn(5, 7)
    method.take_words(table)
    assert "words.weight" in method.state_dict() and "words.weight" not in dict(method.named_parameters())
    ids = torch.tensor([[4, 1, 0]])
    vectors = EverythingAtOnce(_config()).eval()
    vectors.load_state_dict({name: x for name, x in method.state_dict().items() if name != "words.weight"})
    one = method.embed({"text": Clip(ids, torch.tensor([2]), torch.zeros(1, 2))})["joint"]["text"]
    other = vectors.embed({"text": Clip(table[ids], torch.tensor([2]), torch.zeros(1, 2))})["joint"]["text"]
    torch.testing.assert_close(one, other)
    learned = EverythingAtOnce(_config(vocabulary=5, frozen_words=False))
    assert "words.weight" in dict(learned.named_parameters())


def test_sizes_that_do_not_fit_are_told() -> None:
    for changes, message in (
        ({"video": ("one",)}, "video has 1 streams, video_widths 2"),
        ({"audio_blocks": (1,)}, "one entry for the first layer and one for each stage"),
        ({"heads": 3}, "heads 3 does not divide width 16"),
        ({"weights": {"tv": 0.0}}, "weights must not be below 0, and one must be above"),
    ):
        with pytest.raises(ValueError, match=message):
            _config(**changes)
