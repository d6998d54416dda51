"""Autoencoders as several libraries keep them in a folder, recognised and read as sae_lens computes with them.

Nothing is unpickled: a file of weights holds tensors, or is refused. Each library's formula is met by sae_lens's
class of the same family; what has no such class (skip connections, group maxima, several layers at once) is refused.

* **sae_lens**, of any age: ``cfg.json`` and ``sae_weights.safetensors``.
* **sparsify**, once *sae* [1]_: ``cfg.json`` and ``sae.safetensors`` in a folder named for the module, ``layers.10``.
* **dictionary_learning** [2]_: ``config.json`` and ``ae.pt``.
* **Gemma Scope** [3]_: ``params.npz`` in folders that tell the layer.

References
----------
.. [1] EleutherAI/sparsify, ``sparsify/sparse_coder.py``.
.. [2] saprmarks/dictionary_learning, ``dictionary_learning/dictionary.py`` and ``trainers/``.
.. [3] Lieberum et al., arXiv 2408.05147, 2024.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saema_utils.errors import SaeError, one_line
from saema_utils.runs.files import read_json

if TYPE_CHECKING:
    from torch import Tensor

Config = dict[str, Any]
SAE_FILES = ("sae_weights.safetensors", "cfg.json")
AGAIN = "Save or copy the SAE again."


@dataclass(frozen=True)
class Layout:
    """How a library keeps an autoencoder.

    Attributes
    ----------
    weights, config
        Names of its files; ``config`` is empty where the weights are all there is.
    describe
        The configuration as sae_lens 6 would write it, from a folder, without its large tensors.
    tensors
        The weights by sae_lens's names and shapes, from a folder and its configuration.
    """

    library: str
    weights: str
    config: str
    describe: Callable[[Path], Config]
    tensors: Callable[[Path, Config], Mapping[str, Tensor]]

    @property
    def files(self) -> tuple[str, ...]:
        return (self.weights, self.config) if self.config else (self.weights,)


def layout_of(folder: Path) -> Layout:
    """The layout of an autoencoder's folder; SaeError where it is none, or lacks a file."""
    layout = next((layout for layout in LAYOUTS if (folder / layout.weights).exists()), None)
    if layout is None:
        raise SaeError(
            f"{folder} holds no {' and no '.join(_missing(folder))}; allowed: {_allowed()}.{_nearby(folder)}"
        )
    if layout.config and not (folder / layout.config).exists():
        raise SaeError(
            f"{folder} holds {layout.weights} of {layout.library} but no {layout.config}, which says what it computes. "
            "Copy it beside the weights."
        )
    return layout


def sae_files(folder: Path) -> list[Path]:
    """The files that an autoencoder in a folder consists of, weights first."""
    names = next((layout.files for layout in LAYOUTS if (folder / layout.weights).is_file()), SAE_FILES)
    return [folder / name for name in names if (folder / name).is_file()]


def _missing(folder: Path) -> list[str]:
    return [name for name in SAE_FILES if not (folder / name).exists()]


def _allowed() -> str:
    first, *others = LAYOUTS
    also = ", ".join(f"{' and '.join(layout.files)} ({layout.library})" for layout in others)
    return f"{' and '.join(first.files)} as sae_lens's save_model writes them, or {also}"


def _nearby(folder: Path) -> str:
    """Which folders inside would do, for somebody who named the whole collection."""
    weights = {layout.weights for layout in LAYOUTS}
    found = sorted({path.parent.relative_to(folder) for path in folder.glob("*/*") if path.name in weights})
    return f" Did you mean {str(found[0])!r} or another folder inside it?" if found else ""


# ---- tensors without pickle --------------------------------------------------------------------


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError, MemoryError: one thing to the reader
        raise _unreadable(path, error) from error


