"""Load a sparse autoencoder, from a folder or from sae_lens's registry, and check that it fits the model."""

from __future__ import annotations

import difflib
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import SaeError, one_line, unknown_name
from saema_utils.runs.files import read_json, user_path

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE

SAE_FILES = ("sae_weights.safetensors", "cfg.json")


def load_sae(
    source: str | Path, device: str | torch.device = "cpu", d_in: int | None = None, hook_name: str | None = None
) -> SAE:
    """Load a sparse autoencoder: a folder in sae_lens's format, or ``RELEASE:ID`` of its registry.

    Parameters
    ----------
    d_in, hook_name
        Width and place of the activations it has to read, if it is to be checked against them.

    Raises
    ------
    SaeError
        If there is none, it cannot be read, or it was made for another width or place.
    HubUnreachableError
        If it would have to be downloaded and the hub does not answer.
    """
    text = str(source)
    folder = user_path(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sae_lens warns about its own defaults of old releases
        if folder.is_dir():
            sae = _load_folder(folder, device)
        elif ":" in text and not folder.exists():
            sae = _load_release(*text.split(":", 1), device)
        else:
            raise no_sae(text)
    check_reads(sae.cfg.d_in, sae.cfg.metadata.hook_name, d_in, hook_name, text)
    for parameter in sae.parameters():  # converted releases hold transposed views, which safetensors refuses to save
        parameter.data = parameter.data.contiguous()
    return sae.eval().requires_grad_(False)


def no_sae(source: str) -> SaeError:
    """The error for a source that is neither a folder nor the name of a released SAE."""
    return SaeError(
        f"no SAE at {source!r}; allowed: a folder with {' and '.join(SAE_FILES)}, or RELEASE:ID of sae_lens. "
        "Check the path, or use --sae train."
    )


def read_sae_config(folder: Path) -> dict[str, Any]:
    """What ``cfg.json`` of an SAE's folder says; SaeError where it or the weights are missing or no JSON object."""
    missing = [name for name in SAE_FILES if not (folder / name).exists()]
    if missing:
        raise SaeError(
            f"{folder} holds no {' and no '.join(missing)}; allowed: a folder that sae_lens's save_model wrote."
        )
    return read_json(folder / "cfg.json", "the configuration of an SAE", "Save or copy the SAE again.", SaeError)


def _load_folder(folder: Path, device: str | torch.device) -> SAE:
    from sae_lens import SAE

    read_sae_config(folder)
    try:
        sae = SAE.load_from_disk(folder, device=str(device))
        _try_out(sae)
    except SaeError:
        raise
    except Exception as error:  # sae_lens raises whatever its parts do; all mean the same to the reader
        raise SaeError(
            f"the SAE in {folder} cannot be read ({type(error).__name__}: {one_line(error)}). Save or copy it again."
        ) from error
    return sae


def _try_out(sae: SAE) -> None:
    """Encode and decode once: sae_lens stores what cfg.json says and stumbles over it only when it is used."""
    import torch

    if not all(torch.isfinite(parameter).all() for parameter in sae.parameters()):
        raise SaeError("the SAE's weights hold NaN or infinity. Save or copy it again.")
    with torch.inference_mode():
        vector = torch.zeros(1, sae.cfg.d_in, dtype=sae.dtype, device=sae.device)
        if sae.decode(sae.encode(vector)).shape != vector.shape:
            raise SaeError(f"the SAE gives back another shape than the {sae.cfg.d_in} dimensions it reads.")


def check_release(release: str, sae_id: str) -> None:
    """Refuse a release or an SAE that sae_lens's registry does not list (a hub repository's own name passes)."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release not in known and "/" not in release:
        near = difflib.get_close_matches(release, known, n=8, cutoff=0)
        raise SaeError(unknown_name("SAE release", release, near, "sae_lens's documentation lists them all."))
    if release in known and sae_id not in known[release].saes_map:
        raise SaeError(unknown_name(f"SAE in release {release}", sae_id, list(known[release].saes_map)[:24]))


def _load_release(release: str, sae_id: str, device: str | torch.device) -> SAE:
    from huggingface_hub import errors as hub
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    from saema_utils.model.loading import hub_error, quietly

    check_release(release, sae_id)
    try:
        with quietly():
            return SAE.from_pretrained(release, sae_id, device=str(device))
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, OSError) as error:
        known = get_pretrained_saes_directory()
        repository = known[release].repo_id if release in known else release
        remedy = (
            "copy a machine's HF_HOME cache that holds it and set HF_HUB_OFFLINE=1, give a folder, or use --sae train"
        )
        raise hub_error(error, f"SAE {release}:{sae_id}", repository, SaeError, remedy) from error
    except Exception as error:
        raise SaeError(f"SAE {release}:{sae_id} cannot be read ({type(error).__name__}: {one_line(error)}).") from error


def check_reads(width: Any, made_for: Any, d_in: int | None, hook_name: str | None, source: str = "") -> None:
    """Refuse an SAE made for another width or place, from what its configuration says of them (None: nothing)."""
    which = f"SAE {source!r}" if source else "the SAE"
    if d_in is not None and isinstance(width, int) and width != d_in:
        raise SaeError(
            f"{which} reads {width} dimensions but the residual stream has {d_in}. "
            "Choose an SAE trained on this model, or use --sae train."
        )
    if hook_name and isinstance(made_for, str) and made_for and _place(made_for) != _place(hook_name):
        raise SaeError(
            f"{which} was trained at {made_for} but the study reads {hook_name}. Choose --layer or --sae to match."
        )


def _place(hook_name: str) -> tuple[str, int] | str:
    """The same for hooks that read the same vectors: the stream after a block is that before the next one."""
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_resid_pre|hook_in|hook_resid_post|hook_out)", hook_name)
    if match is None:
        return hook_name
    return "residual", int(match[1]) + (match[2] in ("hook_resid_post", "hook_out"))
