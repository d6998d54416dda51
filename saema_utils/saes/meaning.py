"""What an autoencoder's configuration says of the vectors it was trained on: met, refused, or told to the reader.

An autoencoder is only what its authors measured if it reads the vectors it was trained on. What its configuration
says about them is either met (the writing weights of its model were centred, tokens were normalised), refused with
one line (a transcoder, an unknown scale, another place, another model), or a remark (shorter texts, no BOS).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from saema_utils.errors import SaeError, one_line
from saema_utils.model.embedded import EMBEDDED
from saema_utils.runs.files import user_path

# Names that sae_lens gave things before its version 6.
_OLD_NAMES = {
    "hook_name": ("hook_point",),
    "hook_head_index": ("hook_point_head_index",),
    "hook_layer": ("hook_point_layer",),
}
_NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale", None, False)
# Options of transformer_lens's from_pretrained that leave the stream between blocks as it is.
_HARMLESS = {
    "center_unembed",
    "default_padding_side",
    "default_prepend_bos",
    "device",
    "device_map",
    "dtype",
    "fold_ln",
    "fold_value_biases",
    "local_files_only",
    "move_to_device",
    "n_devices",
    "refactor_factored_attn_matrices",
    "torch_dtype",
    "trust_remote_code",
}
_OTHER_WEIGHTS = {"revision", "checkpoint_index", "checkpoint_value"}
_SAME_MODEL = {"gpt2-small": "gpt2"}


def told(config: Mapping[str, Any], name: str) -> Any:
    """What a configuration of any age says under a name, in its metadata or beside them; None for nothing."""
    metadata = config.get("metadata")
    for place in (metadata if isinstance(metadata, Mapping) else {}, config):
        for key in (name, *_OLD_NAMES.get(name, ())):
            if place.get(key) is not None:
                return place[key]
    return None


def hook_of(config: Mapping[str, Any]) -> str | None:
    """Where it was trained; old configurations keep the layer beside a name such as ``blocks.{layer}.hook_mlp_out``."""
    hook, layer = told(config, "hook_name"), told(config, "hook_layer")
    if not isinstance(hook, str):
        return None
    return hook.replace("{layer}", str(layer)) if isinstance(layer, int) else hook


def reads_centred(config: Mapping[str, Any]) -> bool:
    """Whether its model's writing weights were centred: then every vector lacks the mean over its coordinates."""
    options = told(config, "model_from_pretrained_kwargs")
    return isinstance(options, Mapping) and bool(options.get("center_writing_weights"))


def refuse_other_meaning(config: Mapping[str, Any], which: str) -> None:
    """Refuse what would be computed here otherwise than where it was trained.

    Parameters
    ----------
    config
        As sae_lens keeps it, of any age.
    which
        How the reader calls the autoencoder.

    Raises
    ------
    SaeError
        A transcoder, one attention head, a normalisation that is not in the weights, another activation function.
    """
    reads, writes = hook_of(config), told(config, "hook_name_out")
    family = told(config, "architecture") or "standard"
    if "transcoder" in str(family) or (writes and writes != reads):
        raise SaeError(
            f"{which} is a transcoder: it reads {reads or 'one place'} and predicts {writes or 'another'}; allowed: an "
            "autoencoder, which gives back what it reads. Choose another SAE, or use --sae train."
        )
    if family == "temporal":
        raise SaeError(f"{which} reads whole texts (temporal); allowed: one that reads token by token. Choose another.")
    head = told(config, "hook_head_index")
    if head is not None or told(config, "reshape_activations") not in (None, "none"):
        what = f"head {head}" if head is not None else f"heads ({told(config, 'reshape_activations')})"
        raise SaeError(f"{which} reads attention {what}; allowed: an SAE of the residual stream. Choose another.")
    _refuse_normalisation(told(config, "normalize_activations"), which)
    function = told(config, "activation_fn_str") or told(config, "activation_fn")
    if function not in (None, "relu", "topk", "jumprelu"):
        raise SaeError(
            f"{which} has the activation function {function!r}; allowed: relu, topk, jumprelu. Choose another."
        )


def _refuse_normalisation(normalisation: Any, which: str) -> None:
    if normalisation in _NORMALISATIONS:
        return
    scaled = normalisation in (True, "expected_average_only_in")
    raise SaeError(
        f"{which} says normalize_activations: {normalisation!r}, a "
        + ("scale" if scaled else "map")
        + " of its input that its files do not hold; allowed: none, layer_norm, constant_norm_rescale. "
        + (
            "Fold it in with sae.fold_activation_norm_scaling_factor(sqrt(d_in) / mean norm) where you know the mean "
            "norm it was trained with, and save it again."
            if scaled
            else "Fold it into the weights where it was trained, and save it again."
        )
    )


