"""What a configuration says of the vectors an autoencoder was trained on is met, refused or told."""

from __future__ import annotations

import json
from pathlib import Path

import hub_layout
import pytest
import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from saema_utils.checks import check_study, describe_sae, try_sae, try_study
from saema_utils.errors import SaeError
from saema_utils.model.loading import load_language_model
from saema_utils.model.residual_stream import capture_residual_stream
from saema_utils.runs.directory import RunDirectory
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.fidelity import explained_variance
from saema_utils.saes.loading import check_reads, load_sae, residual_layer
from saema_utils.saes.meaning import check_model, same_model
from saema_utils.saes.training import train_sae
from saema_utils.study import STUDIES, SaeRecipe

D, LAYER = 32, 1
HOOK = f"blocks.{LAYER}.hook_resid_post"
CENTRED = {"center_writing_weights": True}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: hub_layout.write_model(folder / kind, kind) for kind in ("llama", "gpt2-small")}


@pytest.fixture(scope="module")
def models(checkpoints):
    return {kind: load_language_model(str(folder), "cpu") for kind, folder in checkpoints.items()}


def kept(folder: Path, metadata: dict | None = None, **config) -> Path:
    """A sound SAE in sae_lens's format, with these entries in its configuration."""
    hub_layout.sound_sae(D).save_model(folder)
    given = json.loads((folder / "cfg.json").read_text())
    given |= config
    given["metadata"] |= metadata or {}
    (folder / "cfg.json").write_text(json.dumps(given))
    return folder


def study_of(checkpoint: Path, sae: Path, layer: int = LAYER):
    return STUDIES["smoke"].changed(model=str(checkpoint), layer=layer, **{"sae.source": str(sae)})


# ---- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "config", "said"),
    [
        ({"hook_name": HOOK, "hook_name_out": "blocks.1.hook_mlp_out"}, {}, "is a transcoder: it reads blocks.1"),
        ({}, {"architecture": "transcoder", "d_out": D}, "is a transcoder"),
        ({}, {"architecture": "temporal"}, "reads whole texts"),
        ({"hook_head_index": 3}, {}, "reads attention head 3"),
        ({}, {"reshape_activations": "hook_z"}, r"reads attention heads \(hook_z\)"),
        ({}, {"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling_factor"),
        ({}, {"normalize_activations": "covariance_whitening"}, "a map of its input that its files do not hold"),
        ({}, {"normalize_activations": "batch_norm"}, "normalize_activations: 'batch_norm'"),
        ({}, {"activation_fn_str": "tanh-relu"}, "activation function 'tanh-relu'; allowed: relu, topk, jumprelu"),
    ],
)
def test_what_would_mean_something_else_is_refused_before_and_when_it_is_loaded(
    metadata, config, said, tmp_path, checkpoints
):
    folder = kept(tmp_path / "sae", metadata, **config)
    for refused in (lambda: load_sae(folder), lambda: check_study(study_of(checkpoints["llama"], folder))):
        with pytest.raises(SaeError, match=said) as refusal:
            refused()
        assert "\n" not in str(refusal.value)


