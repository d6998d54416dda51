"""Chapter 1 of a run: the language model, the activations of its concepts, and those of its corpus."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .activations import (
    SINK_FACTOR,
    ConceptActivations,
    capture_concept,
    capture_residual_stream,
    find_sinks,
    pack,
    unpack,
)
from .artifacts import RunDirectory
from .concepts import ConceptPrompts, Prompt, build_prompts
from .corpus import corpus_tokens
from .errors import ActivationError, ArtifactError
from .files import (
    atomic_path,
    cache_dir,
    digest,
    file_digest,
    source_digest,
    sweep_up,
    user_path,
    write_json,
    write_tensors,
)  # fmt: skip
from .models import check_layer, digest_once, load_language_model, model_digest
from .runtime import progress
from .statistics import label_permutation_test
from .study import EMBEDDED_CORPUS
from .tokens import special_tokens
from .wordmaps import cyclic_order, places_around, principal_plane, variance_shares, word_means

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

TOKENS_PER_SHARD = 16_384
LAYOUT = 1  # raise when this module would write other files from the same activations
_MODELS: dict[tuple[str, str], TransformerBridge] = {}


def language_model(run: RunDirectory) -> TransformerBridge:
    """The study's language model on the run's device; loaded once per process.

    Raises
    ------
    ModelError
        If it cannot be loaded, or has no layer ``study.layer``.
    """
    key = (run.study.model, str(run.device))
    if key not in _MODELS:
        _MODELS.clear()  # one at a time: two may not fit
        _MODELS[key] = load_language_model(run.study, run.device)
    model = _MODELS[key]
    check_layer(run.study.layer, model.cfg.n_layers, run.study.model)
    return model


# ---- concepts ----------------------------------------------------------------------------------


def concept_activations(run: RunDirectory) -> dict[str, ConceptActivations]:
    """Residual stream at the study's layer over every concept's prompts, by concept.

    Made once and kept as ``tensors/01_concepts.safetensors``, with one row a concept in the table
    ``01_concepts``: prompts, words, positions (= tokens + special + sinks + padding), the median norm
    of ordinary tokens, and the RMS of one coordinate over unmasked tokens.
    """
    prompts = build_prompts(run.study)
    key = concepts_key(run, prompts)

    def compute() -> dict[str, Tensor]:
        model = language_model(run)
        steps = progress(prompts.items(), "concept activations", len(prompts))
        return pack({name: capture_concept(model, found, run.study.hook_name) for name, found in steps})

    found = unpack(run.cached_tensors("01_concepts", key, compute))
    run.cached_table("01_concepts", key, lambda: concept_table(found))
    return found


def concepts_key(run: RunDirectory, prompts: dict[str, ConceptPrompts] | None = None) -> str:
    """Digest of everything the concept activations are made from."""
    prompts = build_prompts(run.study) if prompts is None else prompts
    texts = [(name, [(p.text, p.word, p.start) for p in found.prompts]) for name, found in prompts.items()]
    sources = source_digest("activations")  # prompts and the model's files stand here themselves
    return digest([model_digest(run.study), run.study.hook_name, texts, sources, LAYOUT])


def concept_table(activations: dict[str, ConceptActivations]) -> pd.DataFrame:
    """One row a concept: how many prompts, words, positions and tokens, what is masked, and how large X is."""
    import pandas as pd

    return pd.DataFrame(
        {
            "concept": concept,
            "prompts": len(found.prompts),
            "words": len(found.prompts.words),
            "positions": found.mask.numel(),
            "tokens": int(found.mask.sum()),
            "special": found.n_special,
            "sinks": found.n_sinks,
            "padding": found.n_padding,
            "median_norm": found.median_norm,
            "rms": found.rms,
        }
        for concept, found in activations.items()
    )


# ---- what chapter 1 draws ----------------------------------------------------------------------


def norm_table(run: RunDirectory) -> pd.DataFrame:
    """Norm of every token, in sentences and in prompts of a bare word (table ``01_norms``).

    Columns concept, context (sentence, bare word), prompt, position, token, norm, kind (first, ordinary,
    sink) and ratio, the norm over the median norm of the concept's ordinary tokens.
    """
    sentences = concept_activations(run)

    def compute() -> pd.DataFrame:
        import pandas as pd

        model, tables = language_model(run), []
        for concept, found in sentences.items():
            bare = tuple(Prompt(word, word, "{}", concept) for word in found.prompts.words)
            alone = capture_concept(model, ConceptPrompts(concept, bare), run.study.hook_name)
            tables += [_norms(found, "sentence"), _norms(alone, "bare word", found.median_norm)]
        return pd.concat(tables, ignore_index=True)

    key = digest([concepts_key(run), source_digest("stage1_activations")])
    return run.cached_table("01_norms", key, compute)


def _norms(found: ConceptActivations, context: str, median: float | None = None) -> pd.DataFrame:
    import pandas as pd

    median = found.median_norm if median is None else median
    norms = found.residual.norm(dim=-1)
    rows = []
    for p, strings in enumerate(found.token_strings):
        for t, token in enumerate(strings):
            ratio = float(norms[p, t]) / median
            kind = "first" if t == 0 else "sink" if ratio > SINK_FACTOR else "ordinary"
            rows.append((found.prompts.concept, context, p, t, token, float(norms[p, t]), kind, ratio))
    columns = ["concept", "context", "prompt", "position", "token", "norm", "kind", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def variance_table(run: RunDirectory, k: int = 20) -> pd.DataFrame:
    """Variance shared out over principal components with everything masked, and with one sink let in.

    Columns concept, tokens (masked, one sink let in), components, share (table ``01_sink_variance``).
    """
    found = concept_activations(run)

    def compute() -> pd.DataFrame:
        import pandas as pd

        rows = []
        for concept, activations in found.items():
            points = activations.points()
            # The first position of the first prompt is a sink in every causal model known to us.
            spoilt = torch.cat([points, activations.residual[0, :1]])
            for tokens, cloud in (("masked", points), ("one sink let in", spoilt)):
                shares = variance_shares(cloud, k)
                rows += [(concept, tokens, i + 1, float(share)) for i, share in enumerate(shares)]
        return pd.DataFrame(rows, columns=["concept", "tokens", "components", "share"])

    key = digest([concepts_key(run), k, source_digest("stage1_activations")])
    return run.cached_table("01_sink_variance", key, compute)


def mapped_concepts(run: RunDirectory) -> list[str]:
    """The concepts that are drawn as maps: months and days, or else the first two of four words or more."""
    prompts = build_prompts(run.study)
    long_enough = [name for name, found in prompts.items() if len(found.words) >= 4]
    return [name for name in ("months", "days") if name in long_enough] or long_enough[:2]


def word_maps(run: RunDirectory) -> pd.DataFrame:
    """Principal plane of the words of months and days at every layer (table ``01_word_maps``).

    All layers are captured in one pass. Columns concept, layer, word, x, y, plane_share (share of the
    words' variance in the plane), cyclic_order, chance (its mean over shuffled words) and p_value (share of
    999 shuffles at least as ordered). A layer where fewer than four words have a mean (the rest being sinks
    in every prompt) has no rows.
    """
    prompts = build_prompts(run.study)
    chosen = mapped_concepts(run)

    def compute() -> pd.DataFrame:
        import pandas as pd

        model, tables = language_model(run), []
        hooks = {f"blocks.{layer}.hook_resid_post": layer for layer in range(model.cfg.n_layers)}
        for concept in progress(chosen, "word maps", len(chosen)):
            found = capture_concept(model, prompts[concept], list(hooks))
            tables += [_map_of_layer(concept, hooks[name], found[name], run.study.seed) for name in hooks]
        drawn = [table for table in tables if len(table)]
        return pd.concat(drawn, ignore_index=True) if drawn else _no_map()

    if not chosen:
        return _no_map()
    key = digest([concepts_key(run), chosen, run.study.seed, source_digest("stage1_activations")])
    return run.cached_table("01_word_maps", key, compute)


def _no_map() -> pd.DataFrame:
    import pandas as pd

    columns = ["concept", "layer", "word", "x", "y", "plane_share", "cyclic_order", "chance", "p_value"]
    return pd.DataFrame(columns=columns)


def _map_of_layer(concept: str, layer: int, found: ConceptActivations, seed: int) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    means = word_means(found)
    known = torch.isfinite(means).all(1)
    if known.sum() < 4:  # the others are sinks in every prompt
        return _no_map()
    words = [word for word, has_mean in zip(found.prompts.words, known, strict=True) if has_mean]
    plane, share = principal_plane(means[known])
    places = places_around(plane)
    order, p_value = label_permutation_test(
        lambda labels: cyclic_order(places[labels]), np.arange(len(words)), seed=seed
    )
    return pd.DataFrame(
        {
            "concept": concept, "layer": layer, "word": words, "x": plane[:, 0], "y": plane[:, 1],
            "plane_share": share, "cyclic_order": order, "chance": 2 / (len(words) - 1), "p_value": p_value,
        }
    )  # fmt: skip


# ---- corpus ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusActivations:
    """Residual stream over running text: unmasked tokens only, in the order of the text.

    Attributes
    ----------
    train, heldout
        [N, D] and [M, D], float16, mapped from disk: take batches and cast them (``.float()``).
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

    @property
    def key(self) -> str:
        return self.path.stem


