"""Load a sparse autoencoder, from a folder or from sae_lens's registry, and check that it fits the model.

Weights are computed with in float32, however they are stored; what the configuration says of the vectors that it was
trained on is met or refused.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import SaeError, one_line, unknown_name
from saema_utils.runs.files import user_path
from saema_utils.saes.centring import centre
from saema_utils.saes.foreign import AGAIN, SAE_FILES, Config, check_shapes, layout_of
from saema_utils.saes.meaning import hook_of, reads_centred, refuse_other_meaning, remarks_on

if TYPE_CHECKING:
    import torch
    from sae_lens import SAE

__all__ = ["SAE_FILES", "check_reads", "check_release", "load_sae", "no_sae", "read_sae_config", "residual_layer"]

# Options of its model that sae_lens warns about whatever they say; what they mean is told in words of our own.
_TOLD_OTHERWISE = "model_from_pretrained_kwargs"


def load_sae(
    source: str | Path,
    device: str | torch.device = "cpu",
    d_in: int | None = None,
    hook_name: str | None = None,
    *,
    context: int | None = None,
    say: Callable[[str], None] | None = None,
) -> SAE:
    """Load a sparse autoencoder: a folder of sae_lens or another library, or ``RELEASE:ID`` of sae_lens's registry.

    Parameters
    ----------
    source
        The folder (see :mod:`saema_utils.saes.foreign` for the libraries), or the release.
    d_in, hook_name
        Width and place of the activations it has to read, if it is to be checked against them.
    context
        Length in tokens of the texts that it will meet, if that is to be compared with its own.
    say
        Called with each line that a reader should know of it, warnings of sae_lens among them.

    Returns
    -------
    In float32, on the device, without gradients; ``stored_as`` is the number format of its weights in the folder (empty
    for a release). One that was trained on a stream of centred writing weights takes
    the mean off its input itself (:func:`saema_utils.saes.centring.centre`).

    Raises
    ------
    SaeError
        If there is none, it cannot be read, it was made for another width or place, or reads vectors that are not
        those of the stream (a transcoder, one attention head, an unknown scale).
    HubUnreachableError
        If it would have to be downloaded and the hub does not answer.
    """
    text = str(source)
    folder = user_path(text)
    which = f"SAE {text!r}"
    with _heard() as warned:
        if folder.is_dir():
            sae, stored = _load_folder(folder, device)
        elif ":" in text and not folder.exists():
            sae, stored = _load_release(*text.split(":", 1), device), ""
        else:
            raise no_sae(text)
    config = sae.cfg.to_dict()
    check_reads(sae.cfg.d_in, hook_of(config), d_in, hook_name, text)
    refuse_other_meaning(config, which)
    if reads_centred(config):
        centre(sae)
    for remark in (*remarks_on(config, which, context, stored), *(f"{which}: {line}" for line in warned)):
        if say is not None:
            say(remark)
    for parameter in sae.parameters():  # converted releases hold transposed views, which safetensors refuses to save
        parameter.data = parameter.data.contiguous()
    sae.stored_as = stored.removeprefix("torch.")
    return sae.eval().requires_grad_(False)


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """Keep warnings off the page; they stand in the list afterwards, each on one line."""
    lines: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lines
    for warning in caught:
        line = one_line(warning.message)
        if issubclass(warning.category, UserWarning) and _TOLD_OTHERWISE not in line and line not in lines:
            lines.append(line)


def no_sae(source: str) -> SaeError:
    """The error for a source that is neither a folder nor the name of a released SAE."""
    return SaeError(
        f"no SAE at {source!r}; allowed: a folder with {' and '.join(SAE_FILES)}, or RELEASE:ID of sae_lens. "
        "Check the path, or use --sae train."
    )


def read_sae_config(folder: Path) -> Config:
    """What an SAE's folder says of it, as sae_lens keeps it; its large tensors are not read.

    Raises
    ------
    SaeError
        If a file is missing or unreadable, or what it says cannot be met here.
    """
    config = layout_of(folder).describe(folder)
    refuse_other_meaning(config, f"the SAE in {folder}")
    return config


def _load_folder(folder: Path, device: str | torch.device) -> tuple[SAE, str]:
    """The SAE in a folder, and the number format of its weights there."""
    from sae_lens import SAE

    config, stored = read_sae_config(folder), []

    def convert(path: Path, device: str, cfg_overrides: Config | None) -> tuple[Config, dict[str, torch.Tensor]]:
        tensors = _tensors(folder, config)
        stored.extend(str(tensor.dtype) for name, tensor in tensors.items() if name == "W_dec")
        whole = {**_filled(config, tensors), **(cfg_overrides or {}), "device": device}
        return whole, {name: tensor.float() for name, tensor in tensors.items()}

    try:
        sae = SAE.load_from_disk(folder, device=str(device), dtype="float32", converter=convert)
        _try_out(sae)
    except SaeError:
        raise
    except Exception as error:  # sae_lens raises whatever its parts do; all mean the same to the reader
        raise SaeError(
            f"the SAE in {folder} cannot be read ({type(error).__name__}: {one_line(error)}). {AGAIN}"
        ) from error
    return sae, "".join(stored)


def _tensors(folder: Path, config: Config) -> dict[str, torch.Tensor]:
    layout = layout_of(folder)
    tensors = dict(layout.tensors(folder, config))
    if layout.weights not in SAE_FILES:  # families of sae_lens have shapes of their own, which it checks
        check_shapes(tensors, config, str(folder))
    return tensors


def _filled(config: Config, tensors: dict[str, torch.Tensor]) -> Config:
    """With the sizes that configurations from before sae_lens 1 left to the weights, and the whole name of the hook."""
    found, hook = dict(config), hook_of(config)
    if "W_dec" in tensors and tensors["W_dec"].ndim == 2:
        for name, size in zip(("d_sae", "d_in"), tensors["W_dec"].shape, strict=True):
            found.setdefault(name, size)
    if hook is not None and "metadata" not in config:
        found.pop("hook_point", None)
        found["hook_name"] = hook
    return found


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

    from saema_utils.model.loading import hub_error
    from saema_utils.runtime import quietly

    check_release(release, sae_id)
    lines: list[str] = []
    try:
        with quietly(), _heard() as lines:
            sae = SAE.from_pretrained(release, sae_id, device=str(device))
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled, OSError) as error:
        known = get_pretrained_saes_directory()
        repository = known[release].repo_id if release in known else release
        remedy = (
            "copy a machine's HF_HOME cache that holds it and set HF_HUB_OFFLINE=1, give a folder, or use --sae train"
        )
        raise hub_error(error, f"SAE {release}:{sae_id}", repository, SaeError, remedy) from error
    except Exception as error:
        raise SaeError(f"SAE {release}:{sae_id} cannot be read ({type(error).__name__}: {one_line(error)}).") from error
    for line in lines:  # quietly() keeps them from whoever listens outside
        warnings.warn(line, UserWarning, stacklevel=2)
    return sae


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


def residual_layer(hook_name: str | None) -> int | None:
    """The block after which a hook reads the stream; None where it reads something else or the embedding."""
    place = _place(hook_name) if hook_name else ""
    return place[1] - 1 if isinstance(place, tuple) and place[1] > 0 else None


def _place(hook_name: str) -> tuple[str, int] | str:
    """The same for hooks that read the same vectors: the stream after a block is that before the next one."""
    block = re.fullmatch(r"(?:model\.|transformer\.|gpt_neox\.)*(?:layers|h)\.(\d+)(?:\.output)?", hook_name)
    if block:  # as transformers names the modules whose output it is
        return "residual", int(block[1]) + 1
    match = re.fullmatch(r"blocks\.(\d+)\.(hook_resid_pre|hook_in|hook_resid_post|hook_out)", hook_name)
    if match is None:
        return hook_name
    return "residual", int(match[1]) + (match[2] in ("hook_resid_post", "hook_out"))
