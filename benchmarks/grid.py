"""Pretraining and retrieval on a talking face: GRID, one speaker, sentences of six words.

Pretrains LAVA on the train split for some minutes with each seed and prints retrieval among the test clips between
every pair of streams, in both directions, and the means over the seeds.

    python benchmarks/grid.py SOURCE --out DIR [--minutes 20] [--seeds 3]
"""

import argparse
from pathlib import Path

from triptych import api
from triptych.methods.lava import LAVAConfig, small
from triptych.recipe import Aligned, AudioTransform, Grid, Recipe, StreamSpec, TextTransform, VideoTransform, Viewing


def talking_face(seed: int) -> Recipe:
    """LAVA's small recipe for sentences of three seconds: the face, 24 frames, and 160 ms of sound a token."""
    base = small()
    assert isinstance(base.config, LAVAConfig)
    changes = {"frames": 24, "tubelet": (2, 24), "audio_steps": 144, "text_steps": 10}
    config = base.config.model_copy(update=changes)

    def view(train: bool) -> dict[str, StreamSpec]:
        light = {"brightness": 0.3, "contrast": 0.3, "flip": 0.5} if train else {}
        masks = {"time_mask": 10, "mel_mask": 8, "gain": 6.0} if train else {}
        video = VideoTransform(size=48, resize=68, **light)
        sound = AudioTransform(mels=64, hop=0.02, steps=144, low=60.0, floor=1e-4, mean=-5.0, std=3.0, **masks)
        return {
            "video": StreamSpec(transform=video, rate=25 / 3, required=False),
            "audio": StreamSpec(transform=sound, rate=16_000, short="zero", required=False),
            "text": StreamSpec(transform=TextTransform(steps=10), required=False),
        }

    return base.model_copy(
        update={
            "config": config,
            "train": Viewing(windows=Aligned(seconds=2.88), views=(view(train=True),)),
            "test": Viewing(windows=Grid(seconds=2.88, count=1), views=(view(train=False),)),
            "seed": seed,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        run = options.out / f"seed{seed}"
        if not (run / "model").is_dir():
            if (run / "recipe.json").is_file():
                api.resume(run)
            else:
                api.pretrain(options.source, "lava", run, talking_face(seed), minutes=options.minutes)
        results = api.evaluate(run, options.source, ["retrieval"], split=options.split, seed=seed)
        print(results.render(), flush=True)
        for name, score in results.scores[str(run)].items():
            found.setdefault(name, []).append(score.value)
    print(f"\nmean of {options.seeds} seeds, {options.minutes:g} minutes each, {options.split}")
    for name, values in found.items():
        print(f"  {name:40} {sum(values) / len(values):5.1f}   " + ", ".join(f"{value:.1f}" for value in values))


if __name__ == "__main__":
    main()
