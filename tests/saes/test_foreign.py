"""Autoencoders of other libraries: their own files, read back to their own formulas.

Files are laid out as each library's source writes them (named beside each writer), and what is read is compared with
that library's formula, written out in plain torch.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saema_utils.errors import SaeError
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.foreign import layout_of, sae_files
from saema_utils.saes.loading import load_sae, read_sae_config
from saema_utils.saes.meaning import hook_of, told

D, F, K, LAYER = 12, 40, 5, 3
HOOK = f"blocks.{LAYER}.hook_resid_post"


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = numbers(30, D, seed=9)
# Rows of other lengths than one, so that a decoder that is turned over or normalised shows.
W_ENC, W_DEC = numbers(F, D, seed=1), numbers(F, D, seed=2)
B_ENC, B_DEC = numbers(F, seed=3) / 3, numbers(D, seed=4) / 3


def largest(pre: torch.Tensor, k: int) -> torch.Tensor:
    kept = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)


# ---- writers -----------------------------------------------------------------------------------


def dictionary_learning(folder: Path, dict_class: str, state: dict, buffer: dict | None = None, **trainer) -> Path:
    """``trainSAE`` of dictionary_learning/training.py: ``trainer.config`` (trainers/top_k.py, batch_top_k.py) beside
    ``t.save(ae.state_dict(), "ae.pt")``; ``buffer`` only where the data had a configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "trainer": {
            "trainer_class": "Trainer",
            "dict_class": dict_class,
            "lr": 1e-4,
            "seed": 0,
            "activation_dim": D,
            "dict_size": F,
            "device": "cuda:0",
            "layer": LAYER,
            "lm_name": "EleutherAI/pythia-70m-deduped",
            "wandb_name": dict_class,
            "submodule_name": f"resid_post_layer_{LAYER}",
            **trainer,
        }
    }
    if buffer is not None:
        config["buffer"] = {"d_submodule": D, "io": "out", "n_ctxs": 2048, "ctx_len": 128, **buffer}
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save(OrderedDict(state), folder / "ae.pt")
    return folder


