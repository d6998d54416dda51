"""Maps of a concept's words: where they stand in their principal plane, and whether in cyclic order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import ActivationError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .activations import ConceptActivations
    from .concepts import ConceptPrompts


def word_means(activations: ConceptActivations) -> Float[Tensor, "W D"]:
    """Mean vector of each word over its prompts, in the order of ``prompts.words``.

    Where :func:`same_sentences` holds, what differs between two means is the word. A prompt whose word
    tokens are all sinks is left out; a word that has no other prompt gets NaN.
    """
    vectors, words = activations.word_vectors(), activations.prompt_words
    return torch.stack([vectors[words == i].nanmean(0) for i in range(len(activations.prompts.words))])


def same_sentences(prompts: ConceptPrompts) -> bool:
    """Whether every word stands in the same sentences, so that they cancel in differences of word means."""
    around: dict[str, list[tuple[str, str]]] = {word: [] for word in prompts.words}
    for prompt in prompts.prompts:
        start, end = prompt.span
        around[prompt.word].append((prompt.text[:start], prompt.text[end:]))
    first, *others = map(sorted, around.values())
    return all(sentences == first for sentences in others)


def principal_plane(points: Float[Tensor, "W D"], k: int = 2) -> tuple[Float[Tensor, "W k"], float]:
    r"""Coordinates in the first ``k`` principal components, and the share of the variance they hold.

    .. math:: X - \bar X = U \Sigma V^\top, \quad \text{coordinates } U_k \Sigma_k, \quad
              \text{share } \sum_{i \le k} \sigma_i^2 / \sum_i \sigma_i^2

    A component's sign is arbitrary; it is fixed so that its entry of largest size is positive.

    Raises
    ------
    ActivationError
        If there are fewer than ``k + 1`` points, or they all coincide.
    """
    if len(points) <= k:
        raise ActivationError(f"{len(points)} points do not span {k} components; at least {k + 1} are needed.")
    centred = points.double() - points.double().mean(0)
    u, sigma, _ = torch.linalg.svd(centred, full_matrices=False)
    total = float(sigma.square().sum())
    if not total > 0:
        raise ActivationError("all points coincide (or are not finite), so that they have no principal plane.")
    coordinates = (u * sigma)[:, :k]
    largest = coordinates.gather(0, coordinates.abs().argmax(0, keepdim=True))
    coordinates = coordinates * torch.where(largest < 0, -1.0, 1.0)
    return coordinates.to(points.dtype), float(sigma[:k].square().sum()) / total


def variance_shares(points: Float[Tensor, "N D"], k: int) -> Float[Tensor, " k"]:
    """Share of the variance that the first 1, 2, ..., ``k`` principal components hold together."""
    centred = points.double() - points.double().mean(0)
    spectrum = torch.linalg.svdvals(centred).square()
    if not float(spectrum.sum()) > 0:
        raise ActivationError("all points coincide (or are not finite), so that they have no variance to share out.")
    return (spectrum.cumsum(0) / spectrum.sum())[:k]


def places_around(plane: Float[Tensor, "W 2"]) -> np.ndarray:
    """Rank of each word's angle about the centre of the plane: 0 to W - 1, anticlockwise."""
    x, y = (np.asarray(plane, dtype=float) - np.asarray(plane, dtype=float).mean(0)).T
    place = np.empty(len(x), dtype=int)
    place[np.argsort(np.arctan2(y, x), kind="stable")] = np.arange(len(x))
    return place


def cyclic_order(places: np.ndarray) -> float:
    """Share of neighbouring words (the last and first too) that are neighbours around the centre.

    Takes what :func:`places_around` gives. 1 where the words stand around the centre in their order, in
    either direction and from any start; shuffled words reach ``2 / (W - 1)`` on average.

    Raises
    ------
    ActivationError
        If there are fewer than four words: three are always in order.
    """
    n = len(places)
    if n < 4:
        raise ActivationError(f"cyclic order of {n} words means nothing; at least 4 are needed.")
    steps = np.abs(np.diff(places, append=places[:1]))
    return float(np.mean((steps == 1) | (steps == n - 1)))


def similarity(points: Float[Tensor, "W D"]) -> Float[Tensor, "W W"]:
    """Cosine similarity of the points after their common mean is taken away; NaN for a point that is NaN."""
    centred = torch.nn.functional.normalize(points.double() - points.double().nanmean(0), dim=1)
    return (centred @ centred.T).to(points.dtype)
