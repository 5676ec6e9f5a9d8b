"""One contract over every method of the catalogue, on one decoded batch of the toy world (and see ``test_house``)."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import in_two_processes
from tests.vectors import with_vectors
from triptych import catalog, distributed
from triptych.api import measures, runs, sources
from triptych.batch import Batch, Clip, View
from triptych.data.loader import Loader
from triptych.data.targets import LabelsBySecond, OneLabel
from triptych.data.text import Tokenizer
from triptych.media.collection import Rows
from triptych.method import Clock, Method
from triptych.methods.supervised import Finetuned, Supervised, SupervisedConfig
from triptych.model import model_tensors, read_model, write_model
from triptych.recipe import Recipe, validate
from triptych.toyworld.write import write_toyworld
from triptych.training import loop, parallel

ROWS = 8


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    manifest = write_toyworld(tmp_path_factory.mktemp("world"), recordings=ROWS, seed=5, workers=1, progress=False)
    return with_vectors(Rows.open(manifest))


@dataclass
class Case:
    """A method, built small, and a batch for it."""

    name: str
    recipe: Recipe
    tokenizer: Tokenizer | None
    batch: Batch

    @classmethod
    def of(cls, name: str, rows: Rows) -> "Case":
        small = importlib.import_module(catalog.CATALOG[name].target.split(":")[0]).small()
        label = getattr(small.config, "label", "kind")
        target = (LabelsBySecond if rows.column(label)[0].startswith("[") else OneLabel).find(rows, label)
        recipe, tokenizer = sources.complete(small, rows, target.classes)
        loader = Loader(
            rows,
            recipe.train,
            recipe.batch.model_copy(update={"rows": ROWS, "accumulate": 1}),
            seed=0,
            tokenizer=tokenizer,
            targets={label: target},
            workers=0,
            device="cpu",
        )
        return cls(name, recipe, tokenizer, next(loader.epoch(0)))

    @property
    def view(self) -> View:
        """The first view, of a grid its first window: what all but the objective see."""
        view = self.batch.views[0]
        first = {s: Clip(c.data[:, 0], c.length[:, 0], c.span[:, 0]) for s, c in view.items() if c.length.ndim == 2}
        return view | first

    def build(self, seed: int = 0) -> Method:
        torch.manual_seed(seed)
        method: Method = catalog.resolve(self.name)(self.recipe.config)
        return method.train()


@pytest.fixture(scope="module")
def cases(rows: Rows) -> dict[str, Case]:
    return {name: Case.of(name, rows) for name in catalog.CATALOG}


@pytest.fixture(params=list(catalog.CATALOG))
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def _take(batch: Batch, places: Sequence[int] | Tensor) -> Batch:
    """Return these rows of a batch."""
    at = torch.as_tensor(places)

    def cut(clip: Clip) -> Clip:
        return Clip(clip.data[at], clip.length[at], clip.span[at], None if clip.times is None else clip.times[at])

    return Batch(
        views=tuple({stream: cut(clip) for stream, clip in view.items()} for view in batch.views),
        rows=batch.rows[at],
        drawn={name: value[at] for name, value in batch.drawn.items()},
        targets={name: value[at] for name, value in batch.targets.items()},
    )


def _step(case: Case, method: Method, seed: int = 1, epoch: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(seed)
    losses = method(case.batch, Clock(epoch=epoch))
    return losses.terms, losses.total


def test_terms_are_finite_scalars_with_names(case: Case) -> None:
    terms, total = _step(case, case.build())
    assert terms
    for name, term in terms.items():
        assert term.shape == () and term.isfinite(), name
        assert term.dtype == torch.float32, name
    assert total.isfinite()


def _train(case: Case, method: Method, steps: int) -> list[float]:
    """Take some steps on the one batch; return the losses."""
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    values = []
    for step in range(steps):
        optimizer.zero_grad()
        total = _step(case, method)[1]
        total.backward()
        optimizer.step()
        method.after_step(Clock(step=step))
        values.append(float(total.detach()))
    return values


def test_every_trainable_tensor_gets_a_gradient_and_no_other(case: Case) -> None:
    method = case.build()
    _train(case, method, steps=2)  # gates that begin at zero let nothing through in the first step
    method.zero_grad()
    for epoch in range(2):  # a method may train its parts in turn
        _step(case, method, epoch=epoch)[1].backward()
    grouped = Counter(name for group in method.parameter_groups() for name in group.parameters)
    assert set(grouped.values()) == {1}, "a parameter is in two groups"
    for name, parameter in method.named_parameters():
        assert parameter.requires_grad is (name in grouped), name
        if name in grouped:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_the_loss_falls(case: Case) -> None:
    values = _train(case, case.build(), steps=8)
    assert min(values[-2:]) < 0.9 * values[0], values


def test_same_seed_same_numbers(case: Case) -> None:
    found = []
    for _ in range(2):
        method = case.build()
        terms, total = _step(case, method)
        total.backward()
        found.append(terms | {name: p.grad for name, p in method.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_a_model_survives_its_folder(case: Case, tmp_path: Path) -> None:
    method = case.build().eval()
    write_model(tmp_path / "model", method, case.recipe, case.tokenizer)
    again = read_model(tmp_path / "model")
    assert again.method.config == method.config
    for name, tensor in model_tensors(method).items():
        assert torch.equal(model_tensors(again.method)[name], tensor), name
    view = case.view
    with torch.inference_mode():
        before, after = method.features(view), again.method.features(view)
    assert before.keys() == after.keys() and before
    for stream in before:
        assert torch.equal(before[stream].pooled, after[stream].pooled)


def test_features_and_vectors_have_the_promised_form(case: Case) -> None:
    method, view = case.build().eval(), case.view
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


class Served(Loader):
    """The rows of one decoded batch, four a step, in the order of the epoch; a sweep decodes."""

    batch: ClassVar[Batch]  # type: ignore[assignment]

    def __init__(self, rows: Rows, *arguments: Any, **options: Any) -> None:
        self.rows, self.device = rows, torch.device("cpu")
        self.problems: list[tuple[str, str]] = []
        self.inner = Loader(rows, *arguments, **options | {"workers": 0})

    def steps(self, order: Tensor | None = None) -> int:
        return ROWS // 4

    def epoch(self, epoch: int, order: Tensor | None = None, skip: int = 0) -> Iterator[Batch]:
        places = {int(row): place for place, row in enumerate(Served.batch.rows)}
        shuffled = Served.batch.rows[torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))]
        chosen = [places[int(row)] for row in (shuffled if order is None else order)]
        for number in range(skip, len(chosen) // 4):
            yield _take(Served.batch, chosen[4 * number : 4 * number + 4])

    def sweep(self, rows: Any = None, batch_rows: int = 32) -> Iterator[Batch]:
        yield from self.inner.sweep(rows, batch_rows)

    def close(self) -> None:
        pass


def test_a_run_goes_on_exactly_in_the_middle_of_an_epoch(
    case: Case, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Loader", Served)
    monkeypatch.setattr(Served, "batch", case.batch, raising=False)
    rounds = min(case.recipe.rounds, 2)
    changes = {"batch": {"rows": 4}, "steps": 3, "epochs": None, "checkpoint_steps": 1, "keep": 9, "log_steps": 1}
    recipe = validate(Recipe, case.recipe.model_dump() | changes | {"rounds": rounds}, case.name)

    def train(out: Path) -> dict[str, Tensor]:
        # Another seed after a restart: the start must come from the checkpoint, every draw from the place in the run.
        method = case.build(seed=0 if out.name == "whole" else 1)
        return load_file(loop.fit(method, recipe, rows, out, case.tokenizer) / "model.safetensors")

    wanted = train(tmp_path / "whole")
    kept = loop.checkpoint.find(tmp_path / "whole")
    assert [int(folder.name[-1]) for folder in kept] == list(range(3 * rounds + 1))
    # The beginning, in the middle, and at the end of the first epoch; then in the middle of the second round.
    for step in (0, 1, 2) if rounds == 1 else (0, 1, 2, 4):
        (tmp_path / str(step) / "checkpoints").mkdir(parents=True)
        (tmp_path / str(step) / "checkpoints" / kept[step].name).symlink_to(kept[step])
        found = train(tmp_path / str(step))
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (step, name)


def _seen_together(rank: int, world: int, case: Case, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return terms and gradients of a rank's share of the batch, under the given draws.

    In double precision: a rounding difference at the kink of a ReLU is a jump in the gradient.
    """
    method = case.build().double()
    module = parallel.wrap(method, "ddp", torch.device("cpu"))
    mine = torch.arange(ROWS).tensor_split(world)[rank]
    given = {name: value[mine] if value.ndim and len(value) == ROWS else value for name, value in draws.items()}
    with method.given(given):
        losses = module(_double(_take(case.batch, mine)), Clock())
    losses.total.backward()
    found = {f"loss {name}": distributed.average(term) for name, term in losses.terms.items()}
    return found | {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


def _double(batch: Batch) -> Batch:
    def wide(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    views = tuple({s: replace(clip, data=wide(clip.data)) for s, clip in view.items()} for view in batch.views)
    return replace(batch, views=views)


def _all_methods(rank: int, cases: dict[str, Case], draws: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    return {name: _seen_together(rank, 2, case, draws[name]) for name, case in cases.items()}


def _draws(case: Case) -> dict[str, Tensor]:
    """Return what the method draws for the whole batch, by name."""
    method, found = case.build(), {}
    inner: Callable[..., Tensor] = method.draw

    def draw(name: str, sample: Callable[[], Tensor], shared: bool = False) -> Tensor:
        found[name] = inner(name, sample, shared)
        return found[name]

    method.draw = draw  # type: ignore[method-assign]
    _step(case, method)
    return found


@pytest.fixture(scope="module")
def together(cases: dict[str, Case]) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, dict[str, Tensor]]]]:
    draws = {name: _draws(case) for name, case in cases.items()}
    return draws, in_two_processes(_all_methods, cases, draws)


