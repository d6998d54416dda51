"""Words made of known features: does a sparse code merge them when it must, and only then?

The world is `sae_lens.synthetic`'s: a dictionary of true features and a generator that says which
fire. Twelve words belong to four families of three; a token fires its word's feature, its family's,
and some context features of no interest. An autoencoder with room for every word can keep all apart;
one with a single active latent and as many latents as families cannot, and must merge by threes.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.distances import pairwise_distances
from saema_utils.geometry.concept import cut_into
from saema_utils.geometry.matching import merging_scores, neighbour_purity
from saema_utils.runtime import generator, seed_everything
from saema_utils.saes.fidelity import recovered_features

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import Tensor

N_FAMILIES, N_WORDS, N_CONTEXT, D = 4, 12, 24, 32
N_FEATURES = N_FAMILIES + N_WORDS + N_CONTEXT
# Latents, active latents, and the number of clusters that the code has room for.
CODES = ((N_FEATURES, 4, N_WORDS), (16, 4, N_WORDS), (N_FAMILIES, 1, N_FAMILIES))
RECOVERED_COSINE = 0.9


@dataclass(frozen=True)
class WordWorld:
    """True features [40, 32] and labelled tokens: hidden vectors, the word and the family of each."""

    features: Float[Tensor, "G D"]
    tokens: Float[Tensor, "N D"]
    words: Int[np.ndarray, " N"]
    families: Int[np.ndarray, " N"]


class _Words:
    """Makes the generator's draws words: exactly one word and its family fire in each token."""

    def __init__(self, seed: int):
        self.random = generator(seed, "synthetic-words")

    def __call__(self, firing: Float[Tensor, "B G"]) -> Float[Tensor, "B G"]:
        words = torch.randint(N_WORDS, (len(firing),), generator=self.random)
        return with_words(firing, words)


def with_words(firing: Float[Tensor, "B G"], words: Int[Tensor, " B"]) -> Float[Tensor, "B G"]:
    """Set word and family features of tokens; context features stay as they are."""
    firing = firing.clone()
    firing[:, : N_FAMILIES + N_WORDS] = 0
    rows = torch.arange(len(firing))
    firing[rows, words // (N_WORDS // N_FAMILIES)] = 1.0
    firing[rows, N_FAMILIES + words] = 1.0
    return firing


def word_world(seed: int = 0, n_each: int = 12, noise: float = 0.02):
    """A world and the pieces to train in it: ``(WordWorld, FeatureDictionary, ActivationGenerator)``."""
    from sae_lens.synthetic import ActivationGenerator, FeatureDictionary

    seed_everything(seed)
    features = FeatureDictionary(N_FEATURES, D, seed=seed)
    draws = ActivationGenerator(N_FEATURES, 0.06, std_firing_magnitudes=0.2, modify_activations=_Words(seed))
    words = torch.arange(N_WORDS).repeat_interleave(n_each)
    with torch.no_grad():
        hidden = features(with_words(draws.sample(len(words)), words))
        hidden = hidden + noise * torch.randn(hidden.shape, generator=generator(seed, "synthetic-noise"))
        vectors = features.feature_vectors.detach().clone()
    world = WordWorld(vectors, hidden, words.numpy(), words.numpy() // (N_WORDS // N_FAMILIES))
    return world, features, draws


def train_in(features, draws, width: int, *, k: int = 4, samples: int = 200_000):
    """A TopK autoencoder of ``width`` latents, trained by sae_lens on the world's tokens."""
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.synthetic import train_toy_sae

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=D, d_sae=width, k=min(k, width)))
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train_toy_sae(sae, features, draws, training_samples=samples, batch_size=1024, lr=3e-3)
    return sae.eval()


def recovered_share(true: Float[Tensor, "G D"], learned: Float[Tensor, "F D"]) -> float:
    """Share of true features that some decoder row points along (cosine at least 0.9)."""
    return float((recovered_features(true, learned) >= RECOVERED_COSINE).float().mean())


def synthetic_merging_table(seed: int = 0, samples: int = 200_000) -> pd.DataFrame:
    """Merging where the truth is known: one row for the vectors themselves and one per width.

    Returns
    -------
    Columns representation, n_latents, room_for (clusters the code can tell apart), homogeneity_truth,
    features_recovered, words_recovered (shares with a decoder row along them), ami, homogeneity,
    completeness (tokens cut into as many clusters as there is room for, against words), ami_family (cut
    into four, against families), purity (share of tokens whose nearest other token has the same word).
    """
    import pandas as pd

    world, features, draws = word_world(seed)
    codes: list[tuple[str, int, int, Tensor, Tensor | None]] = [("hidden vectors", D, N_WORDS, world.tokens, None)]
    for width, k, room in CODES:
        sae = train_in(features, draws, width, k=k, samples=samples)
        with torch.no_grad():
            codes.append((f"SAE, {k} of {width}", width, room, sae.encode(world.tokens), sae.W_dec.detach()))
    family, word = world.features[:N_FAMILIES], world.features[N_FAMILIES : N_FAMILIES + N_WORDS]
    # A word never fires without its family, so that their sum is what a sparse code should learn.
    directions = word + family.repeat_interleave(N_WORDS // N_FAMILIES, dim=0)
    rows = []
    for name, width, room, z, decoder in codes:
        d = pairwise_distances(z)
        found = merging_scores(cut_into(d, room), world.words)
        rows.append(
            {
                "representation": name,
                "n_latents": width,
                "room_for": room,
                "homogeneity_truth": np.log(room) / np.log(N_WORDS),
                "features_recovered": np.nan if decoder is None else recovered_share(world.features, decoder),
                "words_recovered": np.nan if decoder is None else recovered_share(directions, decoder),
                "ami": found.ami,
                "homogeneity": found.homogeneity,
                "completeness": found.completeness,
                "ami_family": merging_scores(cut_into(d, N_FAMILIES), world.families).ami,
                "purity": neighbour_purity(d, world.words, np.arange(len(d)))[0],
            }
        )
    return pd.DataFrame(rows)
