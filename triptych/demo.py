"""The demo: from nothing to an answer with file and second, in minutes and without arguments."""

import time
from pathlib import Path

from triptych import api
from triptych.media.collection import Rows
from triptych.toyworld.truth import ceiling
from triptych.toyworld.write import RECORDINGS

LABELLED = 480
"""Training recordings whose labels the linear probe learns from."""


def run_demo(out: str | Path = "demo", minutes: float = 4.0, seed: int = 0) -> None:
    """Write the toy world, pretrain LAVA on it, evaluate, index, search, and write the report.

    Args:
        out: Folder; what is there already is used.
        minutes: Minutes of training.
        seed: Of world and training.
    """
    out = Path(out)
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"\n[{time.monotonic() - began:4.0f} s] {text}", flush=True)

    say(f"writing {RECORDINGS} recordings of the toy world to {out / 'world'}")
    world = api.write_toyworld(out / "world", seed=seed)
    manifest = world.with_name("probed.csv")
    if not manifest.exists():
        api.open_source(world).save(manifest)
    rows = Rows.open(manifest)
    run = out / "run"
    say("pretraining LAVA on its training recordings, without their labels")
    if (run / "recipe.json").is_file():
        api.resume(run)
    else:
        api.pretrain(manifest, "lava", run, "small", [f"seed={seed}"], minutes=minutes)
    say("measuring it on the unseen test recordings")
    print(api.evaluate(run, rows, ["retrieval"], seed=seed).render())
    best = ceiling([row.values for row in rows.split("test")])
    print(
        "R@1 of perfect understanding: "
        + ", ".join(f"{name.replace('_', ' ')} {100 * best[name]:.1f}" for name in best)
    )
    say(f"reading the kind of the thing off its frozen features, with the labels of {LABELLED} recordings")
    splits = rows.column("split")
    labelled = [number for number, split in enumerate(splits) if split == "train"][:LABELLED]
    unseen = [number for number, split in enumerate(splits) if split == "test"]
    print(api.evaluate(run, rows.select([*labelled, *unseen]), ["probe"], label="kind", seed=seed).render())
    say("indexing the test recordings, and searching them")
    test = rows.split("test")
    index = out / "index"
    api.index(run, test.save(world.with_name("test.csv")), index)
    model = api.open_model(run)
    example = test.row(0)
    words = f"a {example['size']} {example['colour']} {example['kind']}"
    print(f"\nby words: {words}")
    print(api.search(index, words, k=3, model=model).render())
    print(f"\nby sound: {example['path']} ({example['caption']})")
    print(api.search(index, audio=example.path, k=3, model=model).render())
    print(f"\nby clip: {example['path']}")
    print(api.search(index, video=example.path, k=3, model=model).render())
    say("writing the report")
    print(api.write_report(run))
    say("done. The same for your own folder:")
    print("  triptych prepare FOLDER --out collection --short-side 256 --gop 30")
    print("  triptych pretrain collection --method lava --out run")
    print("  triptych index run collection --out index")
    print('  triptych search index "what you look for"')
