"""How good an autoencoder is, and how far apart it keeps meanings, on tokens that its training did not see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .coders import SaeCoder
from .fidelity import explained_variance, mean_cosine, measure_fidelity
from .geometry import find_local_representations, intrinsic_dimension, mst_weight_scale_free, procrustes_disparity
from .runtime import float64
from .separability import LabelledTokens
from .separation import cluster_means, mean_pole_distance, separation_scale_free

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

SMALLEST_CLUSTER = 4  # a word stands in a handful of sentences


@dataclass(frozen=True)
class Split:
    """Labelled concept tokens: those that training sees, unseen words, unseen sentences of seen words."""

    train: LabelledTokens
    words: LabelledTokens
    sentences: LabelledTokens

    @property
    def all(self) -> LabelledTokens:
        parts = (self.train, self.words, self.sentences)
        return LabelledTokens(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("vectors", "clusters", "concepts"))
        )


@torch.no_grad()
def judge(sae: SAE, heldout: Tensor, split: Split) -> dict[str, float]:
    """Reconstruction of corpus and concepts, and separation of concepts, on what training did not see.

    ``explained_variance``, ``cosine``, ``mse``, ``l0``, ``dead_fraction`` are of the held-out corpus; ``ev_*`` of
    concept tokens; ``separation_*`` (scale-free), ``aedp``, and chapter 4's ``mst_weight_scale_free``,
    ``procrustes_disparity`` (to the dense residual's poles), ``n_local`` (direct clustering of the word tokens)
    and ``intrinsic_dimension`` are means over concepts.
    """
    coder, tokens = SaeCoder(sae), split.all
    found = measure_fidelity(coder, heldout)
    latents = coder.encode(tokens.vectors)
    decoded, first = coder.decode(latents, like=tokens.vectors), 0
    row = {
        "explained_variance": found.explained_variance, "cosine": found.cosine, "mse": found.mse, "l0": found.l0,
        "dead_fraction": found.dead_fraction,
    }  # fmt: skip
    for name in ("train", "words", "sentences"):
        part: LabelledTokens = getattr(split, name)
        rows = slice(first, first := first + len(part.vectors))
        row[f"ev_{name}"] = explained_variance(part.vectors, decoded[rows])
        row[f"cosine_{name}"] = mean_cosine(part.vectors, decoded[rows])
        row[f"separation_{name}"] = _mean_over_concepts(latents[rows], part, separation_scale_free)
    row["separation"] = _mean_over_concepts(latents, tokens, separation_scale_free)
    row["aedp"] = _mean_over_concepts(latents, tokens, _pole_distance)
    row["latent_rms"] = float(float64(latents.square().sum(1)).mean().sqrt())
    row["mst_weight_scale_free"] = _mean_over_concepts(latents, tokens, _tree)
    shapes = [_poles(latents, tokens, i) for i in tokens.concepts.unique()]
    dense = [_poles(tokens.vectors, tokens, i) for i in tokens.concepts.unique()]
    pairs = [procrustes_disparity(a, b) for a, b in zip(shapes, dense, strict=True) if len(a) > 2]
    row["procrustes_disparity"] = sum(pairs) / len(pairs) if pairs else float("nan")
    row["n_local"] = _mean_over_concepts(latents, tokens, _clusters)
    row["intrinsic_dimension"] = _mean_over_concepts(latents, tokens, lambda z, _: intrinsic_dimension(z).estimate)
    return row


def _clusters(latents: Tensor, clusters: Tensor) -> float:
    if len(latents) <= SMALLEST_CLUSTER:
        return float("nan")
    return find_local_representations(latents, method="direct", min_cluster_size=SMALLEST_CLUSTER).n_local


def _mean_over_concepts(latents: Tensor, tokens: LabelledTokens, measure: Any) -> float:
    values = []
    for concept in tokens.concepts.unique():
        here = tokens.concepts == concept
        sizes = tokens.clusters[here].unique(return_counts=True)[1]
        # One token a word has no scatter to compare the poles with.
        if len(sizes) > 1 and int(sizes.max()) > 1:
            values.append(float(measure(_in_use(latents[here]), tokens.clusters[here])))
    values = [value for value in values if value == value]
    return sum(values) / len(values) if values else float("nan")


def _in_use(latents: Tensor) -> Tensor:
    """Without latents that are off on all rows: no distance sees them, and they are nine tenths of the work."""
    used = (latents != 0).any(0)
    return latents[:, used] if bool(used.any()) else latents


def _means(latents: Tensor, clusters: Tensor) -> Tensor:
    names, labels = clusters.unique(return_inverse=True)
    points = float64(latents)
    return cluster_means(points, labels.to(points.device), len(names))


def _poles(latents: Tensor, tokens: LabelledTokens, concept: Tensor) -> Tensor:
    here = tokens.concepts == concept
    return _means(_in_use(latents[here]), tokens.clusters[here])


def _pole_distance(latents: Tensor, clusters: Tensor) -> Tensor:
    return mean_pole_distance(_means(latents, clusters))


def _tree(latents: Tensor, clusters: Tensor) -> float:
    spread = float64((latents - latents.mean(0)).square().sum(1)).mean().sqrt()
    return mst_weight_scale_free(_means(latents, clusters), float(spread))
