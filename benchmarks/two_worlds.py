"""One index over short real clips and the toy world: do words and sounds find their own world, and their own file?

Prepares both folders as one collection, pretrains LAVA on the real clips and on the toy world's training recordings,
indexes everything, and asks for every real clip and every unseen toy recording by its caption, and for every real clip
by its sound.

    python benchmarks/two_worlds.py CLIPS --out DIR [--world DIR] [--minutes 4]

CLIPS holds a manifest.csv with the columns ``path`` and ``caption``.
"""

import argparse
import csv
from pathlib import Path

from triptych import api


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [{**row, "path": str((folder / row["path"]).resolve())} for row in csv.DictReader(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    world = options.world or api.write_toyworld(out / "world").parent
    real, toys = rows_of(options.clips), rows_of(world)
    with (out / "both.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["path", "caption", "split"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows([{**row, "split": "train"} for row in real] + toys)
    if not (out / "collection" / "manifest.csv").exists():
        api.prepare(out / "both.csv", out / "collection")
    if not (out / "run" / "model").is_dir():
        api.pretrain(out / "collection", "lava", out / "run", "small", minutes=options.minutes)
    api.index(out / "run", out / "collection", out / "index")
    model = api.open_model(out / "run")
    names = {"real": {Path(row["path"]).name for row in real}, "toy": {Path(row["path"]).name for row in toys}}
    unseen = [row for row in toys if row["split"] == "test"]
    for what, asked in (("real", real), ("toy", unseen)):
        found = [api.search(out / "index", row["caption"], k=10, model=model).hits for row in asked]
        hits = [[Path(hit.path).name for hit in one] for one in found]
        own = [Path(row["path"]).name for row in asked]
        print(
            f"captions of {len(asked)} {what} recordings among {len(real) + len(toys)}: the first hit is of their "
            f"world {sum(one[0] in names[what] for one in hits)} times, is the recording itself "
            f"{sum(one[0] == name for one, name in zip(hits, own, strict=True))} times; it is among ten "
            f"{sum(name in one for one, name in zip(hits, own, strict=True))} times",
            flush=True,
        )
    heard = [Path(row["path"]) for row in real if row.get("has_audio", "1") == "1"]
    first = [api.search(out / "index", audio=path, k=1, model=model, streams=["video"]).hits[0] for path in heard]
    own = sum(Path(hit.path).name == path.name for hit, path in zip(first, heard, strict=True))
    print(f"sounds of {len(heard)} real recordings, asked among pictures: their own picture is first {own} times")


if __name__ == "__main__":
    main()
