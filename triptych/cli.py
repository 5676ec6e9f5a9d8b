"""The command line: each verb is a few lines over ``triptych.api``, which is imported only when a verb runs."""

import gc
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from triptych.errors import TriptychError, UsageError

app = typer.Typer(
    help="Learn joint representations of video, audio and language from your own videos; evaluate and search them.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Source = Annotated[Path, Argument(help="A folder (walked recursively), a media file, or a CSV/JSONL manifest.")]
ModelName = Annotated[str, Argument(help="A model folder, a run, or random:METHOD or random:RUN.")]
Json = Annotated[bool, Option("--json", help="Print JSON for a program to read.")]
Device = Annotated[str | None, Option(help="cpu, cuda, cuda:1, ...; found by itself where not given.")]
Workers = Annotated[int | None, Option(min=0, help="Decoding processes; chosen from the cores where not given.")]
Seed = Annotated[int, Option(min=0, help="Seed of everything drawn.")]
Assignments = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
]
Windows = Annotated[int | None, Option(min=1, help="Windows a recording; the model's own where not given.")]
Crops = Annotated[int | None, Option(min=1, max=3, help="1, the centre, or 3 along the longer side of each window.")]
Split = Annotated[str | None, Option(help="Use the rows of this split.")]


class Task(StrEnum):
    """Tasks of `evaluate`."""

    probe = "probe"
    svm = "svm"
    knn = "knn"
    retrieval = "retrieval"
    steps = "steps"
    classes = "classes"
    speech = "speech"
    events = "events"


class Ties(StrEnum):
    """What other items with exactly equal similarity count in retrieval."""

    average = "average"
    optimistic = "optimistic"
    pessimistic = "pessimistic"
    howto100m = "howto100m"


class Missing(StrEnum):
    """What queries count whose answer has no vector: nothing, or failures."""

    out = "out"
    failed = "failed"


class Average(StrEnum):
    """What is averaged over the windows and crops of a recording."""

    probabilities = "probabilities"
    logits = "logits"


Averaged = Annotated[Average, Option(help="Classes: what is averaged over the windows and crops of a recording.")]


class Downstream(StrEnum):
    """Tasks of `finetune`."""

    classes = "classes"
    multilabel = "multilabel"
    events = "events"
    words = "words"


class Crop(StrEnum):
    """What `prepare` cuts out."""

    mouth = "mouth"
    face = "face"


@app.command()
def demo(
    out: Annotated[Path, Option(help="Folder for everything the demo makes.")] = Path("demo"),
    minutes: Annotated[float, Option(min=0.1, help="Minutes of training.")] = 4.0,
    seed: Seed = 0,
) -> None:
    """Write a toy world, pretrain on it, evaluate, index, search, and write the report: no arguments needed."""
    from triptych.demo import run_demo

    run_demo(out, minutes=minutes, seed=seed)


@app.command()
def toyworld(
    out: Annotated[Path, Option(help="Folder to write.")],
    recordings: Annotated[int | None, Option(min=1, help="Recordings; the demo's number where not given.")] = None,
    difficulty: Annotated[float, Option(min=0, help="Strength of what must be ignored; 1 is the demo's.")] = 1.0,
    size: Annotated[int, Option(min=32, help="Side of the picture, pixels.")] = 96,
    seed: Seed = 0,
    workers: Workers = None,
) -> None:
    """Write the toy world alone: real media files whose picture, sound and captions share causes."""
    from triptych.api import manifests

    manifest = manifests.write_toyworld(
        out, recordings=recordings, difficulty=difficulty, size=size, seed=seed, workers=workers
    )
    print(manifest)


@app.command()
def methods(
    name: Annotated[str | None, Argument(help="A method; all where not given.")] = None,
    recipe: Annotated[str | None, Option(help="Print this recipe (small, base, paper) as YAML.")] = None,
    as_json: Json = False,
) -> None:
    """List the methods, show the page of one, or print a recipe of one."""
    from triptych.api import pages

    print(pages.describe_methods(name, recipe, as_json))


