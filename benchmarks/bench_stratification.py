"""Spectra, ranks and noise sweeps beside their plain alternatives.

Plain is what one would write first: the d_sae x d_sae covariance and ``eigvalsh``; for a sweep, a loop of
single calls that encodes each concept, level, seed, representation and mode anew.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from benchmarks.measure import POSITIONS, PROMPTS, QUICK, K, compare, devices, sides, topk_latents, turns
from saema_utils.runtime import generator
from saema_utils.saes.coders import PcaCoder, RandomDictionary, SaeCoder
from saema_utils.stratification.anatomy import shuffle_latents
from saema_utils.stratification.grams import cloud_grams, eigenvalues
from saema_utils.stratification.noise import sweep_clouds
from saema_utils.stratification.spectra import covariance_spectrum, measure_spectrum, unfold
from saema_utils.stratification.token_cloud import TokenCloud

WIDTHS = (512, 1024, 2048) if QUICK else (1024, 2048, 4096)
WIDE = 8192 if QUICK else 32_768
MASK = torch.ones(PROMPTS, POSITIONS, dtype=torch.bool)
D_IN, D_SAE, CONCEPTS = (64, 512, 3) if QUICK else (576, 4608, 9)
NOISE = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LEVELS, SEEDS, SWEPT = len(NOISE), 5, 1 if QUICK else 3  # of the concepts, so many are swept and the rest reckoned
DRAWS = (LEVELS - 1) * SEEDS + 1  # noise zero is the same for every seed


def three_modes(latents: torch.Tensor, cloud: TokenCloud) -> list[dict[str, float]]:
    """One token Gram matrix for the three modes, as the sweep does it."""
    grams = cloud_grams(latents.flatten(0, 1), cloud, (0, 1, 2))
    return [measure_spectrum(s) for s in eigenvalues([g[0] for g in grams.values()], [g[1] for g in grams.values()])]


def plain_spectrum(rows: torch.Tensor) -> torch.Tensor:
    """Every eigenvalue of the full covariance; what rounding left of zero is cut off."""
    rows = rows if rows.device.type != "mps" else rows.cpu()
    values = torch.linalg.eigvalsh(torch.atleast_2d(torch.cov(rows.double()))).flip(0)
    return torch.where(values > 1e-12 * values[0], values, 0.0)[: min(rows.shape)]


def plain_modes(latents: torch.Tensor) -> list[dict[str, float]]:
    return [measure_spectrum(plain_spectrum(unfold(latents, mode))) for mode in range(3)]


def ranks(rows: list[dict[str, float]]) -> list[float]:
    return [value for row in rows for value in row.values()]


@sides
@turns
@devices
@pytest.mark.parametrize("n_latents", WIDTHS)
def test_three_modes(benchmark, n_latents, side, turn, device):
    latents = topk_latents(n_latents).to(device)
    cloud = TokenCloud.of(latents, MASK)
    call = {"ours": lambda: three_modes(latents, cloud), "plain": lambda: plain_modes(latents)}[side]
    compare(
        benchmark,
        f"spectrum and ranks, three modes, {n_latents:,} latents",
        side,
        call,
        turn=turn,
        device=device,
        numbers=ranks,
        family="three modes",
        size=n_latents,
        **({"aim": 70} if n_latents == 4096 else {}),
    )


@devices
def test_three_modes_of_a_wide_sae(benchmark, device):
    latents = topk_latents(WIDE).to(device)
    cloud = TokenCloud.of(latents, MASK)
    compare(
        benchmark,
        f"spectrum and ranks, three modes, {WIDE:,} latents",
        "ours",
        lambda: three_modes(latents, cloud),
        device=device,
        family="three modes",
        size=WIDE,
    )


def encoders(device: str) -> dict[str, Callable]:
    """The residual stream, a TopK SAE, and two controls, all made by coders of the package."""
    draw = generator(0, "bench-sweep")
    sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, device=device))
    sae.W_enc.data = torch.randn(D_IN, D_SAE, generator=draw).to(device)
    components = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=draw))[0][: D_IN // 4].to(device)
    pca = PcaCoder(torch.zeros(D_IN, device=device), components, torch.ones(D_IN))
    return {
        "residual": lambda x: x,
        "sae": SaeCoder(sae).encode,
        "pca": pca.encode,
        "random_dictionary": RandomDictionary(D_IN, D_SAE, K).encode,
    }


def concept_clouds(device: str, count: int = CONCEPTS) -> list[TokenCloud]:
    draw = generator(1, "bench-sweep")
    return [
        TokenCloud.of(torch.randn(PROMPTS, POSITIONS, D_IN, generator=draw).to(device), MASK, str(i))
        for i in range(count)
    ]


def single_calls(cloud: TokenCloud, spectrum: Callable[[torch.Tensor, int], torch.Tensor], device: str) -> list[dict]:
    """One concept at one level and seed: each representation and mode draws, encodes and solves for itself."""
    rows = []
    for name in ("residual", "sae", "pca", "random_dictionary", "shuffled"):
        for mode in range(3):
            encode = encoders_of(device)["sae" if name == "shuffled" else name]
            latents = encode(cloud.noisy(1.0, 0))
            if name == "shuffled":
                latents = shuffle_latents(latents, cloud)[0]
            rows.append(measure_spectrum(spectrum(latents.view(PROMPTS, POSITIONS, -1), mode)))
    return rows


_MADE: dict[str, dict[str, Callable]] = {}


def encoders_of(device: str) -> dict[str, Callable]:
    return _MADE.setdefault(device, encoders(device))


def swept(clouds: list[TokenCloud], device: str):
    return sweep_clouds(
        clouds,
        encoders_of(device),
        noise_levels=NOISE,
        seeds=range(SEEDS),
        derived={"shuffled": ("sae", shuffle_latents)},
    )


SWEEP = f"full noise sweep, {CONCEPTS} concepts, {LEVELS} levels, {SEEDS} seeds, 5 representations, 3 modes"


@sides
@turns
@devices
@pytest.mark.parametrize("plain", ["the plain covariance", "one call a spectrum"])
def test_sweep(benchmark, plain, side, turn, device):
    clouds = concept_clouds(device, SWEPT)
    spectrum = {
        "the plain covariance": lambda latents, mode: plain_spectrum(unfold(latents, mode)),
        "one call a spectrum": covariance_spectrum,
    }[plain]
    if side == "ours":
        call, scale = lambda: swept(clouds, device), CONCEPTS / SWEPT
        note = f"package from {SWEPT} of {CONCEPTS} concepts"
    else:
        call, scale = lambda: single_calls(clouds[0], spectrum, device), DRAWS * CONCEPTS
        note = f"plain from 1 of {DRAWS} draws of 1 concept"

    def numbers(found) -> list[float]:
        if side == "plain":
            return ranks(found)
        first = found[(found["concept"] == "0") & (found["seed"] == 0) & (found["noise"] == 1)].set_index(
            ["representation", "mode"]
        )
        names = ("residual", "sae", "pca", "random_dictionary", "shuffled")
        measures = ["rank", "effective_rank", "participation_ratio"]
        return [v for name in names for mode in range(3) for v in first.loc[(name, mode), measures]]

    slow = side == "plain" and plain == "the plain covariance"
    compare(
        benchmark,
        f"{SWEEP}; plain: {plain}",
        side,
        call,
        turn=turn,
        warmup=0 if slow else 1,
        device=device,
        numbers=numbers,
        rtol=1e-4,
        memory=not slow,
        scale=scale,
        note=note,
        **({"aim": 20} if plain == "one call a spectrum" else {}),
    )
