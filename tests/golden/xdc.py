"""Whitening, k-means and cluster-uniform draws (slug xdc)."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from triptych.clustering import assign, cluster_uniform_order, whiten


def check(case: Path) -> None:
    meta = json.loads((case / "meta.json").read_text())
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    white = whiten(inputs["features"], meta["pca"])
    torch.testing.assert_close(white @ white.T, outputs["pca_whitened_l2_gram"], atol=1e-4, rtol=0)

    points, centres = outputs["kmeans_points"], outputs["kmeans_centroids"]
    torch.testing.assert_close(points @ points.T, outputs["pca_whitened_l2_gram"], atol=1e-4, rtol=0)
    places = assign(points, centres)
    assert torch.equal(places, outputs["kmeans_assignment"].long())

    def error(centres: torch.Tensor) -> float:
        return float((points - centres[assign(points, centres)]).square().sum())

    means = torch.stack([points[places == k].mean(dim=0) for k in range(meta["k"])])
    assert error(means) <= error(centres) * (1 + 1e-6)

    counts = outputs["sampler_counts_per_cluster"].long()
    found = outputs["sampler_indices"].long()
    lists = json.loads(meta["sampler"].split("images_lists=")[1].split("]]")[0] + "]]")
    labels = torch.empty(sum(map(len, lists)), dtype=torch.long)
    for cluster, members in enumerate(lists):
        labels[members] = cluster
    # Their draws are numpy's: what ours has in common with them is how many there are, and of whom.
    torch.manual_seed(0)
    order = cluster_uniform_order(labels)
    assert len(order) == len(found)
    assert torch.equal(labels[found].bincount(minlength=len(lists)), counts)
    assert set(labels[order].tolist()) == set(labels[found].tolist())
    assert int(labels[order].bincount().max()) <= len(labels) // int((counts > 0).sum()) + 1
