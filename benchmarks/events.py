"""LAVISH's adapters on a frozen base: does it matter what the base has learnt, and that the streams read each other?

Adapters and head are trained by `finetune` on the seconds of a manifest with the column `segments` (the toy world has
it), three times a seed: on the base of RUN, on the same base with random weights, and on the base of RUN without latent
tokens, so that no stream reads the other. Accuracy over the seconds of the split `test`, with 95 % intervals from
resampling recordings; of the differences, too, recordings in pairs.

    python benchmarks/events.py RUN MANIFEST --out DIR [--minutes 4.5] [--seeds 0,1,2]

RUN is a pretrained model whose encoders of video and audio are transformers (LAVA, XKD). What has ended in DIR is used.
"""

import argparse
from pathlib import Path

import numpy as np

from triptych import api
from triptych.api import finetuning
from triptych.data.targets import LabelsBySecond
from triptych.evaluation.events import count_right, second_scores
from triptych.evaluation.metrics import bootstrap
from triptych.media.collection import Rows
from triptych.model import read_model

WHO = ("pretrained", "random", "apart")


def trained(run: Path, rows: Rows, out: Path, who: str, seed: int, minutes: float) -> Path:
    """Train adapters, unless that is done; return their folder."""
    if not (out / "model").is_dir():
        base = f"random:{run}" if who == "random" else run
        sets = [f"seed={seed}", *(["config.tokens=0"] if who == "apart" else [])]
        learned = rows.split("train")  # alone, so that nothing is validated between epochs
        finetuning.finetune(base, learned, out, label="segments", task="events", assignments=sets, minutes=minutes)
    return out


def right_of(run: Path, rows: Rows) -> np.ndarray:
    """Return how many seconds of each recording are named rightly, and how many there are."""
    model = read_model(run)
    labels = LabelsBySecond(model.labels).read(rows, "segments").numpy()
    found = second_scores(model, rows, model.test, labels.shape[1])
    assert len(found) == len(rows), "a recording cannot be read"
    return np.stack(count_right(labels, np.stack(list(found.values()))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.5)
    parser.add_argument("--seeds", default="0")
    options = parser.parse_args()
    rows = api.open_source(options.manifest)
    test = rows.split("test")
    paths = test.column("path")
    print(f"| seed | {' | '.join(WHO)} | pretrained - random | pretrained - apart |")
    print("|---:|" + "---:|" * (len(WHO) + 2), flush=True)
    for seed in map(int, options.seeds.split(",")):
        found = {}
        for who in WHO:
            run = trained(options.run, rows, options.out / f"{who}-{seed}", who, seed, options.minutes)
            found[who] = right_of(run, test)

        def rate(places: np.ndarray, right: np.ndarray) -> float:
            return 100 * float(right[0][places].sum()) / float(right[1][places].sum())

        everything, cells = np.arange(len(test)), [str(seed)]
        for who in WHO:
            low, high = bootstrap(lambda places, right=found[who]: rate(places, right), paths)
            cells.append(f"{rate(everything, found[who]):.1f} [{low:.1f}, {high:.1f}]")
        for other in WHO[1:]:

            def gain(places: np.ndarray, other: str = other, found: dict[str, np.ndarray] = found) -> float:
                return rate(places, found["pretrained"]) - rate(places, found[other])

            low, high = bootstrap(gain, paths)
            cells.append(f"{gain(everything):.1f} [{low:.1f}, {high:.1f}]")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
