"""Does gradient harmonization help, or harm? VATT ``small`` on the toy world by each mode of the rule, steps alike.

For each mode: how often the gradients of the two terms conflicted, how many steps were kept, the gradients' cosine
before and after, retrieval among the test recordings, and the linear probe that VATT's file names. ``none`` is plain.

    python benchmarks/harmonization.py --out DIR --world DIR [--modes none,realign,curriculum,both] [--steps 800]
        [--minutes M] [--seed 0]

WORLD holds the toy world's manifest, probed (``probed.csv``) or not. With ``--minutes`` each mode gets so much time,
and as many steps as it then takes. What is in DIR already is used, so an interrupted benchmark goes on.
"""

import argparse
import json
from pathlib import Path

from triptych import api
from triptych.demo import LABELLED
from triptych.evaluation.evaluator import Score
from triptych.media.collection import Rows
from triptych.methods.vatt import PROBE

PAIRS = ("va: audio to video", "va: video to audio", "vat: text to video", "vat: video to text")


def run_of(mode: str, rows: Rows, options: argparse.Namespace) -> Path:
    """Return the run of a mode, trained or gone on with."""
    run: Path = options.out / f"{mode}-{options.seed}"
    if (run / "model").is_dir():
        return run
    if (run / "recipe.json").is_file():
        api.resume(run)
        return run
    sets = ["gradients.rule=harmonize", f"gradients.options={{mode: {mode}}}", f"seed={options.seed}"]
    sets += [] if options.minutes else [f"steps={options.steps}"]
    api.pretrain(rows, "vatt", run, "small", sets, minutes=options.minutes)
    return run


def agreement(run: Path) -> str:
    """Return what the log tells of the gradients, as means over its lines."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    cells = []
    for name in ("conflict", "kept", "cosine.va.vt", "cosine_after.va.vt"):
        values = [line[name] for line in lines if name in line]
        cells.append(f"{sum(values) / len(values):.3f}")
    return " | ".join([str(lines[-1]["step"]), *cells])


def show(score: Score) -> str:
    return f"{score.value:.1f} [{score.low:.1f}, {score.high:.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", type=Path, required=True)
    parser.add_argument("--modes", default="none,realign,curriculum,both")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    manifest = options.world / "probed.csv"
    if not manifest.exists():
        api.open_source(options.world / "manifest.csv").save(manifest)
    rows = Rows.open(manifest)
    splits = rows.column("split")
    labelled = [number for number, split in enumerate(splits) if split == "train"][:LABELLED]
    probed = rows.select([*labelled, *(number for number, split in enumerate(splits) if split == "test")])
    stream, label = PROBE
    heads = [f"{pair.split(': ')[1]} R@10" for pair in PAIRS]
    print(
        "| mode | steps | conflict | kept | cosine | after | " + " | ".join([*heads, f"{label} from {stream}"]) + " |"
    )
    print("|---|" + "---:|" * (6 + len(PAIRS)))
    for mode in options.modes.split(","):
        run = run_of(mode, rows, options)
        found = api.evaluate(run, rows, ["retrieval"], baseline=False, seed=options.seed).scores[str(run)]
        probe = api.evaluate(run, probed, ["probe"], label=label, streams=[stream], baseline=False, seed=options.seed)
        cells = [show(found[f"retrieval {pair} R@10"]) for pair in PAIRS]
        cells.append(show(probe.scores[str(run)][f"probe {stream}"]))
        print(f"| {mode} | {agreement(run)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
