"""The table of checkpoints that can be imported. It loads no importer: a name leads to a module, loaded when asked for.

An importer is a module with

- ``LICENCE``: a sentence about the weights' licence;
- ``configure(tensors)``: the method's configuration, from the shapes of the checkpoint's tensors;
- ``rename(tensors)``: the same tensors by our names; unknown keys are errors, what is known to be of no use is dropped;

and, where there is need,

- ``RANDOM``: a pattern of our names that the checkpoint lacks and that stay random (published encoders without heads);
- ``look(config)``: how the model looks at a recording, where the ``paper`` recipe of the method does not say it;
- ``recipe(config)``: the whole recipe, where its streams or tokenizer depend on the checkpoint;
- ``STARTS``: by name of another method, ``rename`` into the names of that method, for ``--for``.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from triptych.errors import UsageError
from triptych.recipe import Config, Recipe, Viewing

Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From the tensors of a checkpoint to ours."""


@dataclass(frozen=True)
class Source:
    """A kind of checkpoint."""

    module: str
    """Its importer, below ``triptych.weights``."""
    method: str
    """Method of the catalogue, or ``module:Class``, whose weights they are."""
    what: str
    """What was published, and where the files are told of."""

    def _load(self, name: str, otherwise: Any) -> Any:
        return getattr(importlib.import_module(f"triptych.weights.{self.module}"), name, otherwise)

    @property
    def licence(self) -> str:
        """A sentence about the licence of the weights."""
        return str(self._load("LICENCE", None))

    @property
    def random(self) -> re.Pattern[str] | None:
        """Our names that the checkpoint lacks."""
        found: re.Pattern[str] | None = self._load("RANDOM", None)
        return found

    @property
    def starts(self) -> Mapping[str, Rename]:
        """Other methods that can begin with these weights."""
        found: Mapping[str, Rename] = self._load("STARTS", {})
        return found

    def configure(self, tensors: Mapping[str, Tensor]) -> Config:
        """Return the configuration that the shapes of a checkpoint say."""
        found: Config = self._load("configure", None)(tensors)
        return found

    def rename(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by our names."""
        found: dict[str, Tensor] = self._load("rename", None)(tensors)
        return found

    def recipe(self, config: Config) -> Recipe | None:
        """Return the recipe of a checkpoint; None where it is the method's ``paper``."""
        tell: Callable[[Config], Recipe] | None = self._load("recipe", None)
        return None if tell is None else tell(config)

    def look(self, config: Config) -> Viewing | None:
        """Return how the model looks at a recording; None where the method's ``paper`` recipe says it."""
        tell: Callable[[Config], Viewing] | None = self._load("look", None)
        return None if tell is None else tell(config)


SOURCES: dict[str, Source] = {
    "av_hubert": Source(
        "av_hubert",
        "av_hubert",
        "pretrained and fine-tuned models, from the project page of facebookresearch/av_hubert",
    ),
    "everything_at_once": Source(
        "everything_at_once", "everything_at_once", "HowTo100M models, from the page of ninatu/everything_at_once"
    ),
    "lava": Source("lava", "lava", "none were published; models made with the authors' code of 2021"),
    "lavish": Source("lavish", "lavish", "none were published; AVE models made with the code of GenjiB/LAVISH"),
    "timm": Source(
        "timm", "triptych.methods.lavish:ImageBackbone", "Swin V2 and vision transformers of timm 0.6.7: LAVISH's base"
    ),
    "vatt": Source(
        "vatt", "vatt", "pretrained BBS, MBS, LBS, UT-Medium, from the folder vatt of google-research/google-research"
    ),
    "xdc": Source("xdc", "xdc", "video encoders R(2+1)D-18, from the page of HumamAlwassel/XDC"),
    "xkd": Source("xkd", "xkd", "encoders of students and teachers, from the releases of pritamqu/XKD"),
}
"""By the name that ``triptych import`` takes."""


def find_source(name: str) -> Source:
    """Return a kind of checkpoint by name.

    Raises:
        UsageError: If there is none of that name; it names the nearest.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=3) or list(SOURCES)
        raise UsageError(f"Nothing is known of weights called '{name}'; there are {', '.join(near)}.")
    return SOURCES[name]


def sources_for(method: str) -> dict[str, Source]:
    """Return the kinds of checkpoints that become a method, or its start."""
    return {name: source for name, source in SOURCES.items() if method == source.method or method in source.starts}