def test_an_old_true_is_a_scale_that_is_not_in_the_weights(tmp_path):
    folder = kept(tmp_path / "sae")
    old = json.loads((folder / "cfg.json").read_text())
    metadata = old.pop("metadata")
    assert metadata["sae_lens_version"]
    (folder / "cfg.json").write_text(json.dumps(old | {"normalize_activations": True, "activation_fn_str": "relu"}))
    with pytest.raises(SaeError, match="normalize_activations: True, a scale of its input"):
        load_sae(folder)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_normalisations_of_single_tokens_are_met(normalisation, tmp_path):
    folder = kept(tmp_path / "sae", normalize_activations=normalisation)
    x = torch.randn(9, D) * 4 + 2
    with torch.no_grad():
        theirs = SAE.load_from_disk(folder)(x)
    torch.testing.assert_close(SaeCoder(load_sae(folder)).reconstruct(x), theirs)


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("rescales", [True, False])
def test_the_bias_and_unfolded_norms_are_met(subtracts, rescales, tmp_path):
    """rescale_acts_by_decoder_norm: the norms of the decoder's rows are part of what is compared and handed out."""
    options = {"apply_b_dec_to_input": subtracts, "rescale_acts_by_decoder_norm": rescales}
    sae, random = TopKSAE(TopKSAEConfig(d_in=6, d_sae=20, k=3, **options)), torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random)
    sae.save_model(tmp_path)
    x = torch.randn(8, 6, generator=random)
    norms = sae.W_dec.data.norm(dim=-1) if rescales else torch.ones(20)
    pre = ((x - sae.b_dec.data if subtracts else x) @ sae.W_enc.data + sae.b_enc.data) * norms
    top = pre.topk(3, dim=-1)
    z = torch.zeros(8, 20).scatter(-1, top.indices, top.values.relu())
    coder = SaeCoder(load_sae(tmp_path))
    torch.testing.assert_close(coder.encode(x), z)
    torch.testing.assert_close(coder.decode(z), (z / norms) @ sae.W_dec.data + sae.b_dec.data)


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.4.hook_resid_pre", 3),
        ("blocks.3.hook_resid_post", 3),
        ("model.layers.3", 3),
        ("model.layers.3.output", 3),
        ("transformer.h.3", 3),
        ("gpt_neox.layers.3", 3),
        ("blocks.3.hook_mlp_out", None),
        ("model.layers.3.mlp", None),
        ("hook_embed", None),
    ],
)
def test_hooks_are_known_by_what_they_read(hook, layer):
    assert residual_layer(hook) == layer
    if layer is None:
        with pytest.raises(SaeError, match="but the study reads"):
            check_reads(D, hook, D, "blocks.3.hook_resid_post")
    else:
        check_reads(D, hook, D, f"blocks.{layer}.hook_resid_post")


# ---- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gpt2-small", "gpt2", True),
        ("gpt2-small", "openai-community/gpt2", True),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped", True),
        ("gemma-2-2b", "google/gemma-2-2b", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "embedded:smollm2-135m", True),
        ("gemma-2-2b", "google/gemma-2-2b-it", False),
        ("gpt2-medium", "gpt2", False),
        ("pythia-70m", "EleutherAI/pythia-70m-deduped", False),
    ],
)
def test_models_are_the_same_under_the_names_that_libraries_give_them(one, other, same):
    assert same_model(one, other) is same
    assert same_model(other, one) is same


def test_another_model_by_name_is_refused_and_a_folder_is_left_to_the_trial(checkpoints):
    config = {"metadata": {"model_name": "gpt2-medium"}}
    with pytest.raises(SaeError, match="trained on model 'gpt2-medium' but the study reads 'gpt2'"):
        check_model(config, "gpt2", "SAE 'x'")
    (remark,) = check_model(config, str(checkpoints["gpt2-small"]), "SAE 'x'")
    assert "its name does not tell" in remark


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fold_ln": True, "center_unembed": True, "center_writing_weights": False}, None),
        ({"revision": "main"}, None),
        ({"revision": "step1000"}, "revision 'step1000'"),
        ({"checkpoint_index": 4}, "checkpoint_index 4"),
        ({"rotary_base": 5}, "rotary_base: 5"),
    ],
)
def test_options_of_the_model_are_harmless_or_told_or_refused(options, said, checkpoints):
    config = {"metadata": {"model_from_pretrained_kwargs": options}}
    remarks = check_model(config, str(checkpoints["llama"]), "SAE 'x'")
    assert [said in remark for remark in remarks] == ([True] if said else [])
    if said and "rotary" not in said:
        with pytest.raises(SaeError, match="give its folder with --model"):
            check_model(config, "gpt2", "SAE 'x'")


# ---- centred writing weights -------------------------------------------------------------------


