"""A run folder to one self-contained page: curves, tables, neighbours with pictures and sound, a map of the vectors."""

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError
from triptych.evaluation.table import Results, from_json
from triptych.files import replacing
from triptych.layers.spectrogram import log_mel
from triptych.media.collection import Rows
from triptych.recipe import Recipe

EXAMPLES = 240
"""Recordings that neighbours and map are drawn from."""
COLOURS = ("#0b6e99", "#c8553d", "#588157", "#8d5a97", "#b08900", "#3d405b", "#d1495b", "#2a9d8f", "#6c757d", "#e07a5f")
VALUES = 10
"""Labels with a colour of their own on the map: the most frequent ones."""
PLAIN = {
    "step",
    "epoch",
    "round",
    "loss",
    "gradient_norm",
    "rows_per_second",
    "waiting",
    "memory_gib",
    "seconds",
    "unreadable",
    "scores",
}
"""Keys of the log that every method has."""
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #0b6e99; --right: #588157; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); } h3 { margin: 2rem 0 .5rem; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0 1.5rem; } nav a { color: inherit; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } .wide { overflow-x: auto; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.facts div { background: var(--soft); border-radius: 6px; padding: .5rem .75rem; overflow-wrap: anywhere; }
.facts div.long { grid-column: 1 / -1; } .facts b { display: block; font-size: 1.15rem; font-weight: 600; }
.facts div.long b { font-size: 1rem; font-weight: 400; } .facts span, .note { opacity: .7; font-size: .85rem; }
figure { margin: 0; } svg { background: #fff; max-width: 100%; height: auto; border-radius: 6px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem; }
.hits { display: flex; gap: .75rem; align-items: stretch; margin: .5rem 0 1.5rem; overflow-x: auto; }
.card { flex: 0 0 10rem; box-sizing: border-box; padding: .5rem; border-radius: 6px; border: 2px solid transparent;
  background: var(--soft); font-size: .8rem; line-height: 1.35; overflow-wrap: anywhere; }
.card img { width: 100%; display: block; margin: .3rem 0; border-radius: 3px; } .card small { opacity: .7; }
.card.query { border-color: var(--mark); } .card.right { border-color: var(--right); }
.card q { display: block; margin: .5rem 0; font-size: 1rem; }
pre { overflow-x: auto; background: var(--soft); padding: .75rem; border-radius: 6px; } summary { cursor: pointer; }
"""


def write_page(
    run: Path,
    recipe: Recipe,
    facts: Mapping[str, Any],
    parameters: int,
    rows: Rows | None,
    tables: Mapping[str, EmbeddingTable],
) -> Path:
    """Write ``RUN/report.html``.

    Args:
        run: The run's folder.
        recipe: Its recipe.
        facts: What else ``recipe.json`` tells.
        parameters: Of the model.
        rows: Recordings to show, None where the source is gone.
        tables: Their vectors, by space.
    """
    steps = [line for line in read_lines(run / "log.jsonl") if "loss" in line]
    terms = sorted({key for line in steps for key in line if key.startswith("loss.")})
    rates = sorted({key for line in steps for key in line if key.split(".")[0] == "lr"})
    rest = sorted({key for line in steps for key in line} - set(terms) - set(rates) - PLAIN)
    curves = [
        draw_curves(steps, ["loss"], "loss"),
        draw_curves(steps, terms, "terms of the loss"),
        *(draw_curves(steps, names, title) for title, names in _by_prefix(rest).items()),
        draw_curves(steps, rates, "learning rate"),
        draw_curves(steps, ["gradient_norm"], "norm of the gradient"),
        draw_curves(steps, ["rows_per_second"], "recordings a second"),
    ]
    sections = [
        ("Run", _facts(recipe, facts, parameters, steps)),
        ("Training", f'<div class="plots">{"".join(curves)}</div>' if steps else _note("The log has no step yet.")),
        ("Evaluation", _evaluations(run)),
    ]
    for space, table in tables.items():
        if rows is None or not len(table):
            continue
        streams = sorted(set(table.streams.tolist()))
        pairs = [(asked, answered) for asked in streams for answered in ("video", "audio") if answered in streams]
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
        here = f" in the space {space}" if len(tables) > 1 else ""
        sections.append((f"Nearest neighbours{here}", show_neighbours(rows, table, pairs, 3, 5)))
        sections.append((f"Map{here}", _map(rows, table, facts.get("label"))))
    if rows is None:
        gone = f"The source {facts['source']} is not there, so neighbours and map are left out."
        sections.append(("Neighbours", _note(gone)))
    yaml = f"<pre>{html.escape(recipe.to_yaml())}</pre>"
    sections.append(("Recipe", f"<details><summary>every value of this run</summary>{yaml}</details>"))
    return save_page(render_page(f"{recipe.method}: {run.name}", sections), run / "report.html")


def _by_prefix(names: Sequence[str]) -> dict[str, list[str]]:
    """Return a method's reports, those with a common first word on one plot."""
    plots: dict[str, list[str]] = {}
    for name in names:
        plots.setdefault(name.split("_")[0], []).append(name)
    return plots


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _facts(recipe: Recipe, facts: Mapping[str, Any], parameters: int, steps: Sequence[Mapping[str, Any]]) -> str:
    last = steps[-1] if steps else {}
    rates = [line["rows_per_second"] for line in steps if "rows_per_second" in line]
    shown = {
        "method": recipe.method,
        "parameters": f"{parameters:,}",
        "recordings": f"{facts['data']['rows']:,}",
        "steps": f"{last.get('step', 0):,}",
        "training time": _duration(last.get("seconds", 0)),
        "recordings a second": f"{np.median(rates):.1f}" if rates else "-",
        "peak memory": f"{last.get('memory_gib', 0):.1f} GiB",
        "seed": str(recipe.seed),
    }
    long = {
        "source": facts["source"],
        "started from": facts.get("init"),
        "versions": ", ".join(f"{name} {value}" for name, value in facts.get("versions", {}).items()),
    }
    cells = [f"<div><span>{name}</span><b>{html.escape(value)}</b></div>" for name, value in shown.items()]
    cells += [f'<div class="long"><span>{n}</span><b>{html.escape(str(v))}</b></div>' for n, v in long.items() if v]
    return f'<div class="facts">{"".join(cells)}</div>'


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _evaluations(run: Path) -> str:
    path = run / "evaluations.jsonl"
    if not path.is_file():
        return _note("None yet: triptych evaluate RUN SOURCE --task retrieval.")
    found = [from_json(values, str(path)) for values in read_lines(path)]
    shown: list[Results] = []
    earlier: list[Results] = []
    told: set[str] = set()
    for results in reversed(found):  # the newest of each score; what only tells old values is folded away
        names = set(results.names)
        (earlier if names <= told else shown).append(results)
        told |= names
    older = "".join(map(_evaluation, earlier))
    folded = f"<details><summary>{len(earlier)} earlier</summary>{older}</details>" if earlier else ""
    return "".join(map(_evaluation, shown)) + folded


def _evaluation(results: Results) -> str:
    """Return a plot of the scores that matter most, and the table of all."""
    heading, cells = results.cells()
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in cells)
    table = f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
    caption = f"{results.data}; in percent (MedR: a rank, d': no unit) with 95 % intervals, seed {results.seed}"
    notes = "".join(map(_note, results.notes))
    parts = (draw_scores(results), _note(caption), notes, f"<details><summary>all scores</summary>{table}</details>")
    return "".join(parts)