def corpus_activations(run: RunDirectory) -> CorpusActivations:
    """Residual stream at the study's layer over its corpus; captured once, then read from the cache.

    Capture writes shards as it goes, so that an interrupted run resumes where it stopped.

    Raises
    ------
    CorpusError
        If the text cannot be read or is too short.
    ActivationError
        If activations are not finite or the mask leaves nothing.
    """
    from filelock import FileLock

    path = cache_dir() / "activations" / f"{corpus_key(run)}.safetensors"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not _is_whole(path):
                sweep_up(path.with_suffix(""))
                _capture_corpus(run, path)
            return _open_corpus(path)
    except OSError as error:
        raise ArtifactError(
            f"cannot use the cache {path.parent} ({error.strerror or error}). Free some space there, or point "
            "SAEMA_CACHE at another folder, and run again to resume."
        ) from error


def corpus_key(run: RunDirectory) -> str:
    """Digest of everything the corpus activations are made from (not the rest of the study)."""
    recipe = run.study.as_dict()["corpus"]
    source = run.study.corpus.source
    if source != EMBEDDED_CORPUS and not source.startswith("hub:") and user_path(source).is_file():
        recipe["source"] = file_digest(user_path(source))
    sources = source_digest("corpus", "activations")
    return digest([model_digest(run.study), run.study.hook_name, recipe, run.study.seed, sources, LAYOUT])


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