@app.command()
def prepare(
    source: Source,
    out: Annotated[Path, Option(help="Folder of the collection.")],
    short_side: Annotated[int | None, Option(min=16, help="Re-encode to this short side, pixels.")] = None,
    gop: Annotated[int | None, Option(min=1, help="Re-encode with a keyframe every so many frames.")] = None,
    fps: Annotated[float | None, Option(min=0.1, help="Re-encode at this frame rate.")] = None,
    audio_rate: Annotated[int | None, Option(min=1000, help="Re-encode the sound at this rate, Hz.")] = None,
    crop: Annotated[Crop | None, Option(help="Cut the mouth or the face out of every picture.")] = None,
    landmarks: Annotated[
        str | None, Option(help="Where it lies: dlib, mediapipe, a folder, a column or a box (docs/speech.md).")
    ] = None,
    layout: Annotated[
        str | None, Option(help="SOURCE is a public data set: ucf101, esc50, ... (docs/layouts.md).")
    ] = None,
    annotations: Annotated[Path | None, Option(help="Folder or file of that data set's lists.")] = None,
    layout_split: Annotated[str | None, Option(help="Which of the data set's splits, where it has several.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Probe and estimate; write nothing.")] = False,
    workers: Workers = None,
) -> None:
    """Probe every file once, set the broken ones aside with reasons, optionally re-encode, write manifest.csv."""
    from triptych.api import manifests

    manifests.prepare(
        source,
        out,
        short_side=short_side,
        gop=gop,
        fps=fps,
        audio_rate=audio_rate,
        crop=crop.value if crop else None,
        landmarks=landmarks,
        layout=layout,
        annotations=annotations,
        layout_split=layout_split,
        dry_run=dry_run,
        workers=workers,
    )


@app.command()
def pretrain(
    source: Annotated[Path | None, Argument(help="A folder, a media file, or a CSV/JSONL manifest.")] = None,
    method: Annotated[str | None, Option(help="A method of `triptych methods`, or module:Class.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the run; it must not hold one.")] = None,
    recipe: Annotated[str | None, Option(help="small, base, paper, or a YAML/JSON file.")] = None,
    assignments: Assignments = None,
    init: Annotated[str | None, Option(metavar="MODEL", help="Begin with these weights.")] = None,
    resume: Annotated[Path | None, Option(metavar="RUN", help="Continue this run exactly.")] = None,
    minutes: Annotated[float | None, Option(min=0.05, help="Fit the number of steps to this time.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Estimate time and memory; train nothing.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write event files to OUT/tensorboard, too.")] = False,
    device: Device = None,
) -> None:
    """Pretrain a method on unlabelled recordings, or continue an interrupted run."""
    from triptych.api import runs

    if resume is not None:
        if source or method or out or recipe or assignments or init or minutes:
            raise UsageError("--resume RUN takes everything from the run; give it alone.")
        runs.resume(resume, device=device, tensorboard=tensorboard)
        return
    if source is None or method is None or out is None:
        raise UsageError("Give SOURCE, --method and --out (or --resume RUN).")
    runs.pretrain(
        source,
        method=method,
        out=out,
        recipe=recipe,
        assignments=assignments or [],
        init=init,
        minutes=minutes,
        dry_run=dry_run,
        device=device,
        tensorboard=tensorboard,
    )


