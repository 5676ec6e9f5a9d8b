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


def products(x: Float[Tensor, "rows dim"], y: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
    """Return all inner products, in float32 at least: autocast would form them in half precision whatever goes in."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return x.to(wide) @ y.to(wide).T


def info_nce(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "keys dim"],
    scale: Float[Tensor, ""] | float,
    offset: int = 0,
    key_valid: Bool[Tensor, " keys"] | None = None,
    margin: float = 0.0,
) -> Float[Tensor, " batch"]:
    """Return one direction of InfoNCE for each query: logsumexp_j s<q_i, k_j> - s<q_i, k_i>.

    Args:
        queries: Vectors, normalised by the caller where the method says so.
        keys: Vectors of the other side; the positive of query i is key ``offset + i``.
        scale: Multiplier of the inner products (1 / temperature).
        offset: Place of the first query's positive among the keys.
        key_valid: Keys that count; all where None. The value of a query whose own key does not count means nothing.
        margin: Taken off each query's product with its positive; at a scale of 1, the masked margin softmax of AVLnet.

    Source: contrastive-common section 2.1; everything-at-once section 5.
    """
    targets = torch.arange(offset, offset + len(queries), device=queries.device)
    logits = products(queries, keys)
    if margin:
        logits = logits - margin * functional.one_hot(targets, len(keys))
    logits = logits * scale
    if key_valid is not None:
        logits = logits + EXCLUDED * (~key_valid).float()
    return functional.cross_entropy(logits, targets, reduction="none")


def mil_nce(
    queries: Float[Tensor, "gathered dim"],
    keys: Float[Tensor, "gathered candidates dim"],
    scale: float = 1.0,
    query_valid: Bool[Tensor, " gathered"] | None = None,
    key_valid: Bool[Tensor, "gathered candidates"] | None = None,
    anchors: slice = slice(None),
    symmetric: bool = False,
) -> Float[Tensor, " batch"]:
    """Return MIL-NCE for each anchor: any of a row's candidates may be its positive.

    With the products ``s[i, j, c] = scale <q_i, k_jc>``, the numerator is ``lse_c s[i, i, c]``. By default there is one
    term a row, whose denominator runs over all keys of query i and, once more, over all queries of i's candidates: the
    positives stand in it twice, and one candidate that is told apart perfectly leaves log 2. Symmetric, there are two
    terms, one a direction, and their sum is returned.

    Args:
        queries: Of all rows, normalised by the caller where the method says so.
        keys: Candidates of all rows.
        scale: Multiplier of the inner products (1 / temperature); 1 on raw vectors is the loss of Miech et al. 2020.
        query_valid: Queries that count as negatives; all where None.
        key_valid: Candidates that count, as negatives and as positives; all where None.
        anchors: Rows whose loss is wanted; the others are only their negatives.
        symmetric: One denominator a direction instead of a joint one.

    Returns:
        A value for each anchor; that of a row without a valid query or candidate means nothing.

    Source: contrastive-common sections 2.2 and 2.3.
    """
    own_queries, own_keys = queries[anchors], keys[anchors]
    rows = products(own_queries, keys.flatten(0, 1)) * scale
    columns = (products(own_keys.flatten(0, 1), queries) * scale).unflatten(0, own_keys.shape[:2])
    positives = (own_queries[:, None].to(rows.dtype) * own_keys.to(rows.dtype)).sum(dim=-1) * scale
    if key_valid is not None:
        own_valid = key_valid[anchors]
        rows = rows.masked_fill(~key_valid.flatten(), EXCLUDED)
        columns = columns.masked_fill(~own_valid[..., None], EXCLUDED)
        positives = positives.masked_fill(~own_valid, EXCLUDED)
    if query_valid is not None:
        columns = columns.masked_fill(~query_valid, EXCLUDED)
    numerator = positives.logsumexp(dim=1)
    if symmetric:
        return rows.logsumexp(dim=1) + columns.flatten(1).logsumexp(dim=1) - 2 * numerator
    return torch.cat([rows, columns.flatten(1)], dim=1).logsumexp(dim=1) - numerator