def _capture_corpus(run: RunDirectory, path: Path) -> None:
    model, recipe = language_model(run), run.study.corpus
    text = corpus_tokens(model, recipe, run.study.seed)
    rows = torch.cat([text.heldout, text.train])
    per_shard = max(1, TOKENS_PER_SHARD // recipe.context)
    folder = path.with_suffix("")
    starts = range(0, len(rows), per_shard)
    shards = [folder / f"{start:07d}.safetensors" for start in starts]
    for start, shard in progress(list(zip(starts, shards, strict=True)), "corpus activations"):
        if not _is_whole(shard):
            _capture_shard(model, rows[start : start + per_shard], run.study.hook_name, shard)
    counts, tensors = _merge(shards, len(text.heldout))
    _write(path, {**tensors, "heldout_tokens": text.heldout}, counts={**counts, "documents": text.documents})
    shutil.rmtree(folder, ignore_errors=True)  # with what a killed run may have left half written


def _capture_shard(model: TransformerBridge, rows: Int[Tensor, "S context"], hook_name: str, path: Path) -> None:
    residual = capture_residual_stream(model, rows, hook_name)
    norms, special = residual.norm(dim=-1), special_tokens(model, rows)
    _write(path, {"residual": residual.half(), "norms": norms, "special": special})


def _merge(shards: list[Path], n_heldout: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Drop special tokens and sinks from the shards; one threshold for all, from the training text."""
    read = [_read(shard) for shard in shards]
    norms, special = (torch.cat([shard[name] for shard in read]) for name in ("norms", "special"))
    is_train = (torch.arange(len(norms)) >= n_heldout)[:, None]
    _, median = find_sinks(norms, ~special & is_train)
    sinks = ~special & (norms > SINK_FACTOR * median)
    keep = ~special & ~sinks
    counts: dict[str, Any] = {"median_norm": median, "sink_threshold": SINK_FACTOR * median}
    tensors = {"heldout_mask": (keep & ~is_train)[:n_heldout]}
    for split, rows in (("train", is_train), ("heldout", ~is_train)):
        chosen = keep & rows
        counts[split] = {
            "tokens": int(chosen.sum()), "special": int((special & rows).sum()), "sinks": int((sinks & rows).sum())
        }  # fmt: skip
        if not chosen.any():
            raise ActivationError(f"no {split} token of the corpus is left unmasked. Give more text.")
        parts = zip(read, chosen.split([len(shard["norms"]) for shard in read]), strict=True)
        tensors[split] = torch.cat([shard["residual"][part] for shard, part in parts])
        if not torch.isfinite(tensors[split]).all():
            raise ActivationError("activations do not fit float16 (above 65,504). Choose an earlier layer.")
    return counts, tensors
