"""One contract over every method of the catalogue, on one decoded batch of the toy world."""

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from triptych import catalog
from triptych.batch import Batch
from triptych.data.loader import Loader
from triptych.data.text import Tokenizer
from triptych.media.collection import Rows
from triptych.method import Clock, Facts, Method
from triptych.model import model_tensors, read_model, write_model
from triptych.recipe import Recipe, validate
from triptych.toyworld.write import write_toyworld

ROWS = 8


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    manifest = write_toyworld(tmp_path_factory.mktemp("world"), recordings=ROWS, seed=5, workers=1, progress=False)
    return Rows.open(manifest)


def _complete(recipe: Recipe, rows: Rows) -> tuple[Recipe, Tokenizer | None]:
    tokenizer = None
    if recipe.tokenizer is not None:
        captions = [caption for caption in rows.column("caption") if caption]
        tokenizer = Tokenizer.train(captions, recipe.tokenizer)
    facts = Facts(
        vocabulary=tokenizer.vocabulary if tokenizer else None, classes=tuple(sorted(set(rows.column("kind"))))
    )
    return catalog.resolve(recipe.method).complete(recipe, facts), tokenizer


class Case:
    """A method, built small, and a batch for it."""

    def __init__(self, name: str, rows: Rows) -> None:
        recipe = importlib.import_module(catalog.CATALOG[name].target.split(":")[0]).small()
        self.name = name
        self.recipe, self.tokenizer = _complete(recipe, rows)
        loader = Loader(
            rows,
            self.recipe.train,
            self.recipe.batch.model_copy(update={"rows": ROWS, "accumulate": 1}),
            seed=0,
            tokenizer=self.tokenizer,
            targets={"kind": tuple(sorted(set(rows.column("kind"))))},
            workers=0,
            device="cpu",
        )
        batches: Iterator[Batch] = loader.epoch(0)
        self.batch = next(batches)

    def build(self, seed: int = 0) -> Method:
        torch.manual_seed(seed)
        method: Method = catalog.resolve(self.name)(self.recipe.config)
        return method.train()


@pytest.fixture(scope="module", params=list(catalog.CATALOG))
def case(request: pytest.FixtureRequest, rows: Rows) -> Case:
    return Case(request.param, rows)


def _step(case: Case, method: Method, seed: int = 1) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(seed)
    losses = method(case.batch, Clock())
    return losses.terms, losses.total


def test_terms_are_finite_scalars_with_names(case: Case) -> None:
    terms, total = _step(case, case.build())
    assert terms
    for name, term in terms.items():
        assert term.shape == () and term.isfinite(), name
        assert term.dtype == torch.float32, name
    assert total.isfinite()


def test_every_trainable_tensor_gets_a_gradient_and_no_other(case: Case) -> None:
    method = case.build()
    _step(case, method)[1].backward()
    grouped = {name for group in method.parameter_groups() for name in group.parameters}
    for name, parameter in method.named_parameters():
        if name in grouped:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_the_loss_falls(case: Case) -> None:
    method = case.build()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    values = []
    for step in range(8):
        optimizer.zero_grad()
        total = _step(case, method)[1]
        total.backward()
        optimizer.step()
        method.after_step(Clock(step=step))
        values.append(float(total.detach()))
    assert min(values[-2:]) < 0.9 * values[0], values


def test_same_seed_same_numbers(case: Case) -> None:
    first, second = _step(case, case.build())[1], _step(case, case.build())[1]
    assert torch.equal(first, second)


def test_a_model_survives_its_folder(case: Case, tmp_path: Path) -> None:
    method = case.build().eval()
    write_model(tmp_path / "model", method, case.recipe, case.tokenizer)
    again = read_model(tmp_path / "model")
    assert again.method.config == method.config
    for name, tensor in model_tensors(method).items():
        assert torch.equal(model_tensors(again.method)[name], tensor), name
    view = case.batch.views[0]
    with torch.inference_mode():
        before, after = method.features(view), again.method.features(view)
    assert before.keys() == after.keys() and before
    for stream in before:
        assert torch.equal(before[stream].pooled, after[stream].pooled)


def test_features_and_vectors_have_the_promised_form(case: Case) -> None:
    method, view = case.build().eval(), case.batch.views[0]
    with torch.inference_mode():
        for found in method.features(view).values():
            assert found.pooled.shape[0] == ROWS and found.pooled.ndim == 2
            assert found.tokens.ndim == 3 and found.length.shape == (ROWS,)
        spaces = method.embed(view)
    assert set(spaces) == set(method.spaces)
    for space, streams in spaces.items():
        for vectors in streams.values():
            assert len(vectors) == ROWS
            if method.spaces[space] == "cosine":
                assert torch.allclose(vectors.norm(dim=-1), torch.ones(ROWS), atol=1e-5)


def test_streams_that_are_not_required_may_be_absent(case: Case) -> None:
    method = case.build()
    specs = case.recipe.train.views[0]
    for stream, spec in specs.items():
        if spec.required or stream not in case.batch.views[0]:
            continue
        clip = case.batch.views[0][stream]
        for absent in (torch.arange(ROWS) < 3, torch.ones(ROWS, dtype=torch.bool)):
            emptied = type(clip)(clip.data, clip.length.masked_fill(absent, 0), clip.span, clip.times)
            views = ({**case.batch.views[0], stream: emptied}, *case.batch.views[1:])
            batch = Batch(views=views, rows=case.batch.rows, drawn=case.batch.drawn, targets=case.batch.targets)
            method.zero_grad()
            losses = method(batch, Clock())
            losses.total.backward()
            assert losses.total.isfinite(), stream
            assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters()), stream


@pytest.mark.parametrize("name", list(catalog.CATALOG))
@pytest.mark.parametrize("which", ["small", "base", "paper"])
def test_recipes_survive_yaml(name: str, which: str) -> None:
    module = importlib.import_module(catalog.CATALOG[name].target.split(":")[0])
    if not hasattr(module, which):
        assert name == "supervised", f"{name} lacks {which}()"  # it has no paper
        return
    recipe = getattr(module, which)()
    assert validate(Recipe, yaml.safe_load(recipe.to_yaml()), which) == recipe
