"""A run folder to one self-contained page: curves, tables, neighbours with pictures and sound, a map of the vectors."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from triptych.embedding import EmbeddingTable
from triptych.errors import TriptychError
from triptych.evaluation.table import from_json
from triptych.files import replacing
from triptych.layers.spectrogram import log_mel
from triptych.media.collection import Rows
from triptych.recipe import Recipe

EXAMPLES = 240
"""Recordings that neighbours and map are drawn from."""
COLOURS = ("#0b6e99", "#c8553d", "#588157", "#8d5a97", "#b08900", "#3d405b", "#d1495b", "#2a9d8f", "#6c757d", "#e07a5f")
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
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } td.text { text-align: left; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; } .plots figure { margin: 0; flex: 0 1 20rem; }
.plots svg { background: #fff; max-width: 100%; height: auto; border-radius: 4px; }
.hits { display: flex; gap: .75rem; align-items: flex-start; margin: 1rem 0; overflow-x: auto; }
.card { flex: 0 0 9.5rem; font-size: .8rem; background: var(--soft); padding: .4rem; border-radius: 4px; }
.card img { width: 100%; display: block; margin-bottom: .2rem; image-rendering: auto; }
.card.query { outline: 2px solid #0b6e99; }
pre { overflow-x: auto; background: var(--soft); padding: .75rem; }
.note { opacity: .75; font-size: .9rem; }
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
        ("Training", f'<div class="plots">{"".join(curves)}</div>'),
        ("Evaluation", _evaluations(run)),
    ]
    for space, table in tables.items():
        if rows is None or not len(table):
            continue
        streams = sorted(set(table.streams.tolist()))
        pairs = [(asked, answered) for asked in streams for answered in ("video", "audio") if answered in streams]
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
        sections.append((f"Nearest neighbours in the space {space}", show_neighbours(rows, table, pairs, 3, 5)))
        sections.append((f"Map of the space {space}", _map(rows, table, facts.get("label"))))
    if rows is None:
        gone = f"The source {facts['source']} is not there, so neighbours and map are left out."
        sections.append(("Neighbours", f'<p class="note">{html.escape(gone)}</p>'))
    sections.append(("Recipe", f"<pre>{html.escape(recipe.to_yaml())}</pre>"))
    return save_page(render_page(f"{recipe.method}: {run.name}", sections), run / "report.html")


def _by_prefix(names: Sequence[str]) -> dict[str, list[str]]:
    """Return a method's reports, those with a common first word on one plot."""
    plots: dict[str, list[str]] = {}
    for name in names:
        plots.setdefault(name.split("_")[0], []).append(name)
    return plots


def _facts(recipe: Recipe, facts: Mapping[str, Any], parameters: int, steps: Sequence[Mapping[str, Any]]) -> str:
    last = steps[-1] if steps else {}
    shown = {
        "method": recipe.method,
        "parameters": f"{parameters:,}",
        "source": facts["source"],
        "recordings": facts["data"]["rows"],
        "steps": last.get("step", 0),
        "training time": f"{last.get('seconds', 0) / 60:.1f} minutes",
        "peak memory": f"{last.get('memory_gib', 0):.1f} GiB",
        "seed": recipe.seed,
        "versions": ", ".join(f"{name} {value}" for name, value in facts.get("versions", {}).items()),
    }
    cells = "".join(f'<tr><td>{name}</td><td class="text">{html.escape(str(v))}</td></tr>' for name, v in shown.items())
    return f"<table>{cells}</table>"


