"""What chapter 2 finds: known features are recovered, few latents rebuild much, and the model misses the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from saema_utils.saes.fidelity import explained_variance, recovered_features

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from saema_utils.saes.training import TrainedSae

NEAR = 0.9  # cosine from which a latent counts as a feature found


@dataclass(frozen=True)
class KnownFeatures:
    """What an SAE finds of features that are known.

    Attributes
    ----------
    found, by_chance
        [G] cosine of each true feature with the nearest latent, and with the nearest of as many random directions.
    explained, possible
        Explained variance of held-out tokens by the SAE, and by the true features themselves with only the ``k``
        strongest of each token: what a perfect encoder could reach.
    """

    found: Float[np.ndarray, " G"]
    by_chance: Float[np.ndarray, " G"]
    explained: float
    possible: float

    @property
    def price_of_k(self) -> float:
        """Share of what the SAE leaves unexplained that no encoder of ``k`` features could explain."""
        return (1 - self.possible) / (1 - self.explained)

    @property
    def are_found(self) -> bool:
        """Nine of ten are found and none by chance, and most of what is missing is the price of k."""
        found, by_chance = (self.found > NEAR).mean(), (self.by_chance > NEAR).mean()
        return bool(found >= 0.9 and by_chance == 0 and self.price_of_k > 0.5)

    def in_short(self) -> str:
        found, by_chance = (self.found > NEAR).sum(), (self.by_chance > NEAR).sum()
        return (
            f"{found} of {len(self.found)} found, {by_chance} by chance · the SAE explains {self.explained:.0%}, "
            f"a perfect encoder {self.possible:.0%}: {self.price_of_k:.0%} of what is missing is the price of k"
        )


def known_features(
    truth: Float[Tensor, "G D"], strengths: Float[Tensor, "N G"], k: int, toy: TrainedSae, random: Float[Tensor, "F D"]
) -> KnownFeatures:
    """Hold a toy SAE against the features that its tokens ``strengths @ truth`` were made of."""
    strongest = strengths.topk(k)
    kept = torch.zeros_like(strengths).scatter(-1, strongest.indices, strongest.values)
    return KnownFeatures(
        found=recovered_features(truth, toy.sae.W_dec).detach().numpy(),
        by_chance=recovered_features(truth, random).numpy(),
        explained=float(toy.history["explained_variance"].iloc[-1]),
        possible=explained_variance(strengths @ truth, kept @ truth),
    )


@dataclass(frozen=True)
class Reconstruction:
    """How the study's SAE rebuilds held-out tokens, and what that costs the language model, beside its controls.

    ``rows`` is the table ``02_sae_eval`` by representation; ``unseen`` is the error on unseen text over the error on
    the last training batches, less 1, and NaN for an SAE that was not trained here.
    """

    rows: pd.DataFrame
    unseen: float

    @property
    def is_sparse(self) -> bool:
        """Principal components need more than twice the coefficients to explain as much."""
        return bool(self.rows.loc["pca", "n_latents"] > 2 * self.rows.loc["sae", "l0"])

    @property
    def costs(self) -> pd.Series:
        """Nats per token that the model loses, by representation."""
        return self.rows["ce_spliced"] - self.rows["ce_clean"]

    @property
    def is_missed(self) -> bool:
        """The model loses by the SAE's reconstruction, and zeros are so bad that random directions recover most."""
        return bool(self.costs["sae"] > 0 and self.rows.loc["random_dictionary", "ce_recovered"] > 0.5)

    def in_short(self) -> str:
        sae, pca = self.rows.loc["sae"], self.rows.loc["pca"]
        text = (
            f"{sae['l0']:.0f} of {sae['n_latents']:.0f} latents a token explain {sae['explained_variance']:.1%} of the "
            f"variance of {sae['tokens']:,.0f} held-out tokens, {pca['n_latents']:.0f} principal components as much"
        )
        return text if self.unseen != self.unseen else f"{text} · error on unseen text {self.unseen:+.0%} from training"

    def costs_in_short(self) -> str:
        recovered = self.rows["ce_recovered"]
        return (
            f"nats per token: SAE {self.costs['sae']:.2f}, principal components {self.costs['pca']:.2f} · "
            f"recovered: SAE {recovered['sae']:.1%}, random directions {recovered['random_dictionary']:.0%}"
        )


