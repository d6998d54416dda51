"""What chapter 2 finds: known features are recovered, few latents rebuild much, and the model misses the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from saema_utils.chapters.found import NOTHING, Count, Found, of_rows
from saema_utils.saes.fidelity import explained_variance, recovered_features
from saema_utils.saes.training import TrainedSae

NEAR = 0.9  # cosine from which a latent counts as a feature found


def known_features(
    truth: Float[Tensor, "G D"], strengths: Float[Tensor, "N G"], k: int, toy: TrainedSae, random: Float[Tensor, "F D"]
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"], Found]:
    """What a toy SAE finds of the features that its tokens ``strengths @ truth`` were made of.

    Returns
    -------
    Cosine of each true feature with the nearest latent, and with the nearest of as many random directions; and whether
    nine of ten are found and none by chance, and most of what the SAE leaves unexplained is the price of k: what no
    encoder could explain, for the true features themselves leave it with only the ``k`` strongest of each token.
    """
    strongest = strengths.topk(k)
    kept = torch.zeros_like(strengths).scatter(-1, strongest.indices, strongest.values)
    found = recovered_features(truth, toy.sae.W_dec).detach().numpy()
    by_chance = recovered_features(truth, random).numpy()
    explained = float(toy.history["explained_variance"].iloc[-1])
    possible = explained_variance(strengths @ truth, kept @ truth)
    price = (1 - possible) / (1 - explained)
    return (
        found,
        by_chance,
        Found(
            bool((found > NEAR).mean() >= 0.9 and not (by_chance > NEAR).any() and price > 0.5),
            f"{Count.true(found > NEAR)} found, {(by_chance > NEAR).sum()} by chance · the SAE explains "
            f"{explained:.0%}, a perfect encoder {possible:.0%}: {price:.0%} of what is missing is the price of k",
        ),
    )


@of_rows
def reconstruction(evaluation: pd.DataFrame, history: pd.DataFrame) -> Found:
    """Whether principal components need more than twice the coefficients to explain as much as the study's SAE.

    From ``02_sae_eval`` and ``02_sae_training``, which is empty for an SAE that was not trained here.
    """
    rows = evaluation.set_index("representation")
    sae, pca = rows.loc["sae"], rows.loc["pca"]
    text = (
        f"{sae['l0']:,.0f} of {sae['n_latents']:,.0f} latents a token explain {sae['explained_variance']:.1%} of the "
        f"variance of {sae['tokens']:,.0f} held-out tokens, {pca['n_latents']:.0f} principal components as much"
    )
    if len(history):
        unseen = history["mse"].iloc[-1] / history["train_mse"].iloc[-1] - 1
        text += f" · error on unseen text {unseen:+.0%} from training"
    return Found(bool(pca["n_latents"] > 2 * sae["l0"]), text)


@of_rows
def cost_to_the_model(evaluation: pd.DataFrame) -> Found:
    """Whether the model loses by the SAE's reconstruction, and zeros are so bad that random directions recover most."""
    rows = evaluation.set_index("representation")
    costs, recovered = rows["ce_spliced"] - rows["ce_clean"], rows["ce_recovered"]
    return Found(
        bool(costs["sae"] > 0 and recovered["random_dictionary"] > 0.5),
        f"nats per token: SAE {costs['sae']:.2f}, principal components {costs['pca']:.2f} · "
        f"recovered: SAE {recovered['sae']:.1%}, random directions {recovered['random_dictionary']:.0%}",
    )


@of_rows
def frontier(curve: pd.DataFrame, evaluation: pd.DataFrame) -> Found:
    """Whether the SAE explains more than principal components at every number of coefficients, up to its own L0.

    From the tables ``02_sparsity_curve`` and ``02_sae_eval``.
    """
    wide = curve.pivot(index="kept", columns="representation", values="explained_variance")
    l0 = evaluation.set_index("representation").loc["sae", "l0"]
    wide = wide[wide.index <= max(1, l0)].dropna()
    if wide.empty:
        return Found(None, NOTHING)
    ahead, last = Count.true(wide["sae"] > wide["pca"]), wide.iloc[-1]
    return Found(
        ahead.all,
        f"at {last.name} coefficients: SAE {last['sae']:.2f}, principal components {last['pca']:.2f}, "
        f"random directions {last['random_dictionary']:.2f} · ahead at {ahead} numbers",
    )


@of_rows
def workload(density: pd.DataFrame) -> Found:
    """Whether hardly any latent of ``02_latent_density`` is silent, and the busiest hundredth does twice its part."""
    rate = density["firing_rate"]
    busy = rate[rate > 0].sort_values(ascending=False)
    if busy.empty:
        return Found(None, NOTHING)
    silent, busiest = (rate == 0).mean(), busy.head(max(1, len(density) // 100)).sum() / busy.sum()
    return Found(
        bool(silent < 0.05 and busiest >= 0.02),
        f"{silent:.1%} of latents fired on none of {density['tokens'].iloc[0]:,} tokens · the median of the others "
        f"fires on {busy.median():.2%} of tokens · the busiest hundredth does {busiest:.0%} of the firing",
    )


@of_rows
def telling_latents(latents: pd.DataFrame, concept: str) -> Found:
    """Whether the most telling latent (``02_concept_latents``) of most concepts marks its concept.

    It fires on more than half of the occurrences of the concept's words then, and on few tokens of running text. The
    line counts these concepts and tells of the latent of one.
    """
    rows = latents[latents["rank"] == 0].drop_duplicates("concept").set_index("concept")
    if concept not in rows.index or rows["score"].isna().all():
        return Found(None, NOTHING)
    best, score = rows.loc[concept], rows["score"]
    marked = Count.true((rows["concept_rate"] > 0.5) & (rows["text_rate"] < 0.05))
    return Found(
        2 * marked.n > marked.of,
        f"{marked} concepts · {concept}: latent {best['latent']} fires on {best['concept_rate']:.0%} of the words' "
        f"occurrences and on {best['text_rate']:.1%} of running text · scores {score.min():.2f} ({score.idxmin()}) "
        f"to {score.max():.2f} ({score.idxmax()})",
    )
