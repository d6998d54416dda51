"""The study's sparse autoencoder and the two coders that it is compared with."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from saema_utils.chapters.activations.corpus import corpus_activations
from saema_utils.chapters.activations.model import language_model
from saema_utils.chapters.sae.facts import sae_facts
from saema_utils.model.fit import has_rms_norm
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.files import UNFINISHED, name_of, user_path
from saema_utils.runs.freshness import file_digest
from saema_utils.runs.tables import result, table, tensors
from saema_utils.saes.coders import Coder, PcaCoder, RandomDictionary, SaeCoder
from saema_utils.saes.facts import bos_note, read_facts
from saema_utils.saes.fidelity import measure_fidelity
from saema_utils.saes.foreign import sae_files
from saema_utils.saes.loading import SAE_FILES, load_sae
from saema_utils.saes.meaning import check_model
from saema_utils.saes.training import TrainedSae, train_sae

if TYPE_CHECKING:
    from sae_lens import SAE

_TOLD: set[tuple[Path, str]] = set()


def keep_sae(run: RunDirectory, folder: str, key: str, make: Callable[[], SAE]) -> SAE:
    """The autoencoder in a folder of the run, in sae_lens's format, each file hashed; made if it is not there."""
    if not all(run.is_fresh(f"{folder}/{name}", key) for name in SAE_FILES):
        sae = make()
        run.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=run.path, prefix=UNFINISHED) as written:
            sae.save_model(written)
            facts = dataclasses.asdict(read_facts(Path(written)))
            for name in SAE_FILES:
                source = Path(written) / name
                run.save_file(f"{folder}/{name}", lambda p, s=source: shutil.copyfile(s, p), key, sae_facts=facts)
    return load_sae(run.path / folder, run.device)


def _study_and_files(run: RunDirectory) -> list[Any]:
    """The study, and the content of the files of an autoencoder that was trained elsewhere."""
    return [run.study.digest, [file_digest(path) for path in sae_files(user_path(run.study.sae.source))]]


def _keep_study_sae(run: RunDirectory, _: str, key: str, make: Callable[[], SAE]) -> SAE:
    sae = keep_sae(run, "sae", key, make)
    note = bos_note(sae_facts(run), name_of(run.study.sae.source))
    if note and (run.path, note) not in _TOLD:  # once in every chapter that uses it
        _TOLD.add((run.path, note))
        print(note)
    return sae


@result("02_sae", place="sae", keep=_keep_study_sae, needs=(corpus_activations,), choices=_study_and_files)
def study_sae(run: RunDirectory) -> SAE:
    """The study's SAE: trained on the corpus, or loaded from where the study says.

    Kept in ``sae/`` in sae_lens's format (``SAE.load_from_disk`` reads the folder), with its hashes in the
    manifest; the course of training in the table ``02_sae_training``.

    Raises
    ------
    SaeError, HubUnreachableError
        If it cannot be loaded, or was made for another model or layer.
    """
    if run.study.sae.source != "train":
        return _loaded(run)
    trained = _trained(run)
    run.save_table(training_history.name, trained.history, training_history.key(run))
    return trained.sae


def _loaded(run: RunDirectory) -> SAE:
    study, model = run.study, language_model(run)
    sae = load_sae(
        study.sae.source, run.device, model.cfg.d_model, study.hook_name, context=study.corpus.context, say=run.remark
    )
    for remark in check_model(sae.cfg.to_dict(), study.model, f"SAE {study.sae.source!r}", has_rms_norm(model)):
        run.remark(remark)
    return sae


def _trained(run: RunDirectory) -> TrainedSae:
    corpus, study = corpus_activations(run), run.study
    metadata = {"model_name": study.model, "hook_name": study.hook_name, "context_size": study.corpus.context}
    return train_sae(corpus.train, corpus.heldout, study.sae, study.seed, run.device, metadata=metadata)


@table(
    "02_sae_training",
    needs=(study_sae,),
    columns={
        "step": "optimiser step",
        "tokens": "tokens seen so far",
        "learning_rate": "learning rate of the step",
        "train_mse": "mean squared error on the training batches since the row before",
        "mse": "mean squared error on a fixed sample of held-out tokens",
        "dead": "latents that have not fired for long",
    },
)
def training_history(run: RunDirectory) -> pd.DataFrame:
    """How the study's SAE got better as it was trained; no rows for one that was trained elsewhere."""
    if run.study.sae.source != "train":
        names = ("step", "tokens", "learning_rate", "train_mse", "mse", "explained_variance", "l0", "dead")
        return pd.DataFrame(columns=names)
    study_sae(run)  # which keeps its history, unless that alone was lost
    if run.is_fresh(training_history.place, training_history.key(run)):
        return run.table(training_history.name)
    return _trained(run).history


@tensors("02_coders", needs=(study_sae, corpus_activations))
def control_tensors(run: RunDirectory) -> dict[str, Tensor]:
    """What the controls of the SAE are made from: principal components, and its mean number of active latents."""
    corpus = corpus_activations(run)
    found = measure_fidelity(SaeCoder(study_sae(run)), corpus.heldout.to(run.device))
    # An SAE worse than one component still gets a control of one.
    pca = PcaCoder.fit_to_fvu(corpus.train, found.fvu, heldout=corpus.heldout)
    return {
        "pca_mean": pca.mean,
        "pca_components": pca.components,
        "pca_eigenvalues": pca.eigenvalues,
        "sae_l0": torch.tensor(found.l0),
    }


def study_coders(run: RunDirectory) -> dict[str, Coder]:
    """The SAE and its two controls, by name: ``sae``, ``pca``, ``random_dictionary``.

    The principal components are as many as reconstruct held-out tokens like the SAE does; the random
    dictionary has the SAE's width and (rounded) its mean number of active latents.
    """
    sae, stored = SaeCoder(study_sae(run)), control_tensors(run)
    mean, components = (stored[name].to(run.device) for name in ("pca_mean", "pca_components"))
    pca = PcaCoder(mean, components, stored["pca_eigenvalues"])
    k, seed = max(1, round(float(stored["sae_l0"]))), run.study.seed
    random = RandomDictionary(sae.d_in, sae.n_latents, min(k, sae.n_latents), seed, bias=mean)
    return {coder.name: coder for coder in (sae, pca, random)}


def sae_l0(run: RunDirectory) -> float:
    """Mean number of latents of the study's SAE that fire on a held-out token."""
    return float(control_tensors(run)["sae_l0"])
