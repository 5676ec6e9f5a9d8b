"""The table of methods. It imports none of them: a name leads to a module and a class, which are loaded when asked for.

Someone else's method needs no entry: ``their.module:TheirMethod`` resolves as it is.
"""

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

from triptych.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """One method of the catalogue."""

    target: str
    """``module:Class``."""
    title: str
    """The paper's short name."""
    paper: str
    """Authors, venue and identifier."""
    streams: tuple[str, ...]
    """Streams that the method learns from."""
    golden: str | None = None
    """Slug of the golden cases that it is tested against, if there are any."""


CATALOG: dict[str, Entry] = {
    "av_hubert": Entry(
        target="triptych.methods.av_hubert:AVHuBERT",
        title="AV-HuBERT",
        paper="Shi, Hsu, Lakhotia, Mohamed: Learning Audio-Visual Speech Representation, ICLR 2022, arXiv 2201.02184",
        streams=("video", "audio"),
        golden="av-hubert",
    ),
    "everything_at_once": Entry(
        target="triptych.methods.everything_at_once:EverythingAtOnce",
        title="Everything at Once",
        paper="Shvetsova et al.: Everything at Once, Multi-modal Fusion Transformer, CVPR 2022, arXiv 2112.04446",
        streams=("video-features", "audio", "text"),
        golden="everything-at-once",
    ),
    "lava": Entry(
        target="triptych.methods.lava:LAVA",
        title="LAVA",
        paper="Gurram, Fang, Chan, Canny: Language Audio Vision Alignment, ICML 2022 workshop, arXiv 2207.08024",
        streams=("video", "audio", "text"),
        golden="lava",
    ),
    "lavish": Entry(
        target="triptych.methods.lavish:LAVISH",
        title="LAVISH",
        paper="Lin et al.: ViTs are Parameter-Efficient Audio-Visual Learners, CVPR 2023, arXiv 2212.07983",
        streams=("video", "audio"),
        golden="lavish",
    ),
    "vatt": Entry(
        target="triptych.methods.vatt:VATT",
        title="VATT",
        paper="Akbari et al.: VATT: Transformers for Multimodal Self-Supervised Learning from Raw Video, Audio and "
        "Text, NeurIPS 2021, arXiv 2104.11178",
        streams=("video", "audio", "text"),
        golden="vatt",
    ),
    "xdc": Entry(
        target="triptych.methods.xdc:XDC",
        title="XDC",
        paper="Alwassel et al.: Self-Supervised Learning by Cross-Modal Audio-Video Clustering, NeurIPS 2020, "
        "arXiv 1911.12667",
        streams=("video", "audio"),
        golden="xdc",
    ),
    "xkd": Entry(
        target="triptych.methods.xkd:XKD",
        title="XKD",
        paper="Sarkar, Etemad: Cross-modal Knowledge Distillation with Domain Alignment, AAAI 2024, arXiv 2211.13929",
        streams=("video", "audio"),
        golden="xkd",
    ),
    "recognition": Entry(
        target="triptych.methods.recognition:Recognition",
        title="Recognition",
        paper="no paper of its own: the fine-tuning of AV-HuBERT (arXiv 2201.02184) and of RAVEn (arXiv 2212.06246)",
        streams=("video", "audio", "text"),
    ),
    "supervised": Entry(
        target="triptych.methods.supervised:Supervised",
        title="Supervised",
        paper="no paper: the upper line of every table, trained on a label column",
        streams=("video", "audio"),
    ),
}


def resolve(name: str) -> Any:
    """Return the class that ``name`` stands for: a name of the catalogue, or ``module:Class``.

    Raises:
        UsageError: If there is no such name, module or class; it names the nearest names.
    """
    target = CATALOG[name].target if name in CATALOG else name
    module, _, attribute = target.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, CATALOG, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(CATALOG)}."
        raise UsageError(f"There is no method '{name}'; {hint} A method of your own is named as module:Class.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"The method '{name}' cannot be loaded: {error}.") from error
    if not hasattr(found, "config_class"):
        raise UsageError(f"{name} is no method: it has no `config_class`.")
    return found
