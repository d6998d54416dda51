"""Training, loading and comparing sparse autoencoders and their controls."""

from __future__ import annotations

import math
import shutil

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

from saema_utils.chapters.across_models.tables import compare_runs
from saema_utils.chapters.sae.facts import sae_facts
from saema_utils.errors import ActivationError, ArtifactError, HubUnreachableError, SaeError
from saema_utils.publishing import fragments
from saema_utils.runs.directory import RunDirectory
from saema_utils.saes.coders import Coder, PcaCoder, RandomDictionary, SaeCoder
from saema_utils.saes.facts import SaeFacts, bos_note, read_facts
from saema_utils.saes.fidelity import (
    explained_variance,
    fidelity_under_choices,
    mean_cosine,
    measure_fidelity,
    recovered_features,
)
from saema_utils.saes.loading import SAE_FILES, check_reads, load_sae
from saema_utils.saes.training import train_sae
from saema_utils.study import ARCHITECTURES, STUDIES, SaeRecipe

RECIPE = SaeRecipe(d_sae=64, k=3, epochs=4, batch=128, learning_rate=5e-3)


def world(n=1500, n_features=24, d=16, seed=0, active=3):
    """Tokens that are short sums of known unit directions, and the directions."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.nn.functional.normalize(torch.randn(n_features, d, generator=random), dim=-1)
    present = torch.rand(n, n_features, generator=random) < active / n_features
    return (present * (1 + torch.rand(n, n_features, generator=random))) @ truth, truth


@pytest.fixture(scope="module")
def tokens():
    return world()[0]


@pytest.fixture(scope="module")
def trained(tokens):
    return train_sae(tokens[:1200], tokens[1200:], RECIPE, seed=0)


def small_sae(normalize="none", kind="topk", d_in=10, d_sae=40, seed=0):
    options = {"d_in": d_in, "d_sae": d_sae, "normalize_activations": normalize}
    sae = TopKSAE(TopKSAEConfig(k=5, **options)) if kind == "topk" else StandardSAE(StandardSAEConfig(**options))
    random = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) / 3
    return sae


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_family_learns_and_survives_the_disk(architecture, tokens, tmp_path):
    recipe = SaeRecipe(architecture=architecture, d_sae=64, k=3, epochs=4, batch=128, learning_rate=5e-3)
    result = train_sae(tokens[:1200], tokens[1200:], recipe, seed=1)
    assert result.history["explained_variance"].iloc[-1] > result.history["explained_variance"].iloc[0]
    result.sae.save_model(tmp_path)
    back = SAE.load_from_disk(tmp_path)
    x = tokens[1200:]
    assert torch.equal(back.encode(x), result.sae.encode(x))
    assert torch.equal(back(x), result.sae(x))
    assert torch.equal(load_sae(tmp_path)(x), result.sae(x))
    torch.testing.assert_close(back.W_dec.norm(dim=-1), torch.ones(64), rtol=1e-5, atol=1e-5)
    assert result.sae.cfg.normalize_activations == "none"


def test_topk_has_exactly_k_active_latents(trained, tokens):
    latents = trained.sae.encode(tokens[1200:])
    scores = (tokens[1200:] - trained.sae.b_dec) @ trained.sae.W_enc + trained.sae.b_enc
    positive = (scores > 0).sum(-1)
    assert torch.equal((latents != 0).sum(-1), positive.clamp_max(RECIPE.k))
    assert (positive >= RECIPE.k).float().mean() > 0.99


def test_it_finds_features_that_are_there():
    x, truth = world(n=8000)
    sae = train_sae(x[:7500], x[7500:], SaeRecipe(d_sae=64, k=4, epochs=10, batch=128, learning_rate=5e-3)).sae
    chance = recovered_features(truth, RandomDictionary(16, 64, 3).dictionary())
    found = recovered_features(truth, sae.W_dec)
    assert (found > 0.9).double().mean() > 0.8 > (chance > 0.9).double().mean()


def test_history_is_measured_in_the_units_of_the_data(trained, tokens):
    heldout = tokens[1200:]
    assert list(trained.history.columns) == [
        "step",
        "tokens",
        "learning_rate",
        "train_mse",
        "mse",
        "explained_variance",
        "l0",
        "dead",
    ]
    last = trained.history.iloc[-1]
    assert last["step"] == 4 * (1200 // 128)
    assert last["tokens"] == last["step"] * 128
    x_hat = trained.sae(heldout)
    assert last["mse"] == pytest.approx(float((x_hat - heldout).square().mean()), rel=1e-4)
    assert last["explained_variance"] == pytest.approx(explained_variance(heldout, x_hat), rel=1e-4)
    assert last["l0"] == pytest.approx(RECIPE.k, abs=0.05)


def test_training_follows_the_scale_of_the_data(trained, tokens):
    larger = train_sae(64 * tokens[:1200], 64 * tokens[1200:], RECIPE, seed=0)
    x = tokens[1200:]
    torch.testing.assert_close(larger.sae.encode(64 * x), 64 * trained.sae.encode(x), rtol=1e-3, atol=1e-2)


def test_seeds_decide_and_global_randomness_is_untouched(trained, tokens):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = train_sae(tokens[:1200], tokens[1200:], RECIPE, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    other = train_sae(tokens[:1200], tokens[1200:], RECIPE, seed=1)
    assert torch.equal(again.sae.W_dec, trained.sae.W_dec)
    assert not torch.allclose(other.sae.W_dec, trained.sae.W_dec, atol=1e-2)


def test_a_caller_that_needs_no_gradients_can_train(trained, tokens):
    with torch.no_grad():
        again = train_sae(tokens[:1200], tokens[1200:], RECIPE, seed=0)
    assert torch.equal(again.sae.W_dec, trained.sae.W_dec)


def test_a_larger_penalty_leaves_fewer_active_latents(tokens):
    for architecture in ("standard", "gated", "jumprelu"):
        recipe = SaeRecipe(architecture=architecture, d_sae=64, k=3, epochs=12, batch=64, learning_rate=5e-3)
        few, many = (
            train_sae(tokens[:1200], tokens[1200:], recipe, penalty=c).history["l0"].iloc[-1] for c in (5, 0.01)
        )
        assert few < many, architecture


def test_half_precision_input_and_fewer_tokens_than_a_batch(tokens):
    result = train_sae(tokens[:50].half(), tokens[50:60].half(), RECIPE)
    assert result.sae.W_dec.dtype == torch.float32
    assert len(result.history) == RECIPE.epochs


@pytest.mark.parametrize(
    ("train", "heldout", "said"),
    [
        (torch.zeros(0, 4), torch.zeros(3, 4), "training activations have shape (0, 4)"),
        (torch.zeros(9, 4), torch.zeros(3, 4), "are zero"),
        (torch.full((9, 4), math.nan), torch.ones(3, 4), "NaN or infinity"),
        (torch.ones(9, 4), torch.full((3, 4), math.inf), "NaN or infinity"),
        (torch.ones(9, 4), torch.ones(3, 5), "4 dimensions, held-out ones 5"),
    ],
)
def test_activations_that_cannot_be_learned_are_refused(train, heldout, said):
    with pytest.raises(ActivationError) as refusal:
        train_sae(train, heldout, RECIPE)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


# ---- loading -----------------------------------------------------------------------------------


def test_a_width_that_does_not_fit_names_both(tmp_path):
    small_sae(d_in=10).save_model(tmp_path)
    with pytest.raises(SaeError, match=r"reads 10 dimensions but the residual stream has 576"):
        load_sae(tmp_path, d_in=576)


def test_another_layer_is_refused_and_two_names_of_one_place_are_not():
    sae = small_sae()
    sae.cfg.metadata.hook_name = "blocks.12.hook_resid_pre"
    check_reads(10, sae.cfg.metadata.hook_name, 10, "blocks.11.hook_resid_post")
    with pytest.raises(SaeError, match=r"trained at blocks\.12\.hook_resid_pre but the study reads blocks\.12"):
        check_reads(10, sae.cfg.metadata.hook_name, 10, "blocks.12.hook_resid_post")
    sae.cfg.metadata.hook_name = "blocks.11.hook_mlp_out"
    with pytest.raises(SaeError, match="hook_mlp_out"):
        check_reads(10, sae.cfg.metadata.hook_name, 10, "blocks.11.hook_resid_post")


def test_what_is_not_there_is_refused_with_a_remedy(tmp_path):
    for source, said in (
        (tmp_path / "nothing", "no SAE at"),
        (tmp_path, "holds no sae_weights.safetensors and no cfg.json"),
        ("gpt2-small-resid-post-v5-23k:blocks.11.hook_resid_post", "Did you mean 'gpt2-small-resid-post-v5-32k'"),
        ("gpt2-small-resid-post-v5-32k:blocks.99.hook_resid_post", "blocks.9.hook_resid_post"),
    ):
        with pytest.raises(SaeError) as refusal:
            load_sae(source)
        assert said in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_damaged_or_pickled_sae_is_refused(tmp_path):
    small_sae().save_model(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"not weights")
    with pytest.raises(SaeError, match="cannot be read"):
        load_sae(tmp_path)
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "sae_weights.pt")
    with pytest.raises(SaeError, match=r"holds no sae_weights\.safetensors"):
        load_sae(tmp_path)


def test_an_unreachable_hub_says_how_to_run_offline(monkeypatch, tmp_path):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubUnreachableError, match="HF_HUB_OFFLINE=1, give a folder, or use --sae train"):
        load_sae("pythia-70m-deduped-res-sm:blocks.5.hook_resid_post")


# ---- the SAE as a coder ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["topk", "standard"])
@pytest.mark.parametrize("normalize", ["none", "expected_average_only_in", "layer_norm", "constant_norm_rescale"])
def test_an_identity_edit_changes_nothing(kind, normalize, monkeypatch):
    sae = small_sae(normalize, kind)
    x = torch.randn(4, 7, 10, generator=torch.Generator().manual_seed(5)) * 3 + 1
    with torch.no_grad():
        untouched = sae(x)
    coder = SaeCoder(sae)
    monkeypatch.setattr(coder, "_slice", lambda: 5)  # the state has to follow the slices
    latents = coder.encode(x)
    for _ in range(2):  # sae_lens's own state is used up by the first decode
        assert (coder.decode(latents + 0) - untouched).abs().max() < 1e-6 * untouched.abs().max()
    coder.encode(torch.randn(3, 10))
    assert (coder.decode(latents, like=x) - untouched).abs().max() < 1e-6 * untouched.abs().max()


def test_latents_of_other_vectors_are_not_decoded_with_the_wrong_state():
    coder = SaeCoder(small_sae("layer_norm"))
    latents = coder.encode(torch.randn(6, 10))
    coder.encode(torch.randn(3, 10))
    with pytest.raises(SaeError, match="Pass like=x"):
        coder.decode(latents)


def test_gradients_pass_through_and_weights_stay():
    coder = SaeCoder(small_sae())
    x = torch.randn(5, 10, requires_grad=True)
    coder.decode(coder.encode(x)).square().sum().backward()
    assert x.grad.count_nonzero() > 0
    assert all(parameter.grad is None for parameter in coder.sae.parameters())


def test_every_coder_keeps_shapes_and_refuses_other_widths():
    x = torch.randn(30, 10)
    coders = [SaeCoder(small_sae()), RandomDictionary(10, 40, 5), PcaCoder.fit(x, 4)]
    for coder in coders:
        assert isinstance(coder, Coder)
        z = coder.encode(x.reshape(5, 6, 10))
        assert z.shape == (5, 6, coder.n_latents)
        assert coder.decode(z).shape == (5, 6, 10)
        assert coder.dictionary().shape == (coder.n_latents, 10)
        assert coder.encode(x[:0]).shape == (0, coder.n_latents)
        with pytest.raises(SaeError, match="10 dimensions but the vectors have 11"):
            coder.encode(torch.randn(3, 11))
    assert [coder.name for coder in coders] == ["sae", "random_dictionary", "pca"]


# ---- controls ----------------------------------------------------------------------------------


def test_random_dictionary_is_unit_norm_seeded_and_uses_k():
    one, same, other = (RandomDictionary(10, 200, 6, seed) for seed in (0, 0, 1))
    x = torch.randn(50, 10)
    torch.testing.assert_close(one.dictionary().norm(dim=-1), torch.ones(200))
    assert torch.equal(one.encode(x), same.encode(x))
    assert not torch.equal(one.encode(x), other.encode(x))
    assert ((one.encode(x) > 0).sum(-1) == 6).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 30), scale=st.floats(0.01, 100))
def test_random_dictionary_has_the_least_squares_length(seed, k, scale):
    random = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(20, 8, generator=random), torch.randn(8, generator=random)
    coder = RandomDictionary(8, 60, k, seed, bias=bias)
    centred = x - bias
    reconstructed = coder.decode(coder.encode(x)) - bias
    error = centred - reconstructed
    assert ((error * reconstructed).sum(-1).abs() / centred.square().sum(-1)).max() < 1e-4
    for factor in (0.9, 1.1):
        assert (error.norm(dim=-1) <= (centred - factor * reconstructed).norm(dim=-1) + 1e-5).all()
    scaled = coder.encode(bias + scale * centred)
    torch.testing.assert_close(scaled, scale * coder.encode(x), rtol=1e-3, atol=1e-3 * scale)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(1, 9))
def test_pca_explains_the_sum_of_its_eigenvalues(seed, count):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 9, generator=random, dtype=torch.float64) @ torch.randn(9, 9, generator=random).double()
    coder = PcaCoder.fit(x, count)
    values = torch.linalg.eigvalsh(torch.cov(x.T)).flip(0)
    found = explained_variance(x, coder.decode(coder.encode(x)))
    assert found == pytest.approx(float(values[:count].sum() / values.sum()), abs=1e-9)
    torch.testing.assert_close(coder.components @ coder.components.T, torch.eye(count, dtype=torch.float64))


def test_pca_fitted_to_a_reconstruction_is_the_smallest_that_reaches_it():
    random = torch.Generator().manual_seed(2)
    mix = torch.randn(12, 12, generator=random)
    x, heldout = (torch.randn(n, 12, generator=random) @ mix for n in (300, 100))
    for target in (0.5, 0.2, 0.05):
        coder = PcaCoder.fit_to_fvu(x, target, heldout=heldout)
        fewer = PcaCoder.fit(x, coder.n_latents - 1) if coder.n_latents > 1 else None
        assert measure_fidelity(coder, heldout).fvu <= target + 1e-6
        assert fewer is None or measure_fidelity(fewer, heldout).fvu > target
    assert PcaCoder.fit_to_fvu(x, 0.0).n_latents == 12
    with pytest.raises(SaeError, match="n_components is 13; allowed: 1 to 12"):
        PcaCoder.fit(x, 13)


# ---- measures ----------------------------------------------------------------------------------


def under_choices(x, x_hat, groups):
    found = pd.DataFrame(fidelity_under_choices(x, x_hat, groups))
    return found.set_index(["measure", "weight", "scaling", "pooled"])["value"]


def noisy(seed=0, n=60, d=8):
    """Tokens of three groups with means of their own, a reconstruction that is too small, and the groups."""
    random = torch.Generator().manual_seed(seed)
    groups = torch.arange(n) % 3
    x = torch.randn(n, d, generator=random).double() + 3 * torch.randn(3, d, generator=random).double()[groups]
    return x, 0.8 * x + 0.3 * torch.randn(n, d, generator=random).double(), groups


def test_every_way_of_counting_tokens_is_the_formula_of_its_page():
    x, x_hat, groups = noisy()
    found = under_choices(x, x_hat, groups)
    assert found.index.is_unique
    assert len(found) == 12
    for pooled, parts in {"all tokens": [slice(None)], "by group": [groups == g for g in range(3)]}.items():
        plain, relative, joint, turned, weighted = [], [], [], [], []
        for part in parts:
            a, b = x[part] - x[part].mean(0), x_hat[part] - x[part].mean(0)
            plain.append(explained_variance(x[part], x_hat[part]))
            relative.append(1 - float(((a - b).square().sum(1) / a.square().sum(1)).mean()))
            scale = float((a * b).sum() / b.square().sum())
            joint.append(explained_variance(a, scale * b))
            turned.append(mean_cosine(x[part], x_hat[part]))
            cosines = torch.nn.functional.cosine_similarity(x[part], x_hat[part])
            weighted.append(float((cosines * x[part].square().sum(1)).sum() / x[part].square().sum()))
        for key, values in {
            ("explained_variance", "tokens", "alone"): plain,
            ("explained_variance", "relative", "alone"): relative,
            ("explained_variance", "tokens", "joint"): joint,
            ("cosine", "relative", ""): turned,
            ("cosine", "tokens", ""): weighted,
        }.items():
            assert found[(*key, pooled)] == pytest.approx(sum(values) / len(values), abs=1e-12), (key, pooled)


@given(st.integers(0, 99), st.floats(0.1, 10))
@settings(max_examples=20, deadline=None)
def test_no_way_of_counting_sees_a_rotation_an_order_or_a_unit(seed, unit):
    x, x_hat, groups = noisy(seed)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)).double()).Q
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    other = under_choices((unit * x @ rotation)[order], (unit * x_hat @ rotation)[order], groups[order])
    found = under_choices(x, x_hat, groups)
    pd.testing.assert_series_equal(other, found.loc[other.index], rtol=1e-9)
    # A common scaling that is fitted beside undoes one that was there, and never costs.
    both = found.unstack("scaling").loc["explained_variance"]
    assert (both["joint"] >= both["alone"] - 1e-12).all()
    middle = x.mean(0)
    scaled = under_choices(x, middle + 3 * (x_hat - middle), groups)
    assert scaled["explained_variance", "tokens", "joint", "all tokens"] == pytest.approx(
        found["explained_variance", "tokens", "joint", "all tokens"]
    )


def test_tokens_that_do_not_vary_have_a_cosine_and_no_explained_variance():
    none = under_choices(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert len(none) == 12
    assert none.isna().all()
    one = under_choices(torch.ones(1, 4), torch.ones(1, 4), torch.zeros(1, dtype=torch.long))
    assert one["explained_variance"].isna().all()
    assert one["cosine"].to_numpy() == pytest.approx(1)


def test_explained_variance_has_its_known_values():
    x = torch.randn(100, 6)
    assert explained_variance(x, x) == 1
    assert explained_variance(x, x.mean(0).expand_as(x)) == pytest.approx(0, abs=1e-6)
    assert explained_variance(x, 2 * x.mean(0) - x) == pytest.approx(-3, abs=1e-5)
    assert math.isnan(explained_variance(x[:1], x[:1]))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_fidelity_does_not_depend_on_the_slices(size, trained, tokens):
    x = tokens[1200:]
    found = measure_fidelity(SaeCoder(trained.sae), x, size)
    x_hat, latents = trained.sae(x), trained.sae.encode(x)
    assert found.explained_variance == pytest.approx(explained_variance(x, x_hat), abs=1e-5)
    assert found.cosine == pytest.approx(mean_cosine(x, x_hat), abs=1e-6)
    assert found.l0 == pytest.approx(float((latents != 0).sum(-1).float().mean()))
    assert found.dead_fraction == pytest.approx(float((latents == 0).all(0).float().mean()))
    assert found.fvu == pytest.approx(1 - found.explained_variance)


def test_recovered_features_is_one_for_a_shuffled_truth():
    truth = torch.randn(9, 5)
    shuffled = 3 * truth[torch.randperm(9)]
    torch.testing.assert_close(recovered_features(truth, shuffled), torch.ones(9, dtype=torch.float64))
    assert (recovered_features(truth, torch.zeros(4, 5)) == 0).all()


# ---- facts of an autoencoder ---------------------------------------------------------------------


def run_with(folder, sae, **changes):
    """A run of the smoke study whose chapter 2 has loaded ``sae`` from elsewhere."""
    sae.save_model(folder / "elsewhere")
    study = STUDIES["smoke"].changed(**{"sae.source": str(folder / "elsewhere"), **changes})
    run = RunDirectory(folder / "run", study)
    for name in SAE_FILES:
        source = folder / "elsewhere" / name
        run.save_file(f"sae/{name}", lambda path, source=source: shutil.copyfile(source, path))
    return run


@pytest.mark.parametrize(("kind", "k"), [("topk", 5), ("standard", None)])
def test_a_loaded_sae_is_described_by_its_own_file_not_by_the_recipe(tmp_path, kind, k):
    run = run_with(tmp_path, small_sae(kind=kind))
    assert sae_facts(run) == SaeFacts(kind, 40, k)
    rows = [{"representation": "sae", "explained_variance": 0.8, "l0": 5.0, "dead_fraction": 0, "ce_recovered": 0.9}]
    run.save_table("02_sae_eval", pd.DataFrame(rows))
    row = compare_runs([run.path]).iloc[0]
    assert (row["architecture"], row["d_sae"]) == (kind, 40)
    assert (row["k"] == k) if k else pd.isna(row["k"])
    shown = fragments.numbers(run)
    assert (shown["d_sae"], shown["k"]) == ("40", str(k) if k else "undefined")


def test_a_recipe_describes_what_is_trained_here_and_what_is_not_there_yet(tmp_path):
    recipe = STUDIES["smoke"].sae
    assert sae_facts(RunDirectory(tmp_path / "a", STUDIES["smoke"])) == SaeFacts("topk", recipe.d_sae, recipe.k)
    gemma = STUDIES["gemma-2-2b"]
    assert sae_facts(RunDirectory(tmp_path / "b", gemma)) == SaeFacts("topk", 65536, 20)


def test_an_sae_trained_without_bos_is_noted_and_others_are_not(tmp_path):
    sae = small_sae()
    sae.cfg.metadata["prepend_bos"] = False
    facts = sae_facts(run_with(tmp_path, sae))
    assert not facts.prepend_bos
    note = bos_note(facts, "somewhere:there")
    assert "somewhere:there" in note
    assert "\n" not in note
    assert bos_note(SaeFacts("topk", 40, 5), "somewhere:there") == ""


def test_a_folder_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"cfg\.json cannot be read"):
        read_facts(tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(ArtifactError, match="d_sae"):
        read_facts(tmp_path)