def _torch_file(path: Path) -> dict[str, Tensor]:
    """A state dict from ``torch.save``; anything but tensors in it is refused, not built."""
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SaeError(
            f"{path} holds Python objects beside tensors, which are never unpickled here ({one_line(error, 120)}). "
            "Save the weights alone, torch.save(ae.state_dict(), 'ae.pt'), where you trust the file."
        ) from error
    except Exception as error:  # not a zip, cut short, not a file
        raise _unreadable(path, error) from error
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise SaeError(f"{path} holds a {type(state).__name__}; allowed: a state dict, names with tensors. {AGAIN}")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _npz(path: Path, names: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Arrays of an ``.npz`` file, all or the named ones."""
    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: torch.from_numpy(np.asarray(data[name])) for name in names or data.files}
    except Exception as error:  # object arrays, a damaged zip, a missing name, a plain pickle
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SaeError:
    return SaeError(f"{path} cannot be read as tensors ({type(error).__name__}: {one_line(error)}). {AGAIN}")


# ---- sae_lens ----------------------------------------------------------------------------------


def _describe_sae_lens(folder: Path) -> Config:
    return read_json(folder / "cfg.json", "the configuration of an SAE", AGAIN, SaeError)


def _sae_lens_tensors(folder: Path, config: Config) -> dict[str, Tensor]:
    """As they are; a factor on the latents, which sae_lens once trained beside them, only where it changes nothing."""
    path = folder / "sae_weights.safetensors"
    kept = _safetensors(path)
    factor = kept.pop("scaling_factor", None)
    if factor is not None and not bool((factor == 1).all()):
        raise SaeError(
            f"{path} scales its latents (scaling_factor); allowed: ones. Multiply W_dec by it and save again."
        )
    return kept


# ---- sparsify ----------------------------------------------------------------------------------


def _describe_sparsify(folder: Path) -> Config:
    """What sparsify's ``SparseCoder`` computes: ``relu(W (x - b_dec) + b)``, its k largest, ``z W_dec + b_dec``.

    sae_lens's own converter takes ``b_dec`` off the input only of coders whose decoder was not normalised and
    turns the decoder over [1]_; sparsify takes it off of every autoencoder.

    References
    ----------
    .. [1] ``get_sparsify_config_from_disk`` and ``sparsify_disk_loader`` of
       ``sae_lens.loading.pretrained_sae_loaders``.
    """
    path = folder / "cfg.json"
    given = read_json(path, "the configuration of a sparsify SAE", AGAIN, SaeError)
    for flag in ("skip_connection", "transcode", "signed", "embed_skip", "gram_lookup"):
        if given.get(flag):
            raise SaeError(f"{path} says {flag}: true; allowed: an autoencoder without it. Choose another SAE.")
    if given.get("activation", "topk") != "topk":
        raise SaeError(f"{path} says activation {given['activation']!r}; allowed: 'topk'. Choose another SAE.")
    d_in = _number(given, "d_in", path)
    d_sae = _number(given, "num_latents", path) if given.get("num_latents") else 0
    d_sae = d_sae or d_in * _number(given, "expansion_factor", path)
    whole = read_json(folder.parent / "config.json", "sparsify's training choices", AGAIN, SaeError, must_exist=False)
    block = re.fullmatch(r"(?:layers|h)[._](\d+)", folder.name)
    named = re.match(r"(layers|h)[._]\d+[._]|embed", folder.name)
    hook = f"blocks.{block[1]}.hook_resid_post" if block else folder.name if named else None
    return _as_sae_lens(
        "topk", d_in, d_sae, hook, whole.get("model"), k=_number(given, "k", path), context_size=whole.get("ctx_len")
    )


def _sparsify_tensors(folder: Path, config: Config) -> dict[str, Tensor]:
    kept = _safetensors(folder / "sae.safetensors")
    path = folder / "sae.safetensors"
    return {
        "W_enc": _one_of(kept, path, "encoder.weight").T,
        "b_enc": _one_of(kept, path, "encoder.bias"),
        "W_dec": _one_of(kept, path, "W_dec"),
        "b_dec": _one_of(kept, path, "b_dec"),
    }


# ---- dictionary_learning -----------------------------------------------------------------------

# Family of sae_lens, and whether the decoder's bias is taken off the input, by class of dictionary_learning. Classes
# that keep only what exceeds a threshold once they are trained (its BatchTopK and Matryoshka) are JumpReLUs.
_DICTIONARIES = {
    "AutoEncoder": ("standard", True),
    "AutoEncoderNew": ("standard", False),
    "GatedAutoEncoder": ("gated", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("jumprelu", True),
    "MatryoshkaBatchTopKSAE": ("jumprelu", True),
}


def _describe_dictionary(folder: Path) -> Config:
    path = folder / "config.json"
    given = read_json(path, "the configuration of a dictionary_learning SAE", AGAIN, SaeError)
    trainer, buffer = (given.get(part) if isinstance(given.get(part), dict) else {} for part in ("trainer", "buffer"))
    kind = trainer.get("dict_class")
    if not isinstance(kind, str) or kind not in _DICTIONARIES:
        allowed = ", ".join(sorted(_DICTIONARIES))
        raise SaeError(f"{path} names the class {kind!r}; allowed: {allowed}. Choose another SAE.")
    architecture, subtracts = _DICTIONARIES[kind]
    more = {"k": _number(trainer, "k", path)} if architecture == "topk" else {}
    return _as_sae_lens(
        architecture,
        _number(trainer, "activation_dim", path),
        _number(trainer, "dict_size", path),
        _dictionary_hook(trainer, buffer),
        trainer.get("lm_name"),
        apply_b_dec_to_input=subtracts,
        context_size=buffer.get("ctx_len"),
        dict_class=kind,
        **more,
    )


def _dictionary_hook(trainer: Config, buffer: Config) -> str | None:
    """The hook of the stream before or after a block; another module by its own name, which is then refused."""
    layer, name = trainer.get("layer"), str(trainer.get("submodule_name") or "")
    if name and "resid" not in name:
        return name
    if buffer.get("io") not in (None, "in", "out"):
        return f"{name or 'layer'} {layer}, {buffer['io']}"
    before = buffer.get("io") == "in" or "pre" in name
    return f"blocks.{layer}.hook_resid_{'pre' if before else 'post'}" if isinstance(layer, int) else None


def _dictionary_tensors(folder: Path, config: Config) -> dict[str, Tensor]:
    path = folder / "ae.pt"
    kept = _torch_file(path)
    linear = "encoder.weight" in kept
    tensors = {
        "W_enc": kept["encoder.weight"].T if linear else _one_of(kept, path, "W_enc"),
        "W_dec": _one_of(kept, path, "decoder.weight").T if linear else _one_of(kept, path, "W_dec"),
        "b_dec": _one_of(kept, path, "b_dec", "bias", "decoder_bias", "decoder.bias"),
    }
    biases = {"b_enc": ("encoder.bias", "b_enc")}
    if config["architecture"] == "gated":
        biases = {"b_gate": ("gate_bias",), "b_mag": ("mag_bias",), "r_mag": ("r_mag",)}
    tensors |= {name: _one_of(kept, path, *theirs) for name, theirs in biases.items()}
    if config["architecture"] == "jumprelu":
        tensors["threshold"] = _one_of(kept, path, "threshold").expand(config["d_sae"])
    check_shapes(tensors, config, str(path))
    scales = config["metadata"]["dict_class"] in ("GatedAutoEncoder", "JumpReluAutoEncoder")
    return _times_decoder_norms(tensors) if scales else tensors


def _times_decoder_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its Gated and JumpReLU classes hand out latents times the norms of the decoder's rows, and divide to decode."""
    norms = tensors["W_dec"].float().norm(dim=-1)
    scaled = {n: tensors[n].float() * norms for n in ("W_enc", "b_enc", "threshold", "b_gate", "b_mag") if n in tensors}
    return {**tensors, **scaled, "W_dec": tensors["W_dec"].float() / norms.clamp_min(1e-30)[:, None]}


# ---- Gemma Scope -------------------------------------------------------------------------------


def _describe_gemma_scope(folder: Path) -> Config:
    """What its arrays and the folders above tell: ``gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71``."""
    sizes = _npz(folder / "params.npz", ("b_enc", "b_dec"))
    where = folder.resolve().as_posix()
    layer, release = re.search(r"/layer_(\d+)", where), re.search(r"gemma-scope-(\w+?)-(pt|it)-(\w+)", where)
    site = release[3] if release else "res"
    hook = f"{release[0] if release else 'its'} embedding" if "/embedding/" in where else None
    if layer and not hook:
        hook = f"blocks.{layer[1]}." + {"res": "hook_resid_post", "mlp": "hook_mlp_out"}.get(site, f"({site})")
    model = f"google/gemma-2-{release[1]}{'-it' if release[2] == 'it' else ''}" if release else None
    return _as_sae_lens(
        "jumprelu", len(sizes["b_dec"]), len(sizes["b_enc"]), hook, model, apply_b_dec_to_input=False, context_size=1024
    )


def _gemma_scope_tensors(folder: Path, config: Config) -> dict[str, Tensor]:
    path = folder / "params.npz"
    kept = {re.sub("^w_", "W_", name): value for name, value in _npz(path).items()}
    return {name: _one_of(kept, path, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}


LAYOUTS = (
    Layout("sae_lens", "sae_weights.safetensors", "cfg.json", _describe_sae_lens, _sae_lens_tensors),
    Layout("sparsify", "sae.safetensors", "cfg.json", _describe_sparsify, _sparsify_tensors),
    Layout("dictionary_learning", "ae.pt", "config.json", _describe_dictionary, _dictionary_tensors),
    Layout("Gemma Scope", "params.npz", "", _describe_gemma_scope, _gemma_scope_tensors),
)


# ---- small parts -------------------------------------------------------------------------------


def _as_sae_lens(
    architecture: str,
    d_in: int,
    d_sae: int,
    hook_name: str | None,
    model_name: Any,
    *,
    context_size: Any = None,
    dict_class: str | None = None,
    apply_b_dec_to_input: bool = True,
    **more: Any,
) -> Config:
    """A configuration as sae_lens 6 writes it; nothing is said of what is not known."""
    known = {"hook_name": hook_name, "model_name": model_name, "context_size": context_size, "dict_class": dict_class}
    metadata = {"sae_lens_version": "6.0.0", **{name: value for name, value in known.items() if value is not None}}
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": apply_b_dec_to_input,
        "normalize_activations": "none",
        "metadata": metadata,
        **more,
    }


def _number(given: Config, name: str, path: Path) -> int:
    value = given.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SaeError(f"{path} says {name}: {value!r}; allowed: a whole number from 1. {AGAIN}")
    return value


def _one_of(kept: Mapping[str, Tensor], path: Path, *names: str) -> Tensor:
    found = next((name for name in names if name in kept), None)
    if found is None:
        there = ", ".join(sorted(kept)[:12]) or "nothing"
        raise SaeError(f"{path} holds no tensor {' or '.join(map(repr, names))} (it holds {there}). {AGAIN}")
    return kept[found]


def check_shapes(tensors: Mapping[str, Tensor], config: Config, where: str) -> None:
    """Refuse weights whose shapes are not those that the configuration beside them says."""
    d_in, d_sae = config["d_in"], config["d_sae"]
    wanted = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    for name, tensor in tensors.items():
        shape = wanted.get(name, (d_sae,))
        if tuple(tensor.shape) != shape:
            raise SaeError(
                f"{name} of the SAE in {where} has shape {tuple(tensor.shape)}; allowed: {shape}, for d_in {d_in} and "
                f"d_sae {d_sae} of its configuration. Copy configuration and weights of one SAE."
            )
