"""Chapter 2 of a run: the sparse autoencoder, what it is compared with, and how good each is."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .activations import ConceptActivations
from .artifacts import RunDirectory
from .coders import Coder, PcaCoder, RandomDictionary, SaeCoder
from .fidelity import measure_fidelity
from .files import UNFINISHED, digest, file_digest, source_digest, user_path
from .runtime import float64, generator
from .sae_facts import bos_note, read_facts, sae_facts
from .saes import SAE_FILES, load_sae, train_sae
from .splice import spliced_losses
from .stage1_activations import (
    CorpusActivations,
    concept_activations,
    concepts_key,
    corpus_activations,
    corpus_key,
    language_model,
)
from .tokens import special_tokens
from .topk_latents import TopKLatents

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE
    from torch import Tensor

SPLICED_SHARE = 10  # cross-entropy needs five full forward passes, so it uses a tenth of the held-out text
DENSITY_TOKENS = 65_536
CONTEXT_WORDS = 6
_TOLD: set[tuple[Path, str]] = set()


def sae_key(run: RunDirectory) -> str:
    """Digest of everything the study's SAE is made from."""
    recipe = dataclasses.asdict(run.study.sae)
    if recipe["source"] != "train":
        folder = user_path(recipe["source"])
        found = [file_digest(folder / name) for name in SAE_FILES if (folder / name).is_file()]
        return digest([recipe["source"], found, run.study.hook_name])
    return digest([recipe, run.study.seed, corpus_key(run), source_digest("sae_training")])


def study_sae(run: RunDirectory) -> SAE:
    """The study's SAE: trained on the corpus, or loaded from where the study says.

    Kept in ``sae/`` in sae_lens's format (``SAE.load_from_disk`` reads the folder), with its hashes in the
    manifest; the course of training in the table ``02_sae_training``.

    Raises
    ------
    SaeError, HubUnreachableError
        If it cannot be loaded, or was made for another model or layer.
    """
    key = sae_key(run)
    files = [f"sae/{name}" for name in SAE_FILES]
    trained = run.study.sae.source == "train"
    needed = [*files, "tables/02_sae_training.csv"] if trained else files
    if all(run.is_fresh(name, key) for name in needed):
        _tell_once(run)
        return load_sae(run.path / "sae", run.device)
    if trained:
        corpus, study = corpus_activations(run), run.study
        result = train_sae(
            corpus.train, corpus.heldout, study.sae, study.seed, run.device,
            metadata={"model_name": study.model, "hook_name": study.hook_name, "context_size": study.corpus.context},
        )  # fmt: skip
        sae = result.sae
        _keep(run, sae, key)
        run.save_table("02_sae_training", result.history, key)
    else:
        width = language_model(run).cfg.d_model
        sae = load_sae(run.study.sae.source, run.device, width, run.study.hook_name)
        _keep(run, sae, key)
    _tell_once(run)
    return load_sae(run.path / "sae", run.device)


def _tell_once(run: RunDirectory) -> None:
    """Print what is to be known of the study's SAE, once in every chapter that uses it."""
    note = bos_note(sae_facts(run), run.study.sae.source)
    if note and (run.path, note) not in _TOLD:
        _TOLD.add((run.path, note))
        print(note)


def _keep(run: RunDirectory, sae: SAE, key: str) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.path, prefix=UNFINISHED) as folder:
        sae.save_model(folder)
        facts = dataclasses.asdict(read_facts(Path(folder)))
        for name in SAE_FILES:
            copy = partial(shutil.copyfile, Path(folder) / name)
            run.save_file(f"sae/{name}", copy, key, sae_facts=facts)


def training_history(run: RunDirectory) -> pd.DataFrame:
    """The table ``02_sae_training``; empty for an SAE that was not trained here."""
    import pandas as pd

    study_sae(run)
    return run.table("02_sae_training") if run.study.sae.source == "train" else pd.DataFrame()


# ---- coders ------------------------------------------------------------------------------------


def coders_key(run: RunDirectory) -> str:
    """Digest of everything the study's three coders are made from."""
    return digest([sae_key(run), corpus_key(run), run.study.seed, source_digest("coders", "topk_latents", "fidelity")])


def study_coders(run: RunDirectory) -> dict[str, Coder]:
    """The SAE and its two controls, by name: ``sae``, ``pca``, ``random_dictionary``.

    The principal components are as many as reconstruct held-out tokens like the SAE does; the random
    dictionary has the SAE's width and (rounded) its mean number of active latents.
    """
    sae = SaeCoder(study_sae(run))
    stored = _controls(run, sae)
    mean, components = (stored[name].to(run.device) for name in ("pca_mean", "pca_components"))
    pca = PcaCoder(mean, components, stored["pca_eigenvalues"])
    k, seed = max(1, round(float(stored["sae_l0"]))), run.study.seed
    random = RandomDictionary(sae.d_in, sae.n_latents, min(k, sae.n_latents), seed, bias=mean)
    return {coder.name: coder for coder in (sae, pca, random)}


def sae_l0(run: RunDirectory) -> float:
    """Mean number of latents of the study's SAE that fire on a held-out token."""
    return float(_controls(run, SaeCoder(study_sae(run)))["sae_l0"])


def _controls(run: RunDirectory, sae: SaeCoder) -> dict[str, Tensor]:
    return run.cached_tensors("02_coders", coders_key(run), lambda: _fit_controls(run, sae))


