"""Pretraining AV-HuBERT on a talking face: GRID, one speaker, from mouth crops of 96 pixels at 25 fps.

    triptych prepare GRID/manifest.csv --out MOUTHS --crop mouth
    python benchmarks/lip_reading.py MOUTHS --out DIR [--size cpu|gpu] [--minutes 40] [--seed 0]

Neither transcripts nor word alignments are read. Fine-tuning begins with the run in DIR.
"""

import argparse
from pathlib import Path
from typing import Any

from triptych import api
from triptych.encoders.speech import SpeechConfig
from triptych.methods.av_hubert import AVHuBERTConfig, RoundConfig, Spans, recipe_for
from triptych.recipe import BatchSpec, OptimizerSpec, Recipe

SENTENCE = 3.0
"""Seconds of a sentence of GRID."""


def talking_face(size: str = "cpu", seed: int = 0) -> Recipe:
    """AV-HuBERT for sentences of three seconds by one speaker: three rounds, the first on cepstral coefficients.

    Spans of sound last a third of a second, about a word of GRID; a good half of the 75 steps are hidden. All numbers
    are recommendations for 613 sentences.

    Args:
        size: ``cpu``: an encoder of 2 million parameters on crops of 44 pixels, for an hour on two cores; ``gpu``: one
            of 16 million on crops of 88.
        seed: Of the run.
    """
    shared: dict[str, Any] = {"stem": 24, "stage_blocks": 1, "position_kernel": 32, "layer_drop": 0.0}
    if size == "gpu":
        encoder = SpeechConfig(
            width=384, layers=8, heads=6, hidden=1536, stages=(64, 96, 128, 256), **shared | {"stem": 64}
        )
        layer, steps, clips, side, stored, rate = 6, 4_000, 32, 88, 96, 5e-4
    else:
        encoder = SpeechConfig(width=192, layers=4, heads=4, hidden=512, stages=(24, 48, 72, 128), **shared)
        layer, steps, clips, side, stored, rate = 3, 1_200, 12, 44, 48, 1e-3
    rounds = tuple(
        RoundConfig(
            clusters=(clusters,),
            layer=clustered,
            hide="input",
            audio=Spans(share=0.8, steps=8),
            video=Spans(share=0.3, steps=5),
            modality_dropout=0.5,
        )
        for clusters, clustered in ((100, None), (100, layer), (200, layer))
    )
    config = AVHuBERTConfig(
        encoder=encoder, rounds=rounds, class_width=128, sample=0.5, restarts=10, cluster_batch=5_000
    )
    return recipe_for(
        config,
        side=side,
        stored=stored,
        batch=BatchSpec(seconds=clips * SENTENCE),
        steps=steps,
        optimizer=OptimizerSpec(lr=rate, betas=(0.9, 0.98), weight_decay=0.01),
        seed=seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mouths", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    api.pretrain(
        options.mouths, "av_hubert", options.out, talking_face(options.size, options.seed), minutes=options.minutes
    )


if __name__ == "__main__":
    main()