def _map(rows: Rows, table: EmbeddingTable, label: str | None) -> str:
    column = label or next((name for name in ("label", "kind", "category", "class") if name in rows.columns), None)
    values = rows.column(column) if column else [""] * len(rows)
    labels = [values[int(number)] for number in table.numbers]
    what = f"Coloured by {column}. " if column else ""
    return draw_map(table, labels) + _note(
        f"{what}Each point is a window, or a caption. Two main components, after the mean of each stream was taken out."
    )


def render_page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole HTML page that loads nothing from elsewhere.

    Args:
        title: Heading of the page.
        sections: Heading and HTML of each part, in order.
    """
    kept = [(heading, content) for heading, content in sections if content]
    links = "".join(f'<a href="#{place}">{html.escape(heading)}</a>' for place, (heading, _) in enumerate(kept))
    body = f"<nav>{links}</nav>\n" + "\n".join(
        f'<h2 id="{place}">{html.escape(heading)}</h2>\n{content}' for place, (heading, content) in enumerate(kept)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def save_page(page: str, out: Path) -> Path:
    """Write the page to ``out`` whole or not at all."""
    with replacing(out) as place:
        place.write_text(page, encoding="utf-8")
    return out


def draw_curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str], title: str) -> str:
    """Return an SVG figure of values over steps; of many, the running mean over the values themselves.

    Args:
        lines: Lines of a run's log, each with ``step``.
        names: Keys to draw; keys that no line has are left out.
        title: Title of the plot.

    Raises:
        TriptychError: If matplotlib is not installed.
    """
    pyplot = _matplotlib()
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0), layout="constrained")
    drawn = 0
    for name in names:
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
        if points:
            steps, values = map(np.array, zip(*points, strict=True))
            colour, width = COLOURS[drawn % len(COLOURS)], max(len(points) // 50, 1)
            if width > 1:
                axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.25)
            axes.plot(steps, _running_mean(values, width), label=name, color=colour, linewidth=1.4)
            drawn += 1
    if not drawn:
        pyplot.close(figure)
        return ""
    axes.set(title=title, xlabel="step")
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.3)
    if drawn > 1:
        axes.legend(fontsize="small", ncols=2, framealpha=0.6)
    return _svg(pyplot, figure)


def _running_mean(values: Float[np.ndarray, " steps"], width: int) -> Float[np.ndarray, " steps"]:
    """Return the mean of the ``width`` values that end at each."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - width, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def draw_scores(results: Results) -> str:
    """Return an SVG figure of first places and accuracies: everybody's, with intervals, and chance."""
    pyplot = _matplotlib()
    names = [name for name in results.names if not name.endswith((" R@5", " R@10", " MedR", " d'"))]
    who = list(results.scores)
    figure, axes = pyplot.subplots(figsize=(10, 0.8 + 0.42 * len(names)), layout="constrained")
    for place, name in enumerate(names):
        for number, person in enumerate(who):
            score = results.scores[person].get(name)
            if score is not None:
                height = place + 0.22 * (number - (len(who) - 1) / 2)
                colour = COLOURS[number % len(COLOURS)]
                axes.plot([score.low, score.high], [height, height], color=colour, alpha=0.45, linewidth=3)
                axes.plot(score.value, height, "o", color=colour, markersize=6)
                if score.chance is not None:
                    axes.plot([score.chance] * 2, [place - 0.4, place + 0.4], color="#888", linestyle=":")
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="percent")
    axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    handles = [
        pyplot.Line2D([], [], linestyle="", marker="o", color=COLOURS[number % len(COLOURS)], label=person)
        for number, person in enumerate(who)
    ]
    handles.append(pyplot.Line2D([], [], color="#888", linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize="small")
    return _svg(pyplot, figure)


def draw_map(table: EmbeddingTable, labels: Sequence[str]) -> str:
    """Return an SVG scatter of the vectors' two main components, coloured by label, with a marker for each stream.

    The mean of each stream is taken out first: streams lie apart in joint spaces, and that gap says nothing of content.

    Args:
        table: Vectors, one a window or caption.
        labels: Label of each vector.
    """
    pyplot = _matplotlib()
    vectors, streams = np.array(table.vectors, dtype=np.float32), np.asarray(table.streams)
    marks = dict(zip(sorted(set(streams.tolist())), "o^sDv", strict=False))
    for stream in marks:
        vectors[streams == stream] -= vectors[streams == stream].mean(axis=0)
    points, share = project(vectors)
    common = [value for value, _ in Counter(labels).most_common(VALUES)]
    groups = {value: COLOURS[place] for place, value in enumerate(sorted(common))}
    if len(set(labels)) > len(common):
        groups["others"] = "#bbb"
    names = np.array([label if label in common else "others" for label in labels])
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    for value, colour in reversed(groups.items()):
        for stream, mark in marks.items():
            chosen = (names == value) & (streams == stream)
            axes.scatter(*points[chosen].T, s=18, marker=mark, color=colour, alpha=0.75, linewidths=0)
    dot = {"linestyle": "", "marker": "o"}
    handles = [pyplot.Line2D([], [], **dot, color=colour, label=value or "(none)") for value, colour in groups.items()]
    handles = handles if len(groups) > 1 else []
    handles += [pyplot.Line2D([], [], linestyle="", marker=m, color="#888", label=name) for name, m in marks.items()]
    figure.legend(handles=handles, fontsize="small", loc="outside right upper", frameon=False)
    axes.set(xlabel=f"component 1 ({share[0]:.0%} of the variance)", ylabel=f"component 2 ({share[1]:.0%})")
    axes.grid(alpha=0.3)
    return _svg(pyplot, figure)


def project(
    vectors: Float[np.ndarray, "rows dim"],
) -> tuple[Float[np.ndarray, "rows 2"], Float[np.ndarray, " 2"]]:
    """Return the two principal components of the vectors, and the share of the variance that each explains."""
    centred = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    return left[:, :2] * values[:2], values[:2] ** 2 / max(float((values**2).sum()), 1e-12)


def thumbnail(frame: UInt8[np.ndarray, "height width 3"]) -> str:
    """Return a frame as the address of an inline JPEG."""
    return _inline(Image.fromarray(frame), "JPEG", quality=80)


def picture_sound(waveform: Float[torch.Tensor, "channels samples"], rate: float) -> str:
    """Return a sound's log-mel spectrogram as the address of an inline PNG, low tones at the bottom."""
    mono = waveform.mean(dim=0, keepdim=True)
    bands = log_mel(mono, rate=rate, mels=48, window=0.025, hop=0.02)[0].T.flip(0)
    scaled = (bands - bands.min()) / (bands.max() - bands.min()).clamp(min=1e-6)
    image = Image.fromarray((255 * scaled).byte().numpy()).resize((160, 60), Image.Resampling.BILINEAR)
    return _inline(image, "PNG")


def _inline(image: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show_card(rows: Rows, row: int, span: tuple[float, float], heading: str, kind: str = "", only: str = "") -> str:
    """Return one recording's window as HTML: a frame of its middle, its spectrogram, its caption, its place.

    Args:
        rows: The recordings.
        row: Which.
        span: Seconds of the window.
        heading: First line.
        kind: ``query`` or ``right``, to mark it.
        only: The one stream to show, where it is the query.
    """
    parts = []
    start, end = span
    with rows.recording(row) as recording:
        streams, captions = recording.timeline.streams, recording.timeline.captions
        text = html.escape(captions[0].text) if captions else ""
        if "video" in streams and only in ("", "video"):
            middle = (start + end) / 2
            frame = recording.frames([middle], short_side=112)[0]
            parts.append(f'<img alt="frame at {middle:.1f} s" src="{thumbnail(frame.numpy())}">')
        if "audio" in streams and end > start and only in ("", "audio"):
            sound = recording.waveform(start, end, 16_000)
            parts.append(f'<img alt="spectrogram" src="{picture_sound(sound, 16_000)}">')
    if only == "text":
        text = f"<q>{text}</q>"
    place = f"<br><small>{html.escape(rows.row(row)['path'])}<br>{start:.1f} to {end:.1f} s</small>"
    return f'<div class="card {kind}"><b>{html.escape(heading)}</b>{"".join(parts)}{text}{place}</div>'


def rank_recordings(query: Float[np.ndarray, " dim"], table: EmbeddingTable) -> list[tuple[int, float]]:
    """Return the place in the table and the score of each recording's nearest window, nearest recording first."""
    scores = np.asarray(table.vectors) @ query
    found: dict[int, tuple[int, float]] = {}
    for place in np.argsort(-scores, kind="stable").tolist():
        found.setdefault(int(table.numbers[place]), (place, float(scores[place])))
    return list(found.values())


def show_neighbours(rows: Rows, table: EmbeddingTable, pairs: Sequence[tuple[str, str]], examples: int, k: int) -> str:
    """Return HTML of some queries with their nearest recordings, for each pair of streams (query, answer)."""
    parts = []
    for asked, answered in pairs:
        queries, answers = table.select(asked), table.select(answered)
        if not len(queries) or not len(answers):
            continue
        parts.append(f"<h3>{asked} to {answered}</h3>")
        for place in np.unique(np.linspace(0, len(queries) - 1, examples).astype(int)).tolist():
            row = int(queries.numbers[place])
            ranked = rank_recordings(np.asarray(queries.vectors[place]), answers)
            own = [rank for rank, (found, _) in enumerate(ranked, 1) if int(answers.numbers[found]) == row]
            if own:
                parts.append(_note(f"Its own {answered} is number {own[0]} of {len(ranked)}."))
            cards = [show_card(rows, row, _window(queries, place), f"query: {asked}", "query", asked)]
            for found, score in ranked[:k]:
                number = int(answers.numbers[found])
                kind = "right" if number == row else ""
                heading = f"{score:.2f}" + (", itself" if kind else "")
                cards.append(show_card(rows, number, _window(answers, found), heading, kind))
            parts.append(f'<div class="hits">{"".join(cards)}</div>')
    return "\n".join(parts)


def _window(table: EmbeddingTable, place: int) -> tuple[float, float]:
    return float(table.starts[place]), float(table.ends[place])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file; one without its line break is still being written, and left out.

    Raises:
        TriptychError: If it is missing or a line is no JSON; it names the line.
    """
    if not path.is_file():
        raise TriptychError(f"{path}: there is no such file; is this a run?")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise TriptychError(f"{path}, line {number} is no JSON: {error}.") from error
    return lines


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise TriptychError("The report draws with matplotlib: pip install 'triptych[report]'.") from error
    matplotlib.use("agg")
    matplotlib.rcParams["svg.fonttype"] = "path"
    import matplotlib.pyplot as pyplot

    return pyplot


def _svg(pyplot: Any, figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    text = buffer.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"