def reconstruction(evaluation: pd.DataFrame, history: pd.DataFrame) -> Reconstruction:
    """From the tables ``02_sae_eval`` and ``02_sae_training``."""
    unseen = float("nan")
    if len(history):
        unseen = float(history["mse"].iloc[-1] / history["train_mse"].iloc[-1] - 1)
    return Reconstruction(evaluation.set_index("representation"), unseen)


@dataclass(frozen=True)
class Frontier:
    """Explained variance of the strongest coefficients, up to the SAE's L0: ``wide`` has a column a representation."""

    wide: pd.DataFrame

    @property
    def ahead(self) -> int:
        """At how many of the numbers of coefficients the SAE explains more than principal components."""
        return int((self.wide["sae"] > self.wide["pca"]).sum())

    @property
    def is_always_ahead(self) -> bool:
        return self.ahead == len(self.wide)

    def in_short(self) -> str:
        last = self.wide.iloc[-1]
        return (
            f"at {self.wide.index[-1]} coefficients: SAE {last['sae']:.2f}, principal components {last['pca']:.2f}, "
            f"random directions {last['random_dictionary']:.2f} · ahead at {self.ahead} of {len(self.wide)} numbers"
        )


def frontier(curve: pd.DataFrame, evaluation: pd.DataFrame) -> Frontier:
    """From the tables ``02_sparsity_curve`` and ``02_sae_eval``."""
    wide = curve.pivot(index="kept", columns="representation", values="explained_variance")
    l0 = evaluation.set_index("representation").loc["sae", "l0"]
    return Frontier(wide[wide.index <= max(1, l0)].dropna())


@dataclass(frozen=True)
class Workload:
    """How latents share the firing: shares of latents and of tokens, and of all firing what the busiest 1 % do."""

    silent: float
    median: float
    busiest: float
    tokens: int

    @property
    def is_uneven(self) -> bool:
        """Hardly any latent is silent, and the busiest hundredth does at least twice its part."""
        return self.silent < 0.05 and self.busiest >= 0.02

    def in_short(self) -> str:
        return (
            f"{self.silent:.1%} of latents fired on none of {self.tokens:,} tokens · the median of the others fires on "
            f"{self.median:.2%} of tokens · the busiest hundredth does {self.busiest:.0%} of the firing"
        )


def workload(density: pd.DataFrame) -> Workload:
    """From the table ``02_latent_density``."""
    rate = density["firing_rate"]
    busy = rate[rate > 0].sort_values(ascending=False)
    return Workload(
        silent=float((rate == 0).mean()),
        median=float(busy.median()),
        busiest=float(busy.head(max(1, len(density) // 100)).sum() / busy.sum()),
        tokens=int(density["tokens"].iloc[0]),
    )


@dataclass(frozen=True)
class TellingLatents:
    """The most telling latent of each concept: rows of the table ``02_concept_latents``, by concept."""

    rows: pd.DataFrame

    @property
    def mark_every_concept(self) -> bool:
        """Each fires on more than half of the occurrences of its concept's words, and on few tokens of running text."""
        return bool((self.rows["concept_rate"] > 0.5).all() and (self.rows["text_rate"] < 0.05).all())

    def in_short(self, concept: str) -> str:
        best, score = self.rows.loc[concept], self.rows["score"]
        return (
            f"{concept}: latent {best['latent']} fires on {best['concept_rate']:.0%} of the words' occurrences and on "
            f"{best['text_rate']:.1%} of running text · scores from {score.min():.2f} ({score.idxmin()}) to "
            f"{score.max():.2f} ({score.idxmax()})"
        )


def telling_latents(latents: pd.DataFrame) -> TellingLatents:
    """From the table ``02_concept_latents``."""
    return TellingLatents(latents[latents["rank"] == 0].drop_duplicates("concept").set_index("concept"))