def test_two_processes_see_together_what_one_does(case: Case, together: tuple[Any, Any]) -> None:
    draws, ranks = together
    alone = _seen_together(0, 1, case, draws[case.name])
    scale = max(float(value.abs().max()) for name, value in alone.items() if not name.startswith("loss"))
    for found in (rank[case.name] for rank in ranks):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            allowed = 1e-5 * (float(value.abs()) if name.startswith("loss") else scale)
            assert float((found[name] - value).abs().max()) <= allowed, name


def test_a_head_trains_all_that_the_features_run_through(case: Case) -> None:
    if issubclass(catalog.resolve(case.name), Finetuned):
        return  # it is a head itself
    method, view = case.build(), {name: clip.first() for name, clip in case.batch.views[0].items()}
    with torch.inference_mode():
        found = [stream for stream in method.eval().features(view) if stream != "text"]
    fused = [stream for stream in found if set("+".join(found).split("+")) == set(stream.split("+"))]
    classes = tuple(map(str, range(int(case.batch.targets["kind"].max()) + 1)))
    sizes = {"base": case.name, "base_config": case.recipe.config, "classes": classes, "label": "kind"}
    head = Supervised(SupervisedConfig(streams=tuple(fused or found), **sizes)).train()
    head.begin_with(method.state_dict(), case.name)
    kept = head.base.state_dict()
    assert kept and all(torch.equal(tensor, method.state_dict()[name]) for name, tensor in kept.items())
    batch = replace(case.batch, views=(view,))
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        head(batch, Clock()).total.backward()
        optimizer.step()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert sum(len(group.parameters) for group in head.parameter_groups()) == len(list(head.parameters()))


