"""Where a latent fires in running text: what it means is what these passages share."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_activations
from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.found import NOTHING, Found, of_rows
from saema_utils.chapters.sae.coders import study_sae
from saema_utils.chapters.sae.tables import concept_latents, halves, values_on
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import table
from saema_utils.saes.coders import SaeCoder

AROUND = 8  # tokens of a passage on either side of the marked one
PASSAGES = 6
OF_WORDS = "part of all that the latent adds to it that it adds at tokens of which words of the concept are made"
COLUMNS = {
    "concept": "the concept that the latent tells best",
    "share_rated": f"of the half of the held-out text by which it was chosen, the {OF_WORDS}",
    "share": f"of the other half, the {OF_WORDS}",
    "activation": "its value at the marked token",
    "passage": "where in that half it is strongest, each in another sequence; the token stands between « and »",
}


@table("02_contexts", needs=(study_sae, corpus_activations, concept_latents), columns=COLUMNS)
@torch.no_grad()
def latent_contexts(run: RunDirectory) -> pd.DataFrame:
    """Passages of running text in which the best latent of each concept is strongest.

    From the half of the held-out text that did not choose it; a latent that is silent there has no rows.
    """
    coder, corpus, tokenizer = SaeCoder(study_sae(run)), corpus_activations(run), language_model(run).tokenizer
    best = concept_latents(run).query("rank == 0").drop_duplicates("concept").set_index("concept")["latent"]
    (rated, rated_tokens), (shown, tokens) = halves(corpus)
    before, values = (values_on(coder, x, best.to_list(), run.device) for x in (rated, shown))
    places, rows = corpus.heldout_mask.nonzero()[len(rated) :], []
    for number, (concept, latent) in enumerate(best.items()):
        found = concept_activations(run)[str(concept)]
        own = found.tokens[found.word_mask].unique()
        about = {"concept": concept, "latent": latent, "share_rated": _share(before[:, number], rated_tokens, own)}
        about["share"] = _share(values[:, number], tokens, own)
        for i in _strongest(values[:, number], places[:, 0]):
            row, at = places[i].tolist()
            sequence = corpus.heldout_tokens[row]
            cuts = sequence[max(1, at - AROUND) : at], sequence[at : at + 1], sequence[at + 1 : at + 1 + AROUND]
            left, token, right = (tokenizer.decode(cut.tolist()) for cut in cuts)
            passage = " ".join(f"{left} «{token.strip()}» {right}".split())
            rows.append(about | {"activation": float(values[i, number]), "passage": passage})
    return pd.DataFrame(rows, columns=["concept", "latent", *list(COLUMNS)[1:]])


def _share(values: Float[Tensor, " N"], tokens: Int[Tensor, " N"], own: Int[Tensor, " n"]) -> float:
    """What part of a latent's sum falls on some tokens; NaN where it is silent."""
    return float(values[torch.isin(tokens, own)].sum() / values.sum())


def _strongest(values: Float[Tensor, " N"], sequences: Int[Tensor, " N"]) -> list[int]:
    """The strongest token of each sequence, of as many sequences as are shown; none where the latent is silent."""
    found: dict[int, int] = {}
    for i in values.argsort(descending=True, stable=True)[: int((values > 0).sum())].tolist():
        found.setdefault(int(sequences[i]), i)
    return list(found.values())[:PASSAGES]


def clearest_concept(contexts: pd.DataFrame) -> str | None:
    """The concept whose best latent is most at its words, by the half of the text that chose the latent."""
    shares = contexts.drop_duplicates("concept").set_index("concept")["share_rated"].dropna()
    return None if shares.empty else str(shares.idxmax())


@of_rows
def meaning_of_latents(contexts: pd.DataFrame, concept: str) -> Found:
    """Whether the clearest latent of ``02_contexts`` speaks of its concept in running text as well, and the best one
    of another concept does not."""
    share, clearest = contexts.drop_duplicates("concept").set_index("concept")["share"], clearest_concept(contexts)
    if clearest is None or concept not in share.index:
        return Found(None, NOTHING)
    latents = {name: share[name] for name in (clearest, concept)}
    return Found(
        bool(share[clearest] > 0.3 and share[concept] < 0.1),
        "of what a latent adds to running text, at words of its concept: "
        + " · ".join(f"{name} {value:.0%}" for name, value in latents.items()),
    )
