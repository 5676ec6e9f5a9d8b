"""Contrastive losses: pure functions, in float32 under any precision.

Keys of other processes are the caller's affair (``distributed.gather``): a function takes keys that may be more than
the queries, and where the queries' own lie among them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

EXCLUDED = -1e9
"""Added to the logits of keys that do not count: safe in float32, where infinity would turn gradients into NaN."""


def info_nce(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "keys dim"],
    scale: Float[Tensor, ""] | float,
    offset: int = 0,
    key_valid: Bool[Tensor, " keys"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return one direction of InfoNCE for each query: logsumexp_j s<q_i, k_j> - s<q_i, k_i>.

    Args:
        queries: Vectors, normalised by the caller where the method says so.
        keys: Vectors of the other side; the positive of query i is key ``offset + i``.
        scale: Multiplier of the inner products (1 / temperature).
        offset: Place of the first query's positive among the keys.
        key_valid: Keys that count; all where None. The value of a query whose own key does not count means nothing.

    Source: contrastive-common section 2.1.
    """
    logits = queries.float() @ keys.float().T * scale
    if key_valid is not None:
        logits = logits + EXCLUDED * (~key_valid).float()
    targets = torch.arange(offset, offset + len(queries), device=queries.device)
    return functional.cross_entropy(logits, targets, reduction="none")