def _fit_controls(run: RunDirectory, sae: SaeCoder) -> dict[str, Tensor]:
    corpus = corpus_activations(run)
    heldout = corpus.heldout.to(run.device)
    found = measure_fidelity(sae, heldout)
    # An SAE worse than one component still gets a control of one.
    pca = PcaCoder.fit_to_fvu(corpus.train, found.fvu, heldout=corpus.heldout)
    return {
        "pca_mean": pca.mean, "pca_components": pca.components, "pca_eigenvalues": pca.eigenvalues,
        "sae_l0": torch.tensor(found.l0),
    }  # fmt: skip


# ---- evaluation --------------------------------------------------------------------------------


def _evaluation_key(run: RunDirectory) -> str:
    return digest([coders_key(run), source_digest("stage2_sae")])


def sae_evaluation(run: RunDirectory) -> pd.DataFrame:
    """The table ``02_sae_eval``: one row per representation, on tokens that training never saw.

    Columns: ``n_latents``, ``l0``, ``explained_variance``, ``fvu``, ``cosine``, ``mse`` (per dimension),
    ``dead_fraction`` (fired on no held-out token), ``ce_clean``, ``ce_spliced``, ``ce_zero_ablated`` (nats per
    token), ``ce_recovered`` (0: as bad as zeros; 1: as good as the original), ``kl`` (nats), and how many
    tokens they were measured on (``tokens``, ``ce_tokens``). Special tokens and sinks keep their vectors.
    """
    return run.cached_table("02_sae_eval", _evaluation_key(run), lambda: _evaluate(run))


def _evaluate(run: RunDirectory) -> pd.DataFrame:
    import pandas as pd

    coders, corpus = study_coders(run), corpus_activations(run)
    heldout = corpus.heldout.to(run.device)
    losses = spliced_means(run, coders, corpus)
    clean, zero = losses["clean"][0], losses["zero"][0]
    rows = []
    for name, coder in coders.items():
        found = measure_fidelity(coder, heldout)
        spliced, kl = losses[name]
        rows.append(
            {
                "representation": name, "n_latents": coder.n_latents, "l0": found.l0,
                "explained_variance": found.explained_variance, "fvu": found.fvu, "cosine": found.cosine,
                "mse": found.mse, "dead_fraction": found.dead_fraction, "ce_clean": clean, "ce_spliced": spliced,
                "ce_zero_ablated": zero, "ce_recovered": (zero - spliced) / (zero - clean), "kl": kl,
                "tokens": len(heldout), "ce_tokens": losses["tokens"],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


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


# ---- what the latents are like -----------------------------------------------------------------


def latent_density(run: RunDirectory) -> pd.DataFrame:
    """The table ``02_latent_density``: per latent, how often it fires and how strongly when it does.

    Measured on the held-out tokens and as many training tokens as make up 65,536.
    """
    return run.cached_table("02_latent_density", _evaluation_key(run), lambda: _density(run))


@torch.no_grad()
def _density(run: RunDirectory) -> pd.DataFrame:
    import pandas as pd

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
            "latent": range(coder.n_latents), "firing_rate": (fired / seen).cpu(),
            "mean_active": (summed / fired.clamp_min(1)).cpu(), "tokens": seen,
        }
    )  # fmt: skip


def sparsity_curve(run: RunDirectory) -> pd.DataFrame:
    """The table ``02_sparsity_curve``: explained variance of held-out tokens when only the strongest
    coefficients of each token are kept (``kept``), per representation.
    """
    return run.cached_table("02_sparsity_curve", _evaluation_key(run), lambda: _curve(run))


@torch.no_grad()
def _curve(run: RunDirectory) -> pd.DataFrame:
    import pandas as pd

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


def concept_latents(run: RunDirectory, top: int = 8) -> pd.DataFrame:
    """The table ``02_concept_latents``: for each concept, the latents that tell its words from other words.

    A latent's ``score`` is how much more often it fires on the concept's words than on held-out text or on
    any other concept's words, whichever is more (a difference of two rates, within -1 to 1). The other
    concepts stand in short sentences too, so a latent of any such sentence scores low. One row per latent
    and word of the concept, with the word's mean activation, the rates, and in ``tokens`` the held-out
    tokens on which the latent fires most strongly. Rates come from one half of the held-out text and
    ``tokens`` from the other, so that these are evidence that chose nothing.
    """
    key = digest([_evaluation_key(run), concepts_key(run), top])
    return run.cached_table("02_concept_latents", key, lambda: _telling(run, top))


@torch.no_grad()
def _telling(run: RunDirectory, top: int) -> pd.DataFrame:
    import pandas as pd

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
                    "concept": concept, "rank": rank, "latent": latent, "score": float(score[latent]),
                    "concept_rate": float(rate[latent]), "text_rate": float(text_rate[latent]), "word": word,
                    "activation": float(latents[words == index, latent].mean()), "tokens": strongest[latent],
                }
                for index, word in enumerate(concepts[concept].prompts.words)
            ]  # fmt: skip
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


def _strongest_tokens(run: RunDirectory, coder: SaeCoder, x: Tensor, tokens: Tensor, latents: list[int]) -> dict:
    """For each latent the distinct tokens on which it is strongest, as text."""
    at = torch.tensor(latents, device=run.device)
    values = torch.cat([coder.encode(part.to(run.device).float())[:, at].cpu() for part in x.split(2048)])
    tokenizer = language_model(run).tokenizer
    out = {}
    for column, latent in enumerate(latents):
        best = values[:, column].topk(min(40, len(values)))
        strings = [tokenizer.decode([int(tokens[i])]).strip() for v, i in zip(*best, strict=True) if v > 0]
        out[latent] = " · ".join(list(dict.fromkeys(s for s in strings if s))[:CONTEXT_WORDS])
    return out
