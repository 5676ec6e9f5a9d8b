"""From the losses of a step to one gradient for each parameter, by the rule that the recipe names.

``sum`` is the gradient of the weighted sum of the terms. Any other rule is one function, see ``Rule``: it is given the
gradients term by term, of each micro-batch and on each process by itself, before they are averaged, clipped and handed
to the optimizer.
"""

import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from triptych.errors import UsageError
from triptych.method import Clock, Losses
from triptych.recipe import GradientSpec

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
    if spec.rule == "sum":
        if spec.options:
            raise UsageError(f"gradients.options: the rule 'sum' has no option '{next(iter(spec.options))}'.")
        return None
    module, colon, name = spec.rule.partition(":")
    if not colon:
        raise UsageError(f"gradients.rule: there is no '{spec.rule}'; there are sum, and module:function.")
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
