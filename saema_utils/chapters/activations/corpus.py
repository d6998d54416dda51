"""Residual stream over running text: captured once, kept in the cache that all runs share."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saema_utils.chapters.activations.model import language_model, model_of
from saema_utils.errors import ActivationError, ArtifactError
from saema_utils.model.loading import digest_once
from saema_utils.model.residual_stream import SINK_FACTOR, capture_residual_stream, find_sinks
from saema_utils.runs.directory import RunDirectory
from saema_utils.runs.files import atomic_path, cache_dir, user_path, write_json, write_tensors
from saema_utils.runs.freshness import file_digest
from saema_utils.runs.tables import Parts, result
from saema_utils.runtime import progress
from saema_utils.study import EMBEDDED_CORPUS
from saema_utils.text.corpus import CorpusTokens, corpus_tokens
from saema_utils.text.documents import kind_of
from saema_utils.text.tokens import special_tokens

TOKENS_PER_SHARD = 16_384
SLICES = 4  # of the text: as many processes can read it side by side
ROUNDING = 1e-3


@dataclass(frozen=True)
class CorpusActivations:
    """Residual stream over running text: unmasked tokens only, in the order of the text.

    Attributes
    ----------
    train, heldout
        [N, D] and [M, D], float16 (float32 where that does not hold them: :func:`compact`), mapped from disk: take
        batches and cast them (``.float()``).
    heldout_tokens
        [S, context] token ids of the held-out sequences, BOS first, for cross-entropy.
    heldout_mask
        [S, context], True at the tokens whose vectors are the rows of ``heldout``, in that order.
    counts
        Tokens, special tokens and sinks of each split, the documents used, the median norm and the sink
        threshold (five times the median norm over the training text, applied to both splits).
    path
        Where they are kept; all runs with the same model, layer and corpus share the file.
    """

    train: Float[Tensor, "N D"]
    heldout: Float[Tensor, "M D"]
    heldout_tokens: Int[Tensor, "S context"]
    heldout_mask: Bool[Tensor, "S context"]
    counts: dict[str, Any]
    path: Path


def compact(residual: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
    """Vectors in half their size where that changes none by more than a thousandth of its length, else as they are.

    Float16 ends at 65,504 and has few digits left below 0.0001: streams of some models lie beyond either. Between them
    it rounds by less than 0.05 %.
    """
    half = residual.half()
    moved, length = (half.float() - residual).norm(dim=-1), residual.norm(dim=-1)
    return half if bool((moved <= ROUNDING * length).all()) else residual.float()


def _text_and_model(run: RunDirectory) -> list[Any]:
    """The text, the model and the study's layer, but not the rest of the study: studies share what they may."""
    recipe = run.study.as_dict()["corpus"]
    source = run.study.corpus.source
    if source != EMBEDDED_CORPUS and not source.startswith("hub:") and user_path(source).is_file():
        path = user_path(source)
        recipe["source"] = [file_digest(path), kind_of(path), path.suffix.lower()]
    return [model_of(run), run.study.hook_name, recipe, run.study.seed]


