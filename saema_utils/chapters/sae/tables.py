"""The tables of chapter 2: how good each coder is, and what its latents are like."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from saema_utils.chapters.activations.concepts import concept_activations, concept_tensors
from saema_utils.chapters.activations.corpus import CorpusActivations, corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.sae.coders import control_tensors, study_coders, study_sae
from saema_utils.model.residual_stream import ConceptActivations
from saema_utils.model.splice import spliced_losses
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.tables import table
from saema_utils.runtime import float64, generator
from saema_utils.saes.coders import Coder, SaeCoder
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.saes.topk_latents import TopKLatents
from saema_utils.text.tokens import special_tokens

SPLICED_SHARE = 10  # cross-entropy needs five full forward passes, so it uses a tenth of the held-out text
DENSITY_TOKENS = 65_536
CONTEXT_WORDS = 6


@table(
    "02_sae_eval",
    needs=(control_tensors, corpus_activations),
    columns={
        "n_latents": "latents that the coder has",
        "fvu": "fraction of the variance left unexplained",
        "mse": "mean squared error per dimension",
        "ce_clean": "cross-entropy of the untouched model, nats per token",
        "ce_spliced": "cross-entropy with reconstructions in the place of the residual stream, nats per token",
        "ce_zero_ablated": "cross-entropy with zeros there, nats per token",
        "ce_recovered": "0: as bad as zeros; 1: as good as the original",
        "kl": "divergence of the model's predictions from those of the untouched one, nats",
        "ce_tokens": "predictions that cross-entropy was averaged over",
    },
)
def sae_evaluation(run: RunDirectory) -> pd.DataFrame:
    """How well each coder reconstructs held-out tokens, and what its reconstructions cost the language model.

    On tokens that training never saw. Special tokens and sinks keep their vectors.
    """
    coders, corpus = study_coders(run), corpus_activations(run)
    heldout = corpus.heldout.to(run.device)
    losses = spliced_means(run, coders, corpus)
    clean, zero = losses["clean"][0], losses["zero"][0]
    rows = []
    for name, coder in coders.items():
        found, (spliced, kl) = measure_fidelity(coder, heldout), losses[name]
        row = {"representation": name, "n_latents": coder.n_latents}
        row |= {c: getattr(found, c) for c in ("l0", "explained_variance", "fvu", "cosine", "mse", "dead_fraction")}
        row |= {"ce_clean": clean, "ce_spliced": spliced, "ce_zero_ablated": zero}
        rows.append(row | {"ce_recovered": (zero - spliced) / (zero - clean), "kl": kl})
    return pd.DataFrame(rows).assign(tokens=len(heldout), ce_tokens=losses["tokens"])


def spliced_means(run: RunDirectory, coders: dict[str, Coder], corpus: CorpusActivations) -> dict:
    """Mean cross-entropy and KL with each coder's reconstruction in the residual stream.

    By name of the coder, and for ``clean`` and ``zero``; ``tokens`` says how many predictions were averaged.
    """
    model = language_model(run)
    tokens = corpus.heldout_tokens[: max(4, len(corpus.heldout_tokens) // SPLICED_SHARE)]
    threshold = corpus.counts["sink_threshold"]

    def spare_sinks(edit):
        def replace(x: Tensor) -> Tensor:
            return torch.where(x.norm(dim=-1, keepdim=True) > threshold, x, edit(x.float()).to(x))

        return replace

    edits = {name: spare_sinks(lambda x, coder=coder: coder.reconstruct(x)) for name, coder in coders.items()}
    edits["zero"] = spare_sinks(torch.zeros_like)
    where = ~special_tokens(model, tokens)
    losses = spliced_losses(
        model, tokens, run.study.hook_name, edits, where=where, description="splicing reconstructions"
    )
    # A prediction counts when it is made from a token that could be replaced.
    means = {name: found.mean(where) for name, found in losses.items()}
    means["tokens"] = int((where & torch.isfinite(losses["clean"].cross_entropy)).sum())
    return means


@table(
    "02_latent_density",
    needs=(study_sae, corpus_activations),
    columns={
        "firing_rate": "share of tokens on which the latent fires",
        "mean_active": "its mean value where it fires",
    },
)
@torch.no_grad()
def latent_density(run: RunDirectory) -> pd.DataFrame:
    """How often each latent fires, and how strongly when it does.

    Measured on the held-out tokens and as many training tokens as make up 65,536.
    """
    coder, corpus = SaeCoder(study_sae(run)), corpus_activations(run)
    more = max(0, min(len(corpus.train), DENSITY_TOKENS - len(corpus.heldout)))
    chosen = torch.randperm(len(corpus.train), generator=generator(run.study.seed, "density"))[:more].sort().values
    fired = float64(torch.zeros(coder.n_latents, device=run.device))
    summed, seen = fired.clone(), 0
    for source in (corpus.heldout, corpus.train[chosen]):
        for part in source.split(2048):
            latents = coder.encode(part.to(run.device).float())
            fired += float64((latents != 0).sum(0))
            summed += float64(latents).sum(0)
            seen += len(part)
    return pd.DataFrame(
        {
            "latent": range(coder.n_latents),
            "firing_rate": (fired / seen).cpu(),
            "mean_active": (summed / fired.clamp_min(1)).cpu(),
            "tokens": seen,
        }
    )


@table(
    "02_sparsity_curve",
    needs=(control_tensors, corpus_activations),
    columns={"kept": "strongest coefficients of each token that are kept"},
)
@torch.no_grad()
def sparsity_curve(run: RunDirectory) -> pd.DataFrame:
    """Explained variance of held-out tokens when only the strongest coefficients of each token are kept."""
    heldout = corpus_activations(run).heldout[:4096].to(run.device).float()
    total = float((heldout - heldout.mean(0)).square().sum())
    rows = []
    for name, coder in study_coders(run).items():
        counts = sorted({2**i for i in range(11) if 2**i < coder.n_latents} | {min(coder.n_latents, 2048)})
        error = dict.fromkeys(counts, 0.0)
        for part in heldout.split(1024):
            latents = coder.encode(part)
            most = int((latents != 0).sum(-1).max())
            weight = latents.abs() * coder.dictionary().to(latents).norm(dim=-1)
            order = weight.topk(min(most, counts[-1]), dim=-1).indices
            for kept in counts:
                where = order[:, :kept]
                few = TopKLatents(latents.gather(-1, where), where, coder.n_latents)
                error[kept] += float((part - coder.decode(few, like=part)).square().sum())
        rows += [{"representation": name, "kept": k, "explained_variance": 1 - e / total} for k, e in error.items()]
    return pd.DataFrame(rows)


@table(
    "02_concept_latents",
    needs=(study_sae, corpus_activations, concept_tensors),
    columns={
        "rank": "place of the latent among those that tell the concept, from 0",
        "score": "how much more often it fires on the concept's words than on whatever else it fires on most",
        "concept_rate": "share of the concept's words on which it fires",
        "text_rate": "share of the tokens of running text on which it fires",
        "activation": "its mean value on the word",
        "tokens": "tokens of running text on which it is strongest",
    },
)
@torch.no_grad()
def concept_latents(run: RunDirectory, top: int = 8) -> pd.DataFrame:
    """The latents that tell each concept's words from other words.

    A latent's score compares its rate on the concept's words with its rate on held-out text or on
    any other concept's words, whichever is more (a difference of two rates, within -1 to 1). The other
    concepts stand in short sentences too, so a latent of any such sentence scores low. Rates come from one half of
    the held-out text and ``tokens`` from the other, so that these are evidence that chose nothing.
    """
    coder, corpus = SaeCoder(study_sae(run)), corpus_activations(run)
    concepts = concept_activations(run)
    (rated, _), (shown, shown_tokens) = halves(corpus)
    text_rate = measure_fidelity(coder, rated.to(run.device)).firing_rate.cpu()
    of_words = {name: _latents_of_words(coder, activations, run.device) for name, activations in concepts.items()}
    rates = {name: (latents > 0).double().mean(0) for name, (latents, _) in of_words.items()}
    found = {}
    for concept, (latents, words) in of_words.items():
        rate = rates[concept]
        others = [text_rate, *(other for name, other in rates.items() if name != concept)]
        score = rate - torch.stack(others).amax(0)
        found[concept] = (latents, words, rate, score, score.topk(min(top, coder.n_latents)).indices)
    needed = sorted({int(i) for *_, best in found.values() for i in best})
    strongest = _strongest_tokens(run, coder, shown, shown_tokens, needed)
    rows = []
    for concept, (latents, words, rate, score, best) in found.items():
        for rank, latent in enumerate(best.tolist()):
            rows += [
                {
                    "concept": concept,
                    "rank": rank,
                    "latent": latent,
                    "score": float(score[latent]),
                    "concept_rate": float(rate[latent]),
                    "text_rate": float(text_rate[latent]),
                    "word": word,
                    "activation": float(latents[words == index, latent].mean()),
                    "tokens": strongest[latent],
                }
                for index, word in enumerate(concepts[concept].prompts.words)
            ]
    return pd.DataFrame(rows)


def _latents_of_words(coder: SaeCoder, concept: ConceptActivations, device: torch.device) -> tuple[Tensor, Tensor]:
    """Per prompt the strongest activation of each latent on the concept word's tokens, and which word it is."""
    rows, positions = concept.word_mask.nonzero(as_tuple=True)
    latents = coder.encode(concept.residual[rows, positions].to(device)).cpu()
    strongest = torch.zeros(len(concept.word_mask), latents.shape[1])
    strongest.scatter_reduce_(0, rows[:, None].expand_as(latents), latents, "amax")
    seen = concept.word_mask.any(1)  # a word may be masked entirely, as a sink
    return strongest[seen], concept.prompt_words[seen]


