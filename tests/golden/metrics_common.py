"""Metrics of the field's own code (slug metrics-common): those that are built."""

from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from triptych.evaluation import metrics

BUILT = ("retrieval/", "multilabel/")


def check(case: Path) -> None:
    inputs = {key: value.numpy() for key, value in load_file(case / "inputs.safetensors").items()}
    outputs = {key: value.numpy() for key, value in load_file(case / "outputs.safetensors").items()}
    ranks = metrics.retrieval_ranks(inputs["retrieval/sims"], ties="howto100m")
    found = [*(metrics.recall_at(ranks, k) / 100 for k in (1, 5, 10)), metrics.median_rank(ranks)]
    labels, scores = inputs["multilabel/labels"].astype(bool), inputs["multilabel/scores"]
    result = metrics.multi_label(labels, scores)
    classes = range(labels.shape[1])
    areas = [metrics.roc_auc(labels[:, c], scores[:, c]) for c in classes]
    values = {
        "retrieval/R1_R5_R10_MedR_fraction": found,
        "multilabel/AP_per_class": [metrics.average_precision(labels[:, c], scores[:, c]) for c in classes],
        "multilabel/mAP": [result.mean_ap],
        "multilabel/AUC_per_class": areas,
        "multilabel/mAUC": [result.mean_auc],
        "multilabel/dprime_of_mean_auc": [result.d_prime],
        "multilabel/mean_of_dprimes": [np.mean([metrics.d_prime(area) for area in areas])],
    }
    assert set(values) == {key for key in outputs if key.startswith(BUILT)}
    for key, value in values.items():
        np.testing.assert_allclose(value, outputs[key], atol=1e-6, rtol=0, err_msg=key)
