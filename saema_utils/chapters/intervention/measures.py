"""What a trained autoencoder is worth: how well it reconstructs, and how far it keeps concepts apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from saema_utils.geometry.clusters import find_local_representations
from saema_utils.geometry.dimension import intrinsic_dimension
from saema_utils.geometry.matching import procrustes_disparity
from saema_utils.geometry.pole_measures import mst_weight_scale_free
from saema_utils.intervention.separation import LabelledTokens, cluster_means, mean_pole_distance, separation_scale_free
from saema_utils.runtime import float64
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.fidelity import explained_variance, fidelity_under_choices, mean_cosine, measure_fidelity

if TYPE_CHECKING:
    from sae_lens import SAE

SMALLEST_CLUSTER = 4  # a word stands in a handful of sentences
#: What an autoencoder may be asked to reconstruct, by name: vectors [N, D], and the concept or text of each.
Texts = Mapping[str, tuple[Tensor, Tensor]]


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

    @property
    def texts(self) -> Texts:
        named = {"trained words": self.train, "unseen words": self.words, "unseen sentences": self.sentences}
        return {name: (part.vectors, part.concepts) for name, part in named.items()}


MEASURED = {
    "explained_variance": "share of the variance of held-out running text that reconstructions explain",
    "mse": "mean squared error a dimension, held-out running text",
    "l0": "mean number of active latents a token, held-out running text",
    "ev_train": "share of variance explained, concept tokens that were trained on",
    "cosine_train": "mean cosine, concept tokens that were trained on",
    "separation_train": "scale-free separation of poles (0 to 1), concept tokens that were trained on",
    "ev_words": "share of variance explained, words never trained on",
    "cosine_words": "mean cosine, words never trained on",
    "separation_words": "scale-free separation, words never trained on",
    "ev_sentences": "share of variance explained, sentences never trained on",
    "cosine_sentences": "mean cosine, sentences never trained on",
    "separation_sentences": "scale-free separation, sentences never trained on",
    "separation": "scale-free separation of poles (0 to 1), all concept tokens, mean over concepts",
    "aedp": "average distance of poles, in units of the latents",
    "latent_rms": "root-mean-square length of concept tokens' latents",
    "mst_weight_scale_free": "mean edge of the tree that joins the poles, over the scatter of the tokens",
    "procrustes_disparity": "disparity of the poles' shape from that in the residual stream, 0 to 1",
    "n_local": "clusters found among a concept's latents",
    "intrinsic_dimension": "intrinsic dimension of a concept's latents (TwoNN)",
}


@torch.no_grad()
def measure_trained(sae: SAE, heldout: Tensor, split: Split) -> dict[str, float]:
    """Reconstruction of running text and concepts, and separation of concepts, on what training did not see.

    Keys are explained by :data:`MEASURED`. Measures of separation and shape are means over concepts; poles are means of
    a word's tokens, and clusters are found directly, without UMAP.
    """
    coder, tokens = SaeCoder(sae), split.all
    found = measure_fidelity(coder, heldout)
    latents = coder.encode(tokens.vectors)
    decoded, first = coder.decode(latents, like=tokens.vectors), 0
    row = {name: getattr(found, name) for name in ("explained_variance", "cosine", "mse", "l0", "dead_fraction")}
    for name in ("train", "words", "sentences"):
        part: LabelledTokens = getattr(split, name)
        rows = slice(first, first := first + len(part.vectors))
        row[f"ev_{name}"] = explained_variance(part.vectors, decoded[rows])
        row[f"cosine_{name}"] = mean_cosine(part.vectors, decoded[rows])
        row[f"separation_{name}"] = _mean_over_concepts(latents[rows], part, separation_scale_free)
    row["separation"] = _mean_over_concepts(latents, tokens, separation_scale_free)
    row["aedp"] = _mean_over_concepts(latents, tokens, lambda z, labels: mean_pole_distance(_means(z, labels)))
    row["latent_rms"] = float(float64(latents.square().sum(1)).mean().sqrt())
    row["mst_weight_scale_free"] = _mean_over_concepts(latents, tokens, _tree)
    shapes = [_poles(latents, tokens, i) for i in tokens.concepts.unique()]
    dense = [_poles(tokens.vectors, tokens, i) for i in tokens.concepts.unique()]
    pairs = [procrustes_disparity(a, b) for a, b in zip(shapes, dense, strict=True) if len(a) > 2]
    row["procrustes_disparity"] = sum(pairs) / len(pairs) if pairs else float("nan")
    row["n_local"] = _mean_over_concepts(latents, tokens, _clusters)
    row["intrinsic_dimension"] = _mean_over_concepts(latents, tokens, lambda z, _: intrinsic_dimension(z).estimate)
    return row


@torch.no_grad()
def measure_choices(sae: SAE, texts: Texts) -> pd.DataFrame:
    """Reconstruction of each of several texts in every way of counting tokens.

    Columns on (which text) and those of :func:`~saema_utils.saes.fidelity.fidelity_under_choices`.
    """
    coder, rows = SaeCoder(sae), []
    for name, (vectors, groups) in texts.items():
        found = fidelity_under_choices(vectors, coder.reconstruct(vectors), groups)
        rows += [{"on": name, **facts} for facts in found]
    return pd.DataFrame(rows)


def _clusters(latents: Tensor, clusters: Tensor) -> float:
    if len(latents) <= SMALLEST_CLUSTER:
        return float("nan")
    return find_local_representations(latents, method="direct", min_cluster_size=SMALLEST_CLUSTER).n_local


def _mean_over_concepts(latents: Tensor, tokens: LabelledTokens, measure: Callable[[Tensor, Tensor], Any]) -> float:
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


def _tree(latents: Tensor, clusters: Tensor) -> float:
    spread = float64((latents - latents.mean(0)).square().sum(1)).mean().sqrt()
    return mst_weight_scale_free(_means(latents, clusters), float(spread))