@app.command()
def finetune(
    model: Annotated[
        str | None, Argument(help="A model folder, a run, or random:METHOD (the same from random weights).")
    ] = None,
    source: Annotated[Path | None, Argument(help="A CSV/JSONL manifest with the labels.")] = None,
    out: Annotated[Path | None, Option(help="Folder of the run; it must not hold one.")] = None,
    label: Annotated[str | None, Option(metavar="COLUMN", help="Column with the labels.")] = None,
    task: Annotated[Downstream, Option(help="What is learned from the column.")] = Downstream.classes,
    recipe: Annotated[str | None, Option(help="A published one of the method, or a YAML/JSON file.")] = None,
    assignments: Assignments = None,
    streams: Annotated[str | None, Option(help="Features that the head reads, with commas.")] = None,
    frozen: Annotated[bool, Option("--frozen", help="Train only the head: linear evaluation.")] = False,
    val: Annotated[str | None, Option(metavar="SPLIT", help="Split that validates; `val` where there is one.")] = None,
    hold_out: Annotated[
        float | None, Option(min=0.0, max=1.0, help="Share of the training rows that validate instead.")
    ] = None,
    patience: Annotated[int | None, Option(min=1, help="End after so many epochs without a better one.")] = None,
    folds: Annotated[str | None, Option(metavar="COLUMN", help="A run for each value, tested on its rows.")] = None,
    resume: Annotated[Path | None, Option(metavar="RUN", help="Continue this run exactly.")] = None,
    minutes: Annotated[float | None, Option(min=0.05, help="Fit the number of steps to this time.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Estimate time and memory; train nothing.")] = False,
    tensorboard: Annotated[bool, Option("--tensorboard", help="Write event files to OUT/tensorboard, too.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a head on a model, and the model with it, from labels; keep the weights that validate best."""
    from triptych.api import finetuning, runs

    if resume is not None:
        if model or source or out or label or recipe or assignments or streams or folds or minutes:
            raise UsageError("--resume RUN takes everything from the run; give it alone.")
        if finetuning.has_folds(resume):
            print(finetuning.resume_folds(resume, device=device).render(as_json))
        else:
            runs.resume(resume, device=device, tensorboard=tensorboard)
        return
    if model is None or source is None or out is None:
        raise UsageError("Give MODEL, SOURCE and --out (or --resume RUN).")
    options: dict[str, Any] = {
        "label": label,
        "task": task.value,
        "recipe": recipe,
        "assignments": assignments or [],
        "streams": streams.split(",") if streams else None,
        "frozen": frozen,
        "hold_out": hold_out,
        "patience": patience,
        "minutes": minutes,
        "device": device,
        "tensorboard": tensorboard,
    }
    if folds is None:
        finetuning.finetune(model, source, out, val=val, dry_run=dry_run, **options)
    elif val or dry_run:
        raise UsageError("--folds goes with neither --val (give --hold-out) nor --dry-run.")
    else:
        print(finetuning.finetune_folds(model, source, out, folds, **options).render(as_json))


@app.command()
def predict(
    model: ModelName,
    source: Source,
    out: Annotated[Path, Option(help="A .csv or .jsonl file.")],
    windows: Windows = None,
    crops: Crops = None,
    each_window: Annotated[bool, Option("--each-window", help="A line for each window, not for a recording.")] = False,
    average: Averaged = Average.probabilities,
    split: Split = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Write what a fine-tuned model says of each recording: classes with scores, events with seconds, words."""
    from triptych.api import predictions

    print(
        predictions.predict(
            model,
            source,
            out,
            split=split,
            windows=windows,
            crops=crops,
            each_window=each_window,
            average=average.value,
            device=device,
            workers=workers,
        )
    )


@app.command()
def evaluate(
    model: ModelName,
    source: Source,
    task: Annotated[list[Task], Option(help="What to measure; repeatable.")],
    label: Annotated[str | None, Option(metavar="COLUMN", help="Column with the labels.")] = None,
    streams: Annotated[str | None, Option(help="Streams, with commas; all where not given.")] = None,
    query: Annotated[str | None, Option("--from", metavar="STREAM", help="Retrieval: only queries of it.")] = None,
    target: Annotated[str | None, Option("--to", metavar="STREAM", help="Retrieval: only answers of it.")] = None,
    group: Annotated[str | None, Option(metavar="COLUMN", help="Rows that are one item.")] = None,
    folds: Annotated[str | None, Option(metavar="COLUMN", help="Cross-validate over this column.")] = None,
    windows: Windows = None,
    crops: Crops = None,
    average: Averaged = Average.probabilities,
    split: Split = None,
    snr: Annotated[str | None, Option(help="Speech: also in noise, at these decibels, with commas.")] = None,
    noise: Annotated[str | None, Option(help="Speech: that noise; the other utterances where not given.")] = None,
    seconds: Annotated[float | None, Option(min=0.1, help="Steps: length of a window; else the model's.")] = None,
    stride: Annotated[float, Option(min=0.05, help="Steps: seconds between windows.")] = 1.0,
    ties: Annotated[Ties, Option(help="Retrieval: what equal similarities count.")] = Ties.average,
    missing: Annotated[Missing, Option(help="Retrieval: queries whose answer has no vector.")] = Missing.out,
    more: Annotated[bool, Option("--more", help="Retrieval: also R@50, mean rank and geometric mean.")] = False,
    baseline: Annotated[bool, Option(help="Also measure pixel and spectrogram statistics.")] = True,
    seed: Seed = 0,
    device: Device = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Measure a model by the protocols of the field, beside random weights and chance."""
    from triptych.api import measures

    print(
        measures.evaluate(
            model,
            source,
            tasks=[one.value for one in task],
            label=label,
            streams=streams.split(",") if streams else None,
            query=query,
            target=target,
            group=group,
            folds=folds,
            windows=windows,
            crops=crops,
            average=average.value,
            split=split,
            decibels=[_decibels(text) for text in snr.split(",")] if snr else (),
            noise=noise,
            seconds=seconds,
            stride=stride,
            ties=ties.value,
            missing=missing.value,
            more=more,
            baseline=baseline,
            seed=seed,
            device=device,
            workers=workers,
        ).render(as_json)
    )


def _decibels(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--snr {text}: give whole decibels, such as -5,0,5.") from None


@app.command()
def embed(
    model: ModelName,
    source: Source,
    out: Annotated[Path, Option(help="Folder of the tables; run again, an interrupted one goes on.")],
    features: Annotated[
        bool, Option("--features", help="What the encoders yield, also as sequences that recordings can carry.")
    ] = False,
    split: Split = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Write the vectors of every window of SOURCE to a table."""
    from triptych.api import searches

    searches.embed(model, source, out, features=features, split=split, device=device, workers=workers)


@app.command()
def index(
    model: ModelName,
    source: Source,
    out: Annotated[Path, Option(help="Folder of the index; run again, it takes in what changed.")],
    seconds: Annotated[float | None, Option(min=0.1, help="Length of a window; the model's where not given.")] = None,
    stride: Annotated[
        float | None, Option(min=0.05, help="Seconds between windows; their length where not given.")
    ] = None,
    device: Device = None,
    workers: Workers = None,
) -> None:
    """Index a folder for search; run again, it adds what is new and drops what is gone."""
    from triptych.api import searches

    searches.index(model, source, out, seconds=seconds, stride=stride, device=device, workers=workers)


@app.command()
def search(
    index: Annotated[Path, Argument(help="An index.")],
    words: Annotated[str | None, Argument(help="What to look for.")] = None,
    audio: Annotated[Path | None, Option(help="Look for this sound (or the sound of a video).")] = None,
    video: Annotated[Path | None, Option(help="Look for this clip.")] = None,
    image: Annotated[Path | None, Option(help="Look for this picture.")] = None,
    k: Annotated[int, Option("-k", min=1, help="Hits.")] = 10,
    path: Annotated[str | None, Option(metavar="GLOB", help="Only files whose path matches.")] = None,
    between: Annotated[tuple[float, float] | None, Option(metavar="START END", help="Only these seconds.")] = None,
    streams: Annotated[str | None, Option(help="Streams to look in, with commas.")] = None,
    save: Annotated[Path | None, Option(metavar="DIR", help="Cut the hits out as mp4.")] = None,
    source: Annotated[Path | None, Option(help="Where the folder lies now, if it was moved.")] = None,
    model: Annotated[str | None, Option(help="Where the index's model lies now, if it was moved.")] = None,
    as_json: Json = False,
) -> None:
    """Search an index by words, a sound, a clip or a picture."""
    from triptych.api import searches

    found = searches.search(
        index,
        words,
        audio=audio,
        video=video,
        image=image,
        k=k,
        path=path,
        between=between,
        streams=streams.split(",") if streams else None,
        save=save,
        source=source,
        model=model,
    )
    print(found.render(as_json))
    if found.failed:
        raise TriptychError(
            f"{len(found.failed)} of {len(found.hits)} hits were not saved; the first: {found.failed[0]}"
        )


@app.command("import")
def import_(
    name: Annotated[str, Argument(help="Kind of the weights; `triptych methods NAME` names those of a method.")],
    checkpoint: Annotated[Path, Argument(help="The published file; nothing in it is run.")],
    out: Annotated[Path, Option(help="Folder of the model; it must not hold anything.")],
    method: Annotated[str | None, Option("--for", metavar="METHOD", help="As the start of another method.")] = None,
    part: Annotated[str | None, Option(metavar="KEY", help="The part of the file that holds the weights.")] = None,
    tokenizer: Annotated[
        Path | None, Option(help="The tokenizer.json, or file of word vectors, that it reads text with.")
    ] = None,
) -> None:
    """Make a model of published weights; their licence is printed."""
    from triptych.api import weights

    weights.import_weights(name, checkpoint, out, method=method, part=part, tokenizer=tokenizer)


@app.command()
def info(
    path: Annotated[Path, Argument(help="A model, run, index, table or collection.")],
    as_json: Json = False,
) -> None:
    """Say what a folder is: version, method, spaces, size, data."""
    from triptych.api import pages

    print(pages.info(path, as_json))


@app.command()
def report(run: Annotated[Path, Argument(help="A run.")]) -> None:
    """Write RUN/report.html: curves, tables, neighbours and a map of the embeddings on one page."""
    from triptych.api import pages

    print(pages.write_report(run))


def _terminate(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit 0 when done, 1 with a message that says what to do, 2 for wrong usage."""
    signal.signal(signal.SIGTERM, _terminate)
    gc.set_threshold(50_000)  # imports make a million objects that stay: collecting among them is a fifth of their time
    try:
        app(arguments)
    except UsageError as error:
        print(f"triptych: {error}", file=sys.stderr)
        sys.exit(2)
    except TriptychError as error:
        print(f"triptych: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("triptych: interrupted.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
