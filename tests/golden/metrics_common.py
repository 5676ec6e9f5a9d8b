"""Metrics of the field's own code (slug metrics-common): all of them."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from triptych.evaluation import metrics, steps


def check(case: Path) -> None:
    inputs = {key: value.numpy() for key, value in load_file(case / "inputs.safetensors").items()}
    outputs = {key: value.numpy() for key, value in load_file(case / "outputs.safetensors").items()}
    values: dict[str, object] = {}
    values |= _retrieval(inputs) | _tagging(inputs) | _steps(inputs) | _highlights(inputs)
    curve = metrics.anticipation_errors(inputs["lta/preds_BZK"], inputs["lta/labels_BZ"])
    values |= {"lta/ED_curve_1_to_20": curve, "lta/ED_at_20": curve[-1]}
    values["lta/AUED"] = np.trapezoid(curve) / (len(curve) - 1)
    logits, masks = inputs["avs/logits"], inputs["avs/masks"] > 0
    values["avs/mask_iou"] = metrics.mask_overlap(logits, masks)
    values["avs/F_beta2_0.3_max255"] = metrics.mask_f_score(logits, masks)
    assert set(values) == set(outputs), set(values) ^ set(outputs)
    assert json.loads((case / "meta.json").read_text())["suggested_tolerance"].startswith("1e-6 (5e-6 for the rounded")
    for key, value in values.items():
        found = np.asarray(value, dtype=np.float64).reshape(outputs[key].shape)
        rounded = 5e-6 if key.startswith(("youtube", "tvsum")) else 1e-6
        np.testing.assert_allclose(found, outputs[key], atol=rounded, rtol=0, err_msg=key)


def _retrieval(inputs: dict[str, np.ndarray]) -> dict[str, object]:
    ranks = metrics.retrieval_ranks(inputs["retrieval/sims"], ties="howto100m")
    found = [*(metrics.recall_at(ranks, k) / 100 for k in (1, 5, 10)), metrics.median_rank(ranks)]
    return {"retrieval/R1_R5_R10_MedR_fraction": found}


def _tagging(inputs: dict[str, np.ndarray]) -> dict[str, object]:
    labels, scores = inputs["multilabel/labels"].astype(bool), inputs["multilabel/scores"]
    result = metrics.multi_label(labels, scores)
    classes = range(labels.shape[1])
    areas = [metrics.roc_auc(labels[:, c], scores[:, c]) for c in classes]
    return {
        "multilabel/AP_per_class": [metrics.average_precision(labels[:, c], scores[:, c]) for c in classes],
        "multilabel/mAP": result.mean_ap,
        "multilabel/AUC_per_class": areas,
        "multilabel/mAUC": result.mean_auc,
        "multilabel/dprime_of_mean_auc": result.d_prime,
        "multilabel/mean_of_dprimes": np.mean([metrics.d_prime(area) for area in areas]),
    }


def _steps(inputs: dict[str, np.ndarray]) -> dict[str, object]:
    values: dict[str, object] = {}
    hits: dict[str, list[int]] = defaultdict(list)
    present, tasks = [], []
    for key in sorted(key for key in inputs if key.startswith("crosstask/") and key.endswith("/scores")):
        scores, truth = inputs[key].astype(np.float64), inputs[key.replace("scores", "gt")] > 0
        places = steps.place_in_order(scores)
        assigned = np.zeros(scores.shape)
        assigned[places, np.arange(len(places))] = 1
        values[key.replace("scores", "dp_assignment")] = assigned
        found = steps.Located.of(scores, truth, seed=0)
        hits["ordered"].append(found.hits["ordered"])
        hits["over time"].append(found.hits["over time"])
        present.append(found.present)
        tasks.append(key.split("/")[1])
    group = np.unique(tasks, return_inverse=True)[1]
    ordered, over_time = (np.array(hits[kind], dtype=np.float64) for kind in ("ordered", "over time"))
    there = np.array(present)
    return values | {
        "crosstask/recall_pooled_per_task_then_mean": steps.mean_recall(ordered, there, group, pooled=True),
        "crosstask/recall_per_video_then_task_then_mean": steps.mean_recall(ordered, there, group),
        "crosstask/recall_unordered_argmax_over_time": steps.mean_recall(over_time, there, group),
    }


def _highlights(inputs: dict[str, np.ndarray]) -> dict[str, object]:
    clips = sorted({key.split("/")[1] for key in inputs if key.startswith("youtube/")})
    youtube = [
        metrics.highlight_precision(inputs[f"youtube/{v}/match_label"] > 0, inputs[f"youtube/{v}/scores"])
        for v in clips
    ]
    videos = sorted({key.split("/")[1] for key in inputs if key.startswith("tvsum/")})
    tvsum = [metrics.summary_precision(inputs[f"tvsum/{v}/anno"], inputs[f"tvsum/{v}/scores"]) for v in videos]
    return {"youtube/mAP_trapezoid": np.mean(youtube), "tvsum/top5_mAP": np.mean(tvsum)}