def centre_writers(folder: Path, to: Path) -> Path:
    """The checkpoint with everything that writes into the stream centred, as transformer_lens's option does it."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder)
    head = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(head)
        writers = [model.transformer.wte.weight, model.transformer.wpe.weight]
        for block in model.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                writers += [part.weight, part.bias]
        for parameter in writers:
            parameter -= parameter.mean(dim=-1, keepdim=True)
    model.config.tie_word_embeddings = False
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


@pytest.fixture(scope="module")
def streams(checkpoints, tmp_path_factory):
    """A GPT-2 whose tokens differ in the mean over their coordinates; its stream, and that with centred writers."""
    from transformers import AutoTokenizer, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("centred")
    model = GPT2LMHeadModel.from_pretrained(checkpoints["gpt2-small"])
    with torch.no_grad():
        model.transformer.wpe.weight += 20 * torch.randn(128, 1, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder / "plain")
    AutoTokenizer.from_pretrained(checkpoints["gpt2-small"]).save_pretrained(folder / "plain")
    centre_writers(folder / "plain", folder / "centred")
    tokens = torch.randint(1, 300, (60, 40), generator=torch.Generator().manual_seed(0))
    found = {
        kind: capture_residual_stream(load_language_model(str(folder / kind), "cpu"), tokens, HOOK)[:, 1:].flatten(0, 1)
        for kind in ("plain", "centred")
    }
    return found | {"folder": folder / "plain"}


@pytest.fixture(scope="module")
def sae_of_centred(streams, tmp_path_factory) -> Path:
    x = streams["centred"]
    metadata = {"hook_name": HOOK, "model_from_pretrained_kwargs": CENTRED, "model_class_name": "HookedTransformer"}
    recipe = SaeRecipe(d_sae=128, k=16, epochs=20, batch=128, learning_rate=5e-3)
    folder = tmp_path_factory.mktemp("sae-of-centred")
    train_sae(x[:2000], x[2000:], recipe, metadata=metadata).sae.save_model(folder)
    return folder


def test_centring_the_writers_takes_the_mean_off_the_stream(streams):
    plain = streams["plain"]
    assert plain.mean(dim=-1).std() > 1
    torch.testing.assert_close(
        streams["centred"], plain - plain.mean(dim=-1, keepdim=True), rtol=1e-3, atol=1e-3 * float(plain.abs().max())
    )


def test_an_sae_of_a_centred_stream_explains_ours_as_well(streams, sae_of_centred, tmp_path):
    plain, centred = streams["plain"][2000:], streams["centred"][2000:]
    said = []
    coder = SaeCoder(load_sae(sae_of_centred, say=said.append))
    ignored = SAE.load_from_disk(sae_of_centred)
    with torch.no_grad():
        theirs = explained_variance(centred, ignored(centred))
        naive = explained_variance(plain, ignored(plain))
    ours = explained_variance(plain, coder.reconstruct(plain))
    assert theirs > 0.5
    assert ours > theirs > naive + 0.2
    assert sum("centred writing weights" in line for line in said) == 1, "told once, and not in sae_lens's words too"

    latents = coder.encode(plain)
    with torch.no_grad():
        torch.testing.assert_close(latents, ignored.encode(plain - plain.mean(dim=-1, keepdim=True)))
    once, twice = coder.decode(latents), coder.decode(latents)
    assert torch.equal(once, twice)
    coder.encode(centred)
    torch.testing.assert_close(coder.decode(latents, like=plain), once)
    assert not coder.is_affine

    load_sae(sae_of_centred).save_model(tmp_path / "kept")
    torch.testing.assert_close(SaeCoder(load_sae(tmp_path / "kept")).reconstruct(plain), once)


def test_a_model_with_rms_norms_cannot_have_been_centred(checkpoints, models, tmp_path):
    folder = kept(tmp_path / "sae", {"hook_name": HOOK, "model_from_pretrained_kwargs": CENTRED})
    sae = load_sae(folder)
    with pytest.raises(SaeError, match="centred writing weights, which changes what a model with RMS norms computes"):
        try_sae(models["llama"], sae, str(folder), str(checkpoints["llama"]), HOOK)
    assert try_sae(models["gpt2-small"], sae, str(folder), str(checkpoints["gpt2-small"]), HOOK).explained_variance > 0


# ---- remarks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"context_size": 64}, ["trained on texts of 64 tokens; here they have up to 128"]),
        ({"context_size": 256}, []),
        ({"seqpos_slice": [5, -5]}, ["trained on positions 5:-5"]),
        ({"seqpos_slice": [None]}, []),
    ],
)
def test_what_changes_little_is_told(metadata, said, tmp_path):
    lines: list[str] = []
    load_sae(kept(tmp_path / "sae", metadata), context=128, say=lines.append)
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


def test_warnings_of_sae_lens_are_told_and_not_shown(tmp_path, recwarn, monkeypatch):
    """A warning that is raised while an SAE is built; sae_lens's own depend on its release."""
    import warnings

    original = StandardSAE.__init__

    def warned(self, *args, **kwargs):
        warnings.warn("\nsomething about\nthis SAE", UserWarning, stacklevel=1)
        original(self, *args, **kwargs)

    StandardSAE(StandardSAEConfig(d_in=4, d_sae=8)).save_model(tmp_path)
    monkeypatch.setattr(StandardSAE, "__init__", warned)
    lines: list[str] = []
    load_sae(tmp_path, say=lines.append)
    assert lines == [f"SAE {str(tmp_path)!r}: something about this SAE"]
    assert not recwarn.list


