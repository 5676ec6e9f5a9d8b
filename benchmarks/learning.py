"""Does each method learn? Every ``small()`` on the same toy world, beside random weights and the supervised line.

For each method: pretraining without labels for some minutes; then the linear probe that its file names (``PROBE``:
stream and label column, fixed before any run) of its frozen features, of the same network with random weights, and of
the same encoder trained with the labels of all training recordings; and, where it has a joint space, retrieval. Probes
learn from the labels of 480 recordings; 240 unseen ones are tested.

    python benchmarks/learning.py --out DIR [--world DIR] [--methods lava,vatt] [--minutes 5] [--seed 0]

What is in DIR already is used, so an interrupted benchmark goes on. The table goes to docs/learning.md.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from triptych import api, catalog
from triptych.demo import LABELLED
from triptych.evaluation.evaluator import Score
from triptych.media.collection import Rows
from triptych.methods.supervised import like

HEAD = "| method | probe | pretrained | random | supervised | chance | retrieval, R@1 | random | chance |"


def trained(run: Path, *arguments: object, **options: object) -> Path:
    """Train a run, or go on with it; return its folder."""
    if not (run / "model").is_dir():
        if (run / "recipe.json").is_file():
            api.resume(run)
        else:
            api.pretrain(*arguments, out=run, **options)  # type: ignore[arg-type]
    return run


def source_of(name: str, rows: Rows, out: Path) -> Rows:
    """Return what a method learns from: the world, with what it needs beside."""
    return rows


def line(name: str, rows: Rows, out: Path, minutes: float, seed: int) -> dict[str, dict[str, Score]]:
    """Return the scores of one method by whoever was measured."""
    stream, label = sys.modules[catalog.resolve(name).__module__].PROBE
    source = source_of(name, rows, out)
    sets = [f"seed={seed}"]
    run = trained(out / name, source, name, recipe="small", assignments=sets, minutes=minutes)
    twin = like(name, (stream,), label)
    upper = trained(
        out / f"{name}-supervised", source, "supervised", recipe=twin, assignments=sets, minutes=minutes, label=label
    )
    splits = source.column("split")
    learned = [number for number, split in enumerate(splits) if split == "train"][:LABELLED]
    unseen = [number for number, split in enumerate(splits) if split == "test"]
    probed = source.select([*learned, *unseen])
    found: dict[str, dict[str, Score]] = {}
    for who, model in (("pretrained", run), ("supervised", upper)):
        results = api.evaluate(model, probed, ["probe"], label=label, streams=[stream], baseline=False, seed=seed)
        found[who] = results.scores[str(model)]
        found.setdefault(
            "random", next(iter(s for name, s in results.scores.items() if name.startswith("random:")), {})
        )
    if api.open_model(run).method.spaces:
        results = api.evaluate(run, source, ["retrieval"], baseline=False, seed=seed)
        for who, scores in results.scores.items():
            found["random" if who.startswith("random:") else "pretrained"] |= scores
    return found


def show(score: Score | None) -> str:
    return "-" if score is None else f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"


def render(name: str, found: dict[str, dict[str, Score]]) -> str:
    """Return the lines of the table of one method."""
    probe = next(score for score in found["pretrained"] if score.startswith("probe"))
    pairs = [score for score in found["pretrained"] if score.startswith("retrieval") and score.endswith("R@1")]
    stream, label = sys.modules[catalog.resolve(name).__module__].PROBE
    chance = found["pretrained"][probe].chance
    cells = [name, f"{label} from {stream}", *(show(found[who].get(probe)) for who in ("pretrained", "random"))]
    cells += [show(found["supervised"].get(probe)), f"{chance:.1f}"]
    lines = []
    for pair in pairs or [None]:
        if pair is None:
            lines.append([*cells, "no joint space", "-", "-"])
        else:
            score = found["pretrained"][pair]
            what = pair.removeprefix("retrieval ").removesuffix(" R@1")
            ends = [f"{what}: {show(score)}", show(found["random"].get(pair)), f"{score.chance:.1f}"]
            lines.append([*(cells if not lines else [""] * len(cells)), *ends])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", type=Path)
    known = [name for name in catalog.CATALOG if hasattr(importlib.import_module(_module(name)), "PROBE")]
    parser.add_argument("--methods", default=",".join(known))
    parser.add_argument("--minutes", type=float, default=4.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = options.world or options.out / "world"
    manifest = world / "probed.csv"
    if not manifest.exists():
        api.open_source(api.write_toyworld(world)).save(manifest)
    rows = Rows.open(manifest)
    print(HEAD)
    print("|---|---|---:|---:|---:|---:|---|---:|---:|", flush=True)
    for name in options.methods.split(","):
        kept = options.out / f"{name}.json"
        if not kept.exists():
            found = line(name, rows, options.out, options.minutes, options.seed)
            kept.write_text(json.dumps({who: {n: vars(s) for n, s in one.items()} for who, one in found.items()}))
        stored = json.loads(kept.read_text())
        print(render(name, {who: {n: Score(**s) for n, s in one.items()} for who, one in stored.items()}), flush=True)


def _module(name: str) -> str:
    return catalog.CATALOG[name].target.partition(":")[0]


if __name__ == "__main__":
    main()
