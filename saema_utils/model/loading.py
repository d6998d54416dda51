"""Language models: the embedded one, a local checkpoint, or one from the hub, as a TransformerBridge.

Loading never runs a checkpoint's own code and never unpickles: only safetensors weights are read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import DeviceError, HubUnreachableError, ModelError, SaemaError, one_line
from saema_utils.model.embedded import PREFIX, embedded_digest, embedded_folder, embedded_model, gguf_folder
from saema_utils.runs.files import read_json, user_path
from saema_utils.runs.freshness import digest, digest_once
from saema_utils.runtime import choose_device, choose_dtype, quietly
from saema_utils.study import EMBEDDED_MODEL, Study

if TYPE_CHECKING:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_language_model(
    source: str | Study, device: str | torch.device = "auto", dtype: torch.dtype | None = None
) -> TransformerBridge:
    """Load a language model ready for activation capture.

    Weights are left as they are stored (no folding or centring), so that activations are those of the
    plain transformers model and SAEs trained on raw residual streams fit.

    Parameters
    ----------
    source
        ``embedded:smollm2-135m``, a folder with a transformers checkpoint, a ``.gguf`` file, a hub name such as
        ``gpt2``, or a study, whose layer is then checked as well.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    dtype
        Default: float32, or bfloat16 above a billion parameters on CUDA.

    Raises
    ------
    ModelError
        If there is no such model, it cannot be read, it has no layer ``study.layer``, its tokenizer is another
        model's, or it does not read from left to right.
    HubUnreachableError
        If a hub model is not in the local cache and the hub does not answer.
    """
    import torch

    from saema_utils.model.fit import check_model

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
    check_model(model, name)
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
    return _named_folder(name) or (embedded_folder(name) if name.startswith(PREFIX) else _hub_folder(name))


def folder_on_this_machine(name: str) -> Path | None:
    """:func:`model_folder`, or None where it would have to be made or downloaded."""
    folder = _named_folder(name)
    if folder or name.startswith(PREFIX):
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) and (Path(found).parent / "tokenizer.json").exists() else None


def _named_folder(name: str) -> Path | None:
    """The folder that a model source names; None for the embedded model and for a name on the hub."""
    if name.startswith(PREFIX):
        embedded_model(name)
        return None
    path = user_path(name)
    if path.is_dir():
        return path.resolve()
    if path.is_file() and path.suffix == ".gguf":
        return gguf_folder(path.resolve())
    if path.exists():
        raise ModelError(
            f"model {name!r} is a file; allowed: a folder with config.json and *.safetensors, or a .gguf file. "
            "Name its folder."
        )
    if not _HUB_NAME.fullmatch(name):
        raise ModelError(f"model {name!r} is neither an existing folder nor a hub name such as 'gpt2' or 'org/name'.")
    return None


def model_digest(source: str | Study) -> str:
    """Sixteen hexadecimal digits that change when the model's files do.

    An embedded model is known by the hash of its wheels' file, a folder by the hashes of its files,
    a hub model by its name and commit.
    """
    name = source.model if isinstance(source, Study) else source
    if name.startswith(PREFIX):
        return embedded_digest(name)
    folder = model_folder(name)
    if folder.parent.name == "snapshots":  # the hub's cache names the folder by its commit
        return digest([folder.parent.parent.name, folder.name])
    files = sorted(path for pattern in HUB_FILES for path in folder.glob(pattern) if path.is_file())
    return digest([(p.name, digest_once(p)) for p in files])


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
        remedy = (
            "copy a machine's HF_HOME cache that holds it (by default ~/.cache/huggingface) and set HF_HUB_OFFLINE=1, "
            f"give a folder (--model PATH), or take '{EMBEDDED_MODEL}', as the study smollm2-135m does"
        )
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
