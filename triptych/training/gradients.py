"""From the losses of a step to one gradient for each parameter, by the rule that the recipe names.

``sum`` is the gradient of the weighted sum of the terms. Any other rule is one function, see ``Rule``: it is given the
gradients term by term, of each micro-batch and on each process by itself, before they are averaged, clipped and handed
to the optimizer. ``harmonize`` is one of these, for any method with several terms.
"""

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn

from triptych.errors import UsageError
from triptych.method import Clock, Losses
from triptych.recipe import Config, GradientSpec, validate

Gradients = list[Tensor | None]
"""One for each trained parameter, always in the same order; None where there is none."""


@runtime_checkable
class Rule(Protocol):
    """How the gradients of several terms become one."""

    def __call__(self, terms: Mapping[str, Gradients], clock: Clock) -> tuple[Gradients, Mapping[str, float | Tensor]]:
        """Return the gradients of a micro-batch, and values for the log.

        Args:
            terms: By name, the gradients of each term times its weight; None where it does not reach a parameter. All
                are of one forward pass: the draws are the same.
            clock: Where the training stands.

        Returns:
            The gradients to apply. None leaves a parameter alone: if no micro-batch of any process has a gradient for
            it, the optimizer does not touch it or its moments in this step.
        """
        ...


def find_rule(spec: GradientSpec) -> Rule | None:
    """Return the rule that a recipe names, with its options; None for ``sum``.

    Raises:
        UsageError: If there is no such rule, or it has no such option.
    """
    if spec.rule == "harmonize":
        return validate(Harmonization, spec.options, "gradients.options")
    if spec.rule == "sum":
        if spec.options:
            raise UsageError(f"gradients.options: the rule 'sum' has no option '{next(iter(spec.options))}'.")
        return None
    module, colon, name = spec.rule.partition(":")
    if not colon:
        raise UsageError(f"gradients.rule: there is no '{spec.rule}'; there are sum, harmonize, and module:function.")
    try:
        rule = getattr(importlib.import_module(module), name)
        inspect.signature(rule).bind({}, Clock(), **spec.options)
    except (ImportError, AttributeError, SyntaxError, TypeError, ValueError) as error:
        raise UsageError(f"gradients.rule: '{spec.rule}' cannot be used: {error}.") from error
    return partial(rule, **spec.options)


def backward(
    losses: Losses, rule: Rule | None, share: float, clock: Clock, parameters: Sequence[nn.Parameter]
) -> Mapping[str, float | Tensor]:
    """Add the gradients of one micro-batch to those of the parameters.

    Args:
        losses: Of the micro-batch.
        rule: None: the gradient of the weighted sum of the terms.
        share: Weight of the micro-batch in its step (1 / accumulated parts).
        clock: Where the training stands.
        parameters: All that are trained.

    Returns:
        What the rule tells the log.
    """
    if rule is None:
        (losses.total * share).backward()
        return {}
    terms = losses.weighted
    last = next(reversed(terms))
    found: dict[str, Gradients] = {}
    for name, term in terms.items():
        if term.requires_grad:
            found[name] = list(torch.autograd.grad(term, parameters, retain_graph=name != last, allow_unused=True))
        else:
            found[name] = [None] * len(parameters)
    gradients, report = rule(found, clock)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            scaled = gradient * share
            parameter.grad = scaled if parameter.grad is None else parameter.grad + scaled
    return report