# ---- the trial ---------------------------------------------------------------------------------


def test_a_sound_sae_is_let_in_with_its_number(checkpoints, tmp_path):
    study = study_of(checkpoints["llama"], kept(tmp_path / "sae", {"hook_name": HOOK}))
    check_study(study)
    trial = try_study(study, tmp_path / "run", "cpu")
    assert 0.3 < trial.explained_variance <= 1
    assert trial.n_tokens > 100
    assert not (tmp_path / "run").exists()


def test_an_untrained_sae_is_refused_with_numbers(checkpoints, tmp_path):
    sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=64, k=8))
    sae.W_dec.data = torch.randn(64, D, generator=torch.Generator().manual_seed(0))
    sae.W_enc.data = torch.randn(D, 64, generator=torch.Generator().manual_seed(1))
    sae.save_model(tmp_path / "sae")
    study = study_of(checkpoints["llama"], tmp_path / "sae")
    check_study(study)
    with pytest.raises(
        SaeError, match=r"explains -\d+ % of the variance of \d+ tokens.*Likely: its weights"
    ) as refusal:
        try_study(study, tmp_path / "run", "cpu")
    assert "\n" not in str(refusal.value)


def quiet_model(folder: Path, to: Path) -> Path:
    """The toy Llama with a stream a thousand times smaller."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("embed_tokens", "o_proj", "down_proj")):
                parameter /= 1000
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def test_a_missing_scale_is_named_as_the_reason(checkpoints, tmp_path):
    model = quiet_model(checkpoints["llama"], tmp_path / "quiet")
    sae = hub_layout.sound_sae(D, threshold=0.3)  # of coordinates whose mean square is one
    sae.save_model(tmp_path / "sae")
    with pytest.raises(SaeError, match=r"scaled to a mean norm of sqrt\(d_in\) \(times .* it explains \d\d %\)"):
        try_study(study_of(model, tmp_path / "sae"), tmp_path / "run", "cpu")


def test_a_run_that_has_its_sae_is_not_tried_again(tmp_path):
    study = STUDIES["smoke"].changed(model="nowhere/at-all", **{"sae.source": "no-such-release:x"})
    RunDirectory(tmp_path, study).save_file("sae/cfg.json", lambda path: path.write_text("{}"))
    assert try_study(study, tmp_path) is None


# ---- saema sae ---------------------------------------------------------------------------------


def test_an_sae_is_described_with_its_reconstruction(checkpoints, tmp_path):
    folder = kept(tmp_path / "sae", {"hook_name": HOOK, "model_name": str(checkpoints["llama"]), "context_size": 64})
    lines = list(describe_sae(str(folder), device="cpu"))
    assert lines[0] == "kept as: sae_lens (sae_weights.safetensors, cfg.json)"
    assert f"place: {HOOK}" in lines
    assert f"model: {checkpoints['llama']}" in lines
    assert f"width: reads {D} dimensions, {2 * D} latents" in lines
    assert "numbers: stored in float32, computed in float32" in lines
    assert lines[-1].startswith("here: explains ")
    assert "after block 1" in lines[-1]


def test_without_a_model_an_sae_is_described_all_the_same(checkpoints, tmp_path):
    folder = kept(tmp_path / "sae", {"model_name": "somebody/some-model"})
    *_, last = describe_sae(str(folder), device="cpu")
    assert last == "here: not tried; give --model and --layer to see how well it reconstructs"
    *_, last = describe_sae(str(folder), model=str(checkpoints["gpt2-small"]), layer=2, device="cpu")
    assert "after block 2" in last