def test_streams_that_are_not_required_may_be_absent(case: Case) -> None:
    method = case.build()
    specs = case.recipe.train.views[0]
    for stream, spec in specs.items():
        if spec.required or stream not in case.batch.views[0]:
            continue
        clip = case.batch.views[0][stream]
        less = []
        for absent in (torch.arange(ROWS) < 3, torch.ones(ROWS, dtype=torch.bool)):
            there = ~absent.view(-1, *[1] * (clip.length.ndim - 1))
            emptied = type(clip)(clip.data, clip.length * there, clip.span, clip.times)
            less.append({**case.batch.views[0], stream: emptied})
        without = {name: clip for name, clip in case.batch.views[0].items() if name != stream}
        for view in [*less, *([without] if without else [])]:
            batch = replace(case.batch, views=(view, *case.batch.views[1:]))
            method.zero_grad()
            losses = method(batch, Clock())
            losses.total.backward()
            assert losses.total.isfinite(), stream
            assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters()), stream


def test_each_stream_is_answered_for_by_itself(case: Case) -> None:
    method, view = case.build().eval(), case.view
    with torch.inference_mode():
        whole, spaces = method.features(view), method.embed(view)
        for stream in view:
            if stream not in whole:
                continue
            only = method.features({stream: view[stream]})
            assert torch.allclose(only[stream].pooled, whole[stream].pooled, atol=1e-5), stream
            assert not (set(view) - {stream}) & set(only)
            for space, streams in method.embed({stream: view[stream]}).items():
                assert set(streams) <= {stream}, space
                for name, vectors in streams.items():
                    assert torch.allclose(vectors, spaces[space][name], atol=1e-5), (space, name)


@pytest.mark.parametrize("name", list(catalog.CATALOG))
@pytest.mark.parametrize("which", ["small", "base", "paper"])
def test_recipes_survive_yaml(name: str, which: str) -> None:
    module = importlib.import_module(catalog.CATALOG[name].target.split(":")[0])
    if not hasattr(module, which):
        assert name == "supervised", f"{name} lacks {which}()"  # it has no paper
        return
    recipe = getattr(module, which)()
    assert validate(Recipe, yaml.safe_load(recipe.to_yaml()), which) == recipe


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["lava"])
def test_training_beats_random_weights(name: str, tmp_path: Path) -> None:
    """In retrieval between words and each other stream, beyond both intervals; for all methods by ``make bench``."""
    world = write_toyworld(tmp_path / "world", recordings=600, seed=1, difficulty=0.3, progress=False)
    runs.pretrain(world, name, tmp_path / "run", "small", ["steps=200"])
    results = measures.evaluate(tmp_path / "run", world, ["retrieval"], baseline=False)
    learnt, random = results.scores[str(tmp_path / "run")], results.scores[f"random:{name}"]
    for stream in ("audio", "video"):
        for key in (f"retrieval text to {stream} R@5", f"retrieval {stream} to text R@5"):
            assert learnt[key].low > random[key].high, key
