"""Train one method twice, plainly and with harmonized gradients, and print how its terms' gradients agree.

python examples/harmonize.py SOURCE OUT [key=value ...]
"""

import json
import sys
from pathlib import Path

import triptych


def main(source: str, out: str, *changes: str) -> None:
    for mode in ("none", "both"):  # `none` only measures
        rule = ["gradients.rule=harmonize", f"gradients.options={{mode: {mode}}}"]
        run = Path(out) / mode
        triptych.pretrain(source, "vatt", run, "small", [*rule, *changes])
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        names = ["loss", *(name for name in lines[-1] if name.startswith("cosine")), "conflict", "kept"]
        for name in names:
            values = [line[name] for line in lines if name in line]
            print(f"{mode:5} {name:20} mean over the log {sum(values) / len(values):7.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