class Harmonization(Config):
    """The rule ``harmonize``: what is done where the gradients of terms pull against each other.

    *Realignment* takes from each what points against another (PCGrad's projection, on the original partners);
    *curriculum* leaves a micro-batch out whose gradients disagree too much. All of it follows from the inner products
    of the gradients, parameter by parameter: the result is a weighted sum of them. The fields are
    ``gradients.options``.

    Source: Wu et al. 2022, arXiv 2211.02077, as far as it could be read (gradient-harmonization, section 5).
    """

    mode: Literal["none", "realign", "curriculum", "both"] = "both"
    """`none` only measures; `both` drops by the cosines as they are, then realigns (section 5.2; from memory there)."""
    scope: Literal["shared", "all"] = "shared"
    """Parameters that cosines and projections are of: those that both terms reach (a recommendation, section 5.4), or
    all, where a term counts as 0 that does not reach one."""
    per_tensor: bool = False
    """Project each parameter by itself and not all as one vector, which is another algorithm (section 5.1)."""
    gamma_start: float = -0.3
    """Cosine that a micro-batch must exceed at the first step of a round (section 5.2; from memory there)."""
    gamma_end: float = 0.0
    """The same at the last step; linear in between."""

    def __call__(self, terms: Mapping[str, Gradients], clock: Clock) -> tuple[Gradients, Mapping[str, float | Tensor]]:
        """Return the harmonized gradients, or none at all where the micro-batch is left out.

        The log is told, for terms ``a`` and ``b``, ``cosine.a.b`` and, realigned, ``cosine_after.a.b``; ``conflict``,
        the share of pairs whose cosine is below 0; and ``kept``, 1 or 0. A pair of which a gradient is zero or not
        finite has neither cosine nor conflict.
        """
        names, columns = list(terms), list(zip(*terms.values(), strict=True))
        gram, reached = inner_products(columns)
        pairs = {
            (i, j): reached[:, i] & reached[:, j] if self.scope == "shared" else reached.any(dim=1)
            for i, j in combinations(range(len(names)), 2)
        }
        # Row i: the harmonized gradient i as a sum of the original ones.
        mixing = torch.eye(len(names), dtype=gram.dtype) - self._taken(gram, pairs)
        report: dict[str, float | Tensor] = {}
        cosines = []
        for (i, j), where in pairs.items():
            before = cosine(gram[where].sum(dim=0), i, j)
            after = cosine((mixing @ gram @ mixing.transpose(1, 2))[where].sum(dim=0), i, j)
            cosines += [] if before is None else [before]
            told = {"cosine": before, "cosine_after": after}
            report |= {f"{name}.{names[i]}.{names[j]}": value for name, value in told.items() if value is not None}
        keep = self.mode in ("none", "realign") or all(value > self.gamma(clock.progress) for value in cosines)
        report |= {"conflict": sum(value < 0 for value in cosines) / max(len(pairs), 1), "kept": float(keep)}
        if not keep:
            return [None] * len(columns), report
        weights = mixing.sum(dim=1).tolist()
        return [_mix(column, each) for column, each in zip(columns, weights, strict=True)], report

    def gamma(self, progress: float) -> float:
        """Return the cosine that a micro-batch must exceed, from the share of the round that is done."""
        return self.gamma_start + (self.gamma_end - self.gamma_start) * progress

    def _taken(
        self,
        gram: Float64[Tensor, "parameters terms terms"],
        pairs: Mapping[tuple[int, int], Bool[Tensor, " parameters"]],
    ) -> Float64[Tensor, "parameters terms terms"]:
        """Return how much of gradient j is taken from gradient i: ``<g_i, g_j> / |g_j|^2`` where they conflict."""
        taken = torch.zeros_like(gram)
        if self.mode in ("none", "curriculum"):
            return taken
        for (i, j), where in pairs.items():
            products = gram[where] if self.per_tensor else gram[where].sum(dim=0, keepdim=True)
            conflict = torch.tensor([(cosine(each, i, j) or 0.0) < 0 for each in products])
            for one, other in ((i, j), (j, i)):
                share = products[:, one, other] / products[:, other, other].where(conflict, 1.0)
                taken[where, one, other] = share.where(conflict, 0.0)
        return taken


def inner_products(
    columns: Sequence[tuple[Tensor | None, ...]],
) -> tuple[Float64[Tensor, "parameters terms terms"], Bool[Tensor, "parameters terms"]]:
    """Return the inner products of the terms' gradients of each parameter, and which terms reach it.

    They are formed on the gradients' device, in float32 at least, and waited for once.
    """
    terms = len(columns[0])
    places, products = [], []
    for number, column in enumerate(columns):
        flat = [None if g is None else g.flatten().to(torch.promote_types(g.dtype, torch.float32)) for g in column]
        for i in range(terms):
            for j in range(i, terms):
                one, other = flat[i], flat[j]
                if one is not None and other is not None:
                    places.append((number, i, j))
                    products.append(torch.dot(one, other))
    gram = torch.zeros(len(columns), terms, terms, dtype=torch.float64)
    if products:
        parameter, first, second = torch.tensor(places).T
        found = torch.stack(products).double().cpu()
        gram[parameter, first, second] = found
        gram[parameter, second, first] = found
    return gram, torch.tensor([[g is not None for g in column] for column in columns])


def cosine(products: Float64[Tensor, "terms terms"], i: int, j: int) -> float | None:
    """Return the cosine of two gradients from inner products; None if one of them is zero or not finite."""
    size = float(products[i, i]) * float(products[j, j])
    found = float(products[i, j]) / math.sqrt(size) if 0 < size < math.inf else math.nan
    return min(max(found, -1.0), 1.0) if math.isfinite(found) else None


def _mix(column: tuple[Tensor | None, ...], weights: Sequence[float]) -> Tensor | None:
    """Return the weighted sum of the gradients of one parameter; None if no term reaches it."""
    total: Tensor | None = None
    for gradient, weight in zip(column, weights, strict=True):
        if gradient is not None:
            part = gradient if weight == 1 else gradient * weight
            total = part if total is None else total + part
    return total