def halves(corpus: CorpusActivations) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The held-out text cut in two in reading order: of each half the vectors ``[N, D]`` and the token ids ``[N]``."""
    tokens = corpus.heldout_tokens[corpus.heldout_mask]
    middle = (len(tokens) + 1) // 2  # a rate needs a token to be a rate of; a list of examples may be empty
    return (corpus.heldout[:middle], tokens[:middle]), (corpus.heldout[middle:], tokens[middle:])


def values_on(coder: SaeCoder, x: Tensor, latents: list[int], device: torch.device) -> Tensor:
    """Values of some latents on vectors, ``[N, len(latents)]`` on the CPU; never all latents of all vectors at once."""
    at = torch.tensor(latents, device=device)
    return torch.cat([coder.encode(part.to(device).float())[:, at].cpu() for part in x.split(2048)])


def _strongest_tokens(run: RunDirectory, coder: SaeCoder, x: Tensor, tokens: Tensor, latents: list[int]) -> dict:
    """For each latent the distinct tokens on which it is strongest, as text."""
    values = values_on(coder, x, latents, run.device)
    tokenizer = language_model(run).tokenizer
    out = {}
    for column, latent in enumerate(latents):
        best = values[:, column].topk(min(40, len(values)))
        strings = [tokenizer.decode([int(tokens[i])]).strip() for v, i in zip(*best, strict=True) if v > 0]
        out[latent] = " · ".join(list(dict.fromkeys(s for s in strings if s))[:CONTEXT_WORDS])
    return out