def check_model(config: Mapping[str, Any], model: str, which: str, rms_norm: bool = False) -> list[str]:
    """Refuse an SAE of another model, and say what its name does not settle.

    Parameters
    ----------
    model
        The study's model: a hub name, a folder (whose name does not tell what is in it), or the embedded one.
    rms_norm
        Whether the model divides by a root mean square instead of a standard deviation.

    Raises
    ------
    SaeError
        If both names are known and differ, other weights of the model were used, or its writing weights were
        centred and the model's norms see the mean.
    """
    remarks, named, is_folder = [], told(config, "model_name"), user_path(model).is_dir()
    if reads_centred(config) and rms_norm:
        raise SaeError(
            f"{which} was trained with centred writing weights, which changes what a model with RMS norms computes, "
            f"as {model!r} has them. Choose an SAE of this model, or use --sae train."
        )
    if isinstance(named, str) and named and not same_model(named, model):
        if not is_folder and not _is_path(named):
            raise SaeError(
                f"{which} was trained on model {named!r} but the study reads {model!r}. Choose --model or --sae to "
                "match; to try it on another model all the same, give that as a folder."
            )
        remarks.append(f"{which} was trained on model {named!r}; whether {model!r} is that, its name does not tell.")
    options = told(config, "model_from_pretrained_kwargs")
    for name, value in options.items() if isinstance(options, Mapping) else ():
        if name in _OTHER_WEIGHTS and value not in (None, "main"):
            if not is_folder:
                raise SaeError(
                    f"{which} was trained on {name} {value!r} of its model; {model!r} is its last one. Download that "
                    "one and give its folder with --model."
                )
            remarks.append(f"{which} was trained on {name} {value!r} of its model.")
        elif name not in _HARMLESS | _OTHER_WEIGHTS | {"center_writing_weights"}:
            remarks.append(f"{which} was trained with its model's option {name}: {one_line(value, 60)}.")
    return remarks


def same_model(one: str, other: str) -> bool:
    """Whether two names may mean one model: without owner and case, or as transformer_lens lists them together."""
    if _letters(one) == _letters(other):
        return True
    return not {_letters(name) for name in _aliases(one)}.isdisjoint(_letters(name) for name in _aliases(other))


def _letters(name: str) -> str:
    """The last part of a name, its letters and digits alone."""
    title = EMBEDDED[name].title if name in EMBEDDED else name
    short = title.rstrip("/").rsplit("/", 1)[-1].lower()
    return re.sub("[^a-z0-9]", "", _SAME_MODEL.get(short, short))


def _aliases(name: str) -> set[str]:
    return next((known for _, known in _official_names() if name.lower() in known), {name})


def hub_name(name: str) -> str:
    """The name on the hub of a model that transformer_lens calls otherwise, such as ``gpt2`` for ``gpt2-small``."""
    return next((official for official, known in _official_names() if name.lower() in known), name)


def _official_names() -> Iterator[tuple[str, set[str]]]:
    from transformer_lens.supported_models import MODEL_ALIASES

    for official, others in MODEL_ALIASES.items():
        short = official.rsplit("/", 1)[-1]
        yield official, {official.lower(), short.lower(), *(other.lower() for other in others)}


def _is_path(name: str) -> bool:
    return name.startswith(("/", ".", "~", "\\")) or name.count("/") > 1


def remarks_on(config: Mapping[str, Any], which: str, context: int | None = None, stored: str = "") -> list[str]:
    """What a reader should know of an SAE that is used all the same.

    Parameters
    ----------
    context
        Length in tokens of the texts that it meets here.
    stored
        Number format of its weights in the file.
    """
    found, length, slice_ = [], told(config, "context_size"), told(config, "seqpos_slice")
    if isinstance(length, int) and context is not None and length < context:
        found.append(f"{which} was trained on texts of {length} tokens; here they have up to {context}.")
    if isinstance(slice_, list | tuple) and any(part is not None for part in slice_):
        found.append(f"{which} was trained on positions {':'.join(map(str, slice_))} of its texts only.")
    if reads_centred(config):
        found.append(
            f"{which} was trained with centred writing weights: each vector's mean over its coordinates is taken off "
            "before encoding and put back after decoding, which is the same for its model."
        )
    if stored and stored not in ("float32", "torch.float32"):
        found.append(f"{which} is stored in {stored.removeprefix('torch.')} and computed in float32.")
    return found