def _evaluations(run: Path) -> str:
    path = run / "evaluations.jsonl"
    if not path.is_file():
        return '<p class="note">None yet: triptych evaluate RUN SOURCE --task retrieval.</p>'
    parts = []
    for values in read_lines(path):
        results = from_json(values)
        heading, cells = results.cells()
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in cells)
        caption = html.escape(f"{results.data}; 95 % intervals, seed {results.seed}")
        parts.append(f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>")
    return "".join(parts)


def _map(rows: Rows, table: EmbeddingTable, label: str | None) -> str:
    column = label or next((name for name in ("label", "kind", "category", "class") if name in rows.columns), None)
    values = rows.column(column) if column else [""] * len(rows)
    labels = [values[int(number)] for number in table.numbers]
    return draw_map(table, labels, f"coloured by {column}" if column else "all windows")


def render_page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole HTML page that loads nothing from elsewhere.

    Args:
        title: Heading of the page.
        sections: Heading and HTML of each part, in order.
    """
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections if content)
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


def draw_curves(lines: Sequence[Mapping[str, Any]], names: Sequence[str], title: str, log: bool = False) -> str:
    """Return an SVG figure of values over steps.

    Args:
        lines: Lines of a run's log, each with ``step``.
        names: Keys to draw; keys that no line has are left out.
        title: Title of the plot.
        log: Whether the vertical axis is logarithmic.

    Raises:
        TriptychError: If matplotlib is not installed.
    """
    pyplot = _matplotlib()
    figure, axes = pyplot.subplots(figsize=(5.2, 3.0), layout="constrained")
    drawn = 0
    for name in names:
        points = [(line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[drawn % len(COLOURS)], linewidth=1.4)
            drawn += 1
    axes.set(title=title, xlabel="step", **({"yscale": "log"} if log else {}))
    axes.grid(alpha=0.3)
    if drawn > 1:
        axes.legend(fontsize="small", ncols=2, framealpha=0.6)
    return _svg(pyplot, figure) if drawn else _close(pyplot, figure)


def draw_map(table: EmbeddingTable, labels: Sequence[str], title: str) -> str:
    """Return an SVG scatter of the vectors' two main components, coloured by label, with a marker for each stream.

    Args:
        table: Vectors, one a window.
        labels: Label of each vector.
        title: Title of the plot.
    """
    pyplot = _matplotlib()
    points, share = project(np.asarray(table.vectors, dtype=np.float32))
    streams = np.asarray(table.streams)
    values = sorted(set(labels))
    marks = dict(zip(sorted(set(streams)), "o^sDv", strict=False))
    figure, axes = pyplot.subplots(figsize=(8, 5.2), layout="constrained")
    for number, value in enumerate(values):
        for stream, mark in marks.items():
            chosen = np.array([label == value for label in labels]) & (streams == stream)
            axes.scatter(*points[chosen].T, s=14, marker=mark, color=COLOURS[number % len(COLOURS)], alpha=0.75)
    handles = [
        pyplot.Line2D([], [], linestyle="", marker="o", color=COLOURS[i % len(COLOURS)], label=value or "(none)")
        for i, value in enumerate(values[:20])
    ] + [pyplot.Line2D([], [], linestyle="", marker=mark, color="#888", label=stream) for stream, mark in marks.items()]
    axes.legend(handles=handles, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(title=title, xlabel=f"component 1 ({share[0]:.0%})", ylabel=f"component 2 ({share[1]:.0%})")
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


def show_card(rows: Rows, row: int, start: float, end: float, heading: str, query: bool = False) -> str:
    """Return one recording's window as HTML: a frame of its middle, its spectrogram, its caption, its place."""
    parts = []
    with rows.recording(row) as recording:
        streams = recording.timeline.streams
        middle = (start + end) / 2
        if "video" in streams:
            frame = recording.frames([middle], short_side=112)[0]
            parts.append(f'<img alt="frame at {middle:.1f} s" src="{thumbnail(frame.numpy())}">')
        if "audio" in streams and end > start:
            sound = recording.waveform(start, end, 16_000)
            parts.append(f'<img alt="spectrogram" src="{picture_sound(sound, 16_000)}">')
        captions = recording.timeline.captions
        text = captions[0].text if captions else ""
    place = f"{html.escape(rows.row(row)['path'])}<br>{start:.1f} to {end:.1f} s"
    kind = "card query" if query else "card"
    return f'<div class="{kind}"><b>{html.escape(heading)}</b>{"".join(parts)}{html.escape(text)}<br>{place}</div>'


def find_neighbours(
    query: Float[np.ndarray, " dim"], table: EmbeddingTable, k: int, besides: int
) -> list[tuple[int, float]]:
    """Return places in the table and scores of the ``k`` nearest windows, one a recording, without ``besides``."""
    scores = np.asarray(table.vectors) @ query
    found: dict[int, tuple[int, float]] = {}
    for place in np.argsort(-scores):
        row = int(table.numbers[place])
        if row != besides and row not in found:
            found[row] = (int(place), float(scores[place]))
        if len(found) == k:
            break
    return list(found.values())


def show_neighbours(rows: Rows, table: EmbeddingTable, pairs: Sequence[tuple[str, str]], examples: int, k: int) -> str:
    """Return HTML of some queries with their nearest recordings, for each pair of streams (query, answer)."""
    parts = []
    for asked, answered in pairs:
        queries, answers = table.select(stream=asked), table.select(stream=answered)
        if not len(queries) or not len(answers):
            continue
        parts.append(f"<h3>{asked} to {answered}</h3>")
        for place in np.linspace(0, len(queries) - 1, examples).astype(int):
            row = int(queries.numbers[place])
            nearest = find_neighbours(np.asarray(queries.vectors[place]), answers, k, besides=-1)
            cards = [show_card(rows, row, *_window(queries, int(place)), heading=f"query ({asked})", query=True)]
            for found, score in nearest:
                number = int(answers.numbers[found])
                mark = " (itself)" if number == row else ""
                cards.append(show_card(rows, number, *_window(answers, found), heading=f"{score:.2f}{mark}"))
            parts.append(f'<div class="hits">{"".join(cards)}</div>')
    return "\n".join(parts)


def _window(table: EmbeddingTable, place: int) -> tuple[float, float]:
    return float(table.starts[place]), float(table.ends[place])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file.

    Raises:
        TriptychError: If it is missing or a line is no JSON; it names the line.
    """
    if not path.is_file():
        raise TriptychError(f"{path}: there is no such file; is this a run?")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
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


def _close(pyplot: Any, figure: Any) -> str:
    pyplot.close(figure)
    return ""