def linear(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """``nn.Linear`` keeps [out, in]."""
    return {"encoder.weight": W_ENC, "encoder.bias": B_ENC, "decoder.weight": W_DEC.T.contiguous(), **more}


def auto_encoder(folder: Path):
    """dictionary.py, AutoEncoder: ``relu(encoder(x - bias))``, ``decoder(f) + bias``."""
    z = torch.relu((X - B_DEC) @ W_ENC.T + B_ENC)
    return dictionary_learning(folder, "AutoEncoder", linear(bias=B_DEC)), z, z @ W_DEC + B_DEC


def auto_encoder_new(folder: Path):
    """dictionary.py, AutoEncoderNew: the bias is the decoder's and not taken off the input."""
    z = torch.relu(X @ W_ENC.T + B_ENC)
    made = dictionary_learning(folder, "AutoEncoderNew", linear(**{"decoder.bias": B_DEC}))
    return made, z, z @ W_DEC + B_DEC


def gated(folder: Path):
    """dictionary.py, GatedAutoEncoder: latents times the norms of the decoder's columns, divided by them to decode."""
    gate, magnitude, r = numbers(F, seed=5), numbers(F, seed=6), numbers(F, seed=7) / 2
    state = {
        "decoder_bias": B_DEC,
        "r_mag": r,
        "gate_bias": gate,
        "mag_bias": magnitude,
        "encoder.weight": W_ENC,
        "decoder.weight": W_DEC.T.contiguous(),
    }
    pre = (X - B_DEC) @ W_ENC.T
    f = (pre + gate > 0) * torch.relu(r.exp() * pre + magnitude)
    return (
        dictionary_learning(folder, "GatedAutoEncoder", state, buffer={}),
        f * W_DEC.norm(dim=-1),
        f @ W_DEC + B_DEC,
    )


def top_k(folder: Path):
    """trainers/top_k.py, AutoEncoderTopK: k and a threshold are buffers, and encode uses k."""
    state = linear(b_dec=B_DEC, k=torch.tensor(K, dtype=torch.int), threshold=torch.tensor(7.0))
    z = largest(torch.relu((X - B_DEC) @ W_ENC.T + B_ENC), K)
    return dictionary_learning(folder, "AutoEncoderTopK", state, buffer={}, k=K), z, z @ W_DEC + B_DEC


def batch_top_k(folder: Path):
    """dictionary.py, BatchTopKSAE: ``encode(x, use_threshold=True)`` keeps what exceeds one threshold."""
    state = linear(b_dec=B_DEC, k=torch.tensor(K, dtype=torch.int), threshold=torch.tensor(0.8))
    pre = torch.relu((X - B_DEC) @ W_ENC.T + B_ENC)
    z = pre * (pre > 0.8)
    return dictionary_learning(folder, "BatchTopKSAE", state, buffer={}, k=K), z, z @ W_DEC + B_DEC


def matryoshka(folder: Path):
    """trainers/matryoshka_batch_top_k.py, MatryoshkaBatchTopKSAE: parameters instead of linear layers."""
    state = {
        "W_enc": W_ENC.T.contiguous(),
        "b_enc": B_ENC,
        "W_dec": W_DEC,
        "b_dec": B_DEC,
        "k": torch.tensor(K, dtype=torch.int),
        "threshold": torch.tensor(0.8),
        "group_sizes": torch.tensor([F // 4, F - F // 4]),
    }
    pre = torch.relu((X - B_DEC) @ W_ENC.T + B_ENC)
    z = pre * (pre > 0.8)
    return dictionary_learning(folder, "MatryoshkaBatchTopKSAE", state, k=K), z, z @ W_DEC + B_DEC


def jump_relu(folder: Path):
    """dictionary.py, JumpReluAutoEncoder: a threshold each, nothing off the input, latents times decoder norms."""
    threshold = numbers(F, seed=8).abs()
    state = {"W_enc": W_ENC.T.contiguous(), "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "threshold": threshold}
    pre = X @ W_ENC.T + B_ENC
    f = torch.relu(pre * (pre > threshold))
    return dictionary_learning(folder, "JumpReluAutoEncoder", state), f * W_DEC.norm(dim=-1), f @ W_DEC + B_DEC


def sparsify(folder: Path, name: str = f"layers.{LAYER}", dtype=torch.float32, **config):
    """sparsify/sparse_coder.py, ``save_to_disk``: the choices (config.py, SparseCoderConfig) with d_in, and the state
    of ``encoder``, ``W_dec`` [latents, d_in] and ``b_dec``. Its encode takes ``b_dec`` off the input of every
    autoencoder, normalised decoder or not; ``fused_encoder.py`` keeps the k largest after a relu."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    given = {
        "activation": "topk",
        "expansion_factor": 32,
        "normalize_decoder": True,
        "num_latents": F,
        "k": K,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": D,
        **config,
    }
    (place / "cfg.json").write_text(json.dumps(given))
    (folder / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m-deduped", "ctx_len": 2048}))
    state = {"encoder.weight": W_ENC, "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    save_file({key: value.to(dtype).contiguous() for key, value in state.items()}, place / "sae.safetensors")
    z = largest(torch.relu((X - B_DEC) @ W_ENC.T + B_ENC), K)
    return place, z, z @ W_DEC + B_DEC


def gemma_scope(folder: Path, release: str = "gemma-scope-2b-pt-res", **arrays):
    """``google/gemma-scope-2b-pt-res``: arrays of these names in ``params.npz``, as its tutorial's JumpReLUSAE and
    sae_lens's ``gemma_2_sae_huggingface_loader`` read them; nothing is taken off the input."""
    place = folder / release / f"layer_{LAYER}" / "width_16k" / "average_l0_71"
    place.mkdir(parents=True, exist_ok=True)
    threshold = numbers(F, seed=8).abs()
    kept = {"W_enc": W_ENC.T, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "threshold": threshold}
    np.savez(place / "params.npz", **{name: np.asarray(value) for name, value in {**kept, **arrays}.items()})
    pre = X @ W_ENC.T + B_ENC
    z = (pre > threshold) * torch.relu(pre)
    return place, z, z @ W_DEC + B_DEC


def sae_lens_of_old(folder: Path, dtype: str = "torch.float32", **config):
    """sae_lens (then sae_training) before its version 6: a flat cfg.json, ``hook_point``, ``sparsity.safetensors``."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "model_name": "pythia-70m-deduped",
        "hook_point": "blocks.{layer}.hook_resid_post",
        "hook_point_layer": LAYER,
        "hook_point_head_index": None,
        "dataset_path": "NeelNanda/pile-tokenized-2b",
        "context_size": 128,
        "expansion_factor": 4,
        "l1_coefficient": 8e-5,
        "dtype": dtype,
        "device": "cuda",
        "seed": 42,
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(given))
    state = {"W_enc": W_ENC.T, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "scaling_factor": torch.ones(F)}
    number = getattr(torch, dtype.removeprefix("torch."))
    save_file({n: v.to(number).contiguous() for n, v in state.items()}, folder / "sae_weights.safetensors")
    save_file({"sparsity": torch.full((F,), -2.0)}, folder / "sparsity.safetensors")
    z = torch.relu((X - B_DEC) @ W_ENC.T + B_ENC)
    return folder, z, z @ W_DEC + B_DEC


WRITERS = (
    auto_encoder,
    auto_encoder_new,
    gated,
    top_k,
    batch_top_k,
    matryoshka,
    jump_relu,
    sparsify,
    gemma_scope,
    sae_lens_of_old,
)


# ---- what is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_each_library_is_read_to_its_own_formula(write, tmp_path):
    folder, z, x_hat = write(tmp_path / "sae")
    sae = load_sae(folder, d_in=D, hook_name=HOOK)
    coder = SaeCoder(sae)
    torch.testing.assert_close(coder.encode(X), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(coder.decode(coder.encode(X)), x_hat, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coder.reconstruct(X), x_hat, rtol=1e-4, atol=1e-4)
    assert sae.dtype == torch.float32


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_what_was_read_survives_the_run_folder(write, tmp_path):
    folder, z, x_hat = write(tmp_path / "sae")
    load_sae(folder).save_model(tmp_path / "kept")
    again = load_sae(tmp_path / "kept", d_in=D, hook_name=HOOK)
    torch.testing.assert_close(again.encode(X), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again(X), x_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_where_it_belongs_is_known_before_its_weights_are_read(write, tmp_path):
    folder, *_ = write(tmp_path / "sae")
    config = read_sae_config(folder)
    assert hook_of(config) == HOOK
    assert told(config, "model_name") in ("EleutherAI/pythia-70m-deduped", "pythia-70m-deduped", "google/gemma-2-2b")
    assert [path.name for path in sae_files(folder)] == list(layout_of(folder).files)
    with pytest.raises(SaeError, match=r"blocks\.3\.hook_resid_post but the study reads blocks\.2"):
        load_sae(folder, hook_name="blocks.2.hook_resid_post")
    with pytest.raises(SaeError, match="reads 12 dimensions but the residual stream has 13"):
        load_sae(folder, d_in=13)


def test_gemma_scope_and_dictionary_learning_agree_with_sae_lens(tmp_path, monkeypatch):
    """Its converters read from the hub's cache alone, so the files are put there."""
    import hub_layout
    import huggingface_hub.constants as hub
    from sae_lens.loading import pretrained_sae_loaders as theirs

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    root = hub_layout.snapshot(tmp_path, "google/gemma-scope-2b-pt-res")
    place, *_ = gemma_scope(root, release=".")
    name = place.relative_to(root).as_posix()
    config, state, _ = theirs.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", name)
    ours = load_sae(place)
    assert (hook_of(config), config["model_name"]) == (hook_of(ours.cfg.to_dict()), "gemma-2-2b")
    assert told(ours.cfg.to_dict(), "model_name") == "google/gemma-2-2b"
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in state.items())

    root = hub_layout.snapshot(tmp_path, "someone/saes")
    for write in (top_k, batch_top_k):
        write(root / write.__name__)
        config, state, _ = theirs.dictionary_learning_sae_huggingface_loader_1("someone/saes", write.__name__)
        ours = load_sae(root / write.__name__)
        assert config["hook_name"] == hook_of(ours.cfg.to_dict())
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_precision_are_computed_in_float32(dtype, tmp_path):
    folder, z, _ = sparsify(tmp_path, dtype=dtype)
    said = []
    sae = load_sae(folder, say=said.append)
    assert {parameter.dtype for parameter in sae.parameters()} == {torch.float32}
    assert any(f"stored in {str(dtype).removeprefix('torch.')} and computed in float32" in line for line in said)
    assert sae.encode(X).shape == z.shape
    old, *_ = sae_lens_of_old(tmp_path / "old", dtype=str(dtype))
    assert SaeCoder(load_sae(old)).reconstruct(X).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "hook"), [("h.7", "blocks.7.hook_resid_post"), ("layers.4.mlp", "layers.4.mlp"), ("mine", None)]
)
def test_a_sparsify_folder_tells_its_module_by_its_name(name, hook, tmp_path):
    assert hook_of(read_sae_config(sparsify(tmp_path, name)[0])) == hook


@pytest.mark.parametrize(
    ("trainer", "buffer", "hook"),
    [
        ({}, {"io": "in"}, "blocks.3.hook_resid_pre"),
        ({"submodule_name": None}, {}, HOOK),
        ({"submodule_name": "mlp_layer_3"}, {}, "mlp_layer_3"),
        ({"submodule_name": None}, {"io": "in_and_out"}, "layer 3, in_and_out"),
    ],
)
def test_a_dictionary_of_another_place_is_named_by_that_place(trainer, buffer, hook, tmp_path):
    folder = dictionary_learning(tmp_path, "AutoEncoder", linear(bias=B_DEC), buffer, **trainer)
    assert hook_of(read_sae_config(folder)) == hook
    if hook != HOOK:
        with pytest.raises(SaeError, match="but the study reads"):
            load_sae(folder, hook_name=HOOK)


# ---- what is refused ---------------------------------------------------------------------------


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return (Path.write_text, (Path("sprung"), "it ran"))


def pickled(folder: Path) -> None:
    top_k(folder)
    torch.save({"encoder.weight": Trap()}, folder / "ae.pt")


def pickled_arrays(folder: Path) -> None:
    place, *_ = gemma_scope(folder)
    np.savez(place / "params.npz", b_enc=np.array([Trap()], dtype=object), b_dec=np.zeros(3))


def plain_pickle_as_npz(folder: Path) -> None:
    place, *_ = gemma_scope(folder)
    (place / "params.npz").write_bytes(pickle.dumps(Trap()))


def without(name: str, write=top_k):
    def act(folder: Path) -> None:
        place, *_ = write(folder)
        (place / name).unlink()

    return act


def with_state(state: dict, dict_class: str = "AutoEncoderTopK", **trainer):
    return lambda folder: dictionary_learning(folder, dict_class, state, **({"k": K} | trainer))


def with_sparsify(**config):
    return lambda folder: sparsify(folder, **config)


BAD = {
    "an object beside tensors": (pickled, "never unpickled"),
    "arrays of objects": (pickled_arrays, "params.npz cannot be read as tensors"),
    "a pickle called npz": (plain_pickle_as_npz, "params.npz cannot be read as tensors"),
    "half a file": (
        lambda folder: (top_k(folder)[0] / "ae.pt").write_bytes((folder / "ae.pt").read_bytes()[:200]),
        "ae.pt cannot be read as tensors",
    ),
    "a bare tensor": (lambda folder: torch.save(W_ENC, top_k(folder)[0] / "ae.pt"), "holds a Tensor; allowed: a state"),
    "no config.json": (without("config.json"), "holds ae.pt of dictionary_learning but no config.json"),
    "no cfg.json of sparsify": (without("cfg.json", sparsify), "holds sae.safetensors of sparsify but no cfg.json"),
    "weights of another width": (
        with_state(linear(b_dec=torch.zeros(D + 1))),
        r"b_dec of the SAE in .* has shape \(13,\); allowed: \(12,\)",
    ),
    "a decoder turned over": (
        with_state({**linear(b_dec=B_DEC), "decoder.weight": W_DEC}),
        r"W_dec of the SAE in .* has shape \(12, 40\); allowed: \(40, 12\)",
    ),
    "another number of latents than it says": (
        with_state(linear(b_dec=B_DEC), dict_size=F + 2),
        r"W_enc of the SAE in .* has shape \(12, 40\); allowed: \(12, 42\)",
    ),
    "a tensor missing": (with_state({"encoder.weight": W_ENC}), r"no tensor 'decoder\.weight' \(it holds encoder"),
    "a threshold missing": (with_state(linear(b_dec=B_DEC), "BatchTopKSAE"), "no tensor 'threshold'"),
    "a class that has no formula here": (with_state({}, "CrossCoder"), "names the class 'CrossCoder'; allowed: Auto"),
    "a k that is none": (with_state(linear(b_dec=B_DEC), k="many"), "says k: 'many'; allowed: a whole number"),
    "a transcoder": (with_sparsify(transcode=True), "says transcode: true"),
    "a skip connection": (with_sparsify(skip_connection=True), "says skip_connection: true"),
    "group maxima": (with_sparsify(activation="groupmax"), "says activation 'groupmax'"),
    "no size": (with_sparsify(d_in=None), "says d_in: None"),
    "a scale on the latents": (
        lambda folder: save_file({"scaling_factor": W_ENC}, sae_lens_of_old(folder)[0] / "sae_weights.safetensors"),
        "scales its latents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_one_line(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, said = BAD[what]
    make(tmp_path / "sae")
    folder = next(path.parent for name in ("ae.pt", "sae.safetensors", "params.npz", "sae_weights.safetensors")
                  for path in (tmp_path / "sae").rglob(name))  # fmt: skip
    with pytest.raises(SaeError, match=said) as refusal:
        load_sae(folder)
    assert "\n" not in str(refusal.value)
    assert not Path("sprung").exists()


def test_the_folder_above_is_answered_with_the_one_inside(tmp_path):
    sparsify(tmp_path)
    with pytest.raises(SaeError, match=r"Did you mean 'layers\.3' or another folder inside it"):
        load_sae(tmp_path)