def _keep_in_cache(_: RunDirectory, name: str, key: str, capture: Callable[[], None]) -> CorpusActivations:
    """Open what the shared cache holds under a key; one process captures it, the others wait."""
    from filelock import FileLock

    path = _in_cache(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_whole(path):
                capture()
            return _open_corpus(path)
    except OSError as error:
        raise ArtifactError(
            f"cannot use the cache {path.parent} ({error.strerror or error}). Free some space there, or point "
            "SAEMA_CACHE at another folder, and run again to resume."
        ) from error


def _in_cache(key: str) -> Path:
    return cache_dir() / "activations" / f"{key}.safetensors"


class _Slices(Parts):
    """Parts of the text that processes capture side by side. What they find waits in the shared cache for the whole."""

    def is_made(self, run: RunDirectory) -> bool:
        return _is_whole(_in_cache(corpus_activations.key(run)))

    def make(self, run: RunDirectory, parts: Sequence[str] | None = None, name: str = "") -> None:
        if self.is_made(run):
            return
        try:
            self._make(run, self.names(run) if parts is None else parts)
        except ArtifactError:
            if not self.is_made(run):  # else another run has the whole meanwhile, and took the shards away
                raise
        if self.is_made(run):  # what was read after that is of no use
            shutil.rmtree(_in_cache(corpus_activations.key(run)).with_suffix(""), ignore_errors=True)


def _slices(run: RunDirectory) -> list[str]:
    n_shards = math.ceil((run.study.corpus.tokens + run.study.corpus.heldout_tokens) / TOKENS_PER_SHARD)
    return [str(number) for number in range(min(SLICES, n_shards))]


def _capture_slices(run: RunDirectory, slices: Sequence[str]) -> None:
    """The residual stream of some slices of the text at the study's layer."""
    folder = _in_cache(corpus_activations.key(run)).with_suffix("")
    for number in slices:
        _capture(run, {run.study.hook_name: folder}, slice(int(number), None, len(_slices(run))))


corpus_slices = _Slices("01_corpus", _capture_slices, _slices, choices=_text_and_model)


@result("01_corpus", place="cache/activations", needs=(corpus_slices,), keep=_keep_in_cache, choices=_text_and_model)
def corpus_activations(run: RunDirectory, **at: int) -> None:
    """Residual stream at the study's layer over its corpus; captured once, then read from the cache.

    Capture writes shards as it goes, so that an interrupted run resumes where it stopped.

    Raises
    ------
    CorpusError
        If the text cannot be read or is too short.
    ActivationError
        If activations are not finite or the mask leaves nothing.
    """
    path = _in_cache(corpus_activations.key(run, **at))
    folder = path.with_suffix("")
    text, shards = _capture(run, {run.study.changed(**at).hook_name: folder})
    counts, tensors = _merge([folder / shard for shard in shards], len(text.heldout))
    _write(path, {**tensors, "heldout_tokens": text.heldout}, counts={**counts, "documents": text.documents})
    shutil.rmtree(folder, ignore_errors=True)  # with what a killed run may have left half written


def corpus_at(run: RunDirectory, layer: int) -> CorpusActivations:
    """The same over the same text at some layer, which may be the study's."""
    return corpus_activations(run, **_at(run, layer))


def capture_at(run: RunDirectory, layers: Iterable[int]) -> None:
    """Read the text once for all of these layers, where :func:`corpus_at` would read it for each anew."""
    paths = {
        run.study.changed(layer=n).hook_name: _in_cache(corpus_activations.key(run, **_at(run, n))) for n in layers
    }
    missing = {hook: path.with_suffix("") for hook, path in paths.items() if not _is_whole(path)}
    if len(missing) > 1:
        _capture(run, missing)


def _at(run: RunDirectory, layer: int) -> dict[str, int]:
    return {} if layer == run.study.layer else {"layer": layer}


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file stands beside the record that it was written with, unchanged."""
    try:
        return digest_once(path) == json.loads(path.with_suffix(".json").read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, tensors: dict[str, Tensor], **facts: Any) -> None:
    with atomic_path(path) as temporary:
        write_tensors(temporary, tensors)
        sha256 = file_digest(temporary)
    write_json(path.with_suffix(".json"), {"sha256": sha256, **facts})


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors mapped from disk: pages are read when they are used."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _open_corpus(path: Path) -> CorpusActivations:
    tensors, facts = _read(path), json.loads(path.with_suffix(".json").read_text())
    names = ("train", "heldout", "heldout_tokens", "heldout_mask")
    return CorpusActivations(*(tensors[name] for name in names), facts["counts"], path)


def _capture(
    run: RunDirectory, folders: Mapping[str, Path], which: slice = slice(None)
) -> tuple[CorpusTokens, list[str]]:
    """Read shards of the text at some hooks at once, into a folder for each, where they are not there yet.

    Returns the text and the names of these shards.
    """
    model, recipe = language_model(run), run.study.corpus
    text = corpus_tokens(model, recipe, run.study.seed)
    rows = torch.cat([text.heldout, text.train])
    per_shard = max(1, TOKENS_PER_SHARD // recipe.context)
    shards = {f"{start:07d}.safetensors": rows[start : start + per_shard] for start in range(0, len(rows), per_shard)}
    shards = dict(list(shards.items())[which])
    for name, tokens in progress(shards.items(), "corpus activations", len(shards)):
        missing = {hook: folder / name for hook, folder in folders.items() if not _is_whole(folder / name)}
        if missing:
            special = special_tokens(model, tokens)
            for hook, residual in capture_residual_stream(model, tokens, list(missing)).items():
                found = {"residual": compact(residual), "norms": residual.norm(dim=-1), "special": special}
                _write(missing[hook], found)
    return text, list(shards)


def _merge(shards: list[Path], n_heldout: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Drop special tokens and sinks from the shards; one threshold for all, from the training text."""
    read = [_read(shard) for shard in shards]
    norms, special = (torch.cat([shard[name] for shard in read]) for name in ("norms", "special"))
    is_train = (torch.arange(len(norms)) >= n_heldout)[:, None]
    sinks, median = find_sinks(norms, ~special, typical=~special & is_train)
    keep = ~special & ~sinks
    counts: dict[str, Any] = {"median_norm": median, "sink_threshold": SINK_FACTOR * median}
    tensors = {"heldout_mask": (keep & ~is_train)[:n_heldout]}
    for split, rows in (("train", is_train), ("heldout", ~is_train)):
        chosen = keep & rows
        masked = {"special": int((special & rows).sum()), "sinks": int((sinks & rows).sum())}
        counts[split] = {"tokens": int(chosen.sum()), **masked}
        if not chosen.any():
            raise ActivationError(f"no {split} token of the corpus is left unmasked. Give more text.")
        parts = zip(read, chosen.split([len(shard["norms"]) for shard in read]), strict=True)
        vectors = [shard["residual"][part] for shard, part in parts]
        # A sink may have kept a shard from being stored in half, and is gone now.
        halves = all(part.dtype == torch.float16 for part in vectors)
        tensors[split] = torch.cat(vectors) if halves else compact(torch.cat([part.float() for part in vectors]))
        if not torch.isfinite(tensors[split]).all():
            raise ActivationError(
                f"the {split} text has activations that are NaN or infinite. Choose an earlier layer."
            )
    return counts, tensors
