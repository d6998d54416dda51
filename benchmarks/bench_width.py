"""Activations as wide and as many as Gemma's, on a CPU: seconds and peak memory of each step, in a process of its own.

    python -m benchmarks.bench_width [STEP ...] [--output FILE]

The activations are made up, of a concept's shape: words in templates, so that tokens at one place of a template are
alike; the TopK autoencoder and the language model have random weights. Exits with 1 where a step needs more memory than
the bound. Writes a table of the book's page on speed. ``SAEMA_BENCH_QUICK=1`` takes small sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch

from benchmarks.measure import QUICK
from saema_utils.runtime import generator, peak_memory, quietly
from saema_utils.saes.coders import SaeCoder
from saema_utils.stratification.token_cloud import TokenCloud

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "book" / "static" / "width.csv"
BOUND = 16  # GiB
WORDS, TEMPLATES, POSITIONS = (4, 3, 5) if QUICK else (40, 20, 20)
WIDTH, LATENTS, K = (32, 1024, 8) if QUICK else (2304, 65_536, 20)
PROMPTS = WORDS * TEMPLATES
LEVELS, DOSE = (0.0, 1.0), 0.5
VOCABULARY = 512


def activations() -> torch.Tensor:
    """[prompts, positions, width], of unit mean square: what a template's place, the word and chance add up to."""
    draw = generator(0, "bench-width")
    place = torch.randn(TEMPLATES, 1, POSITIONS, WIDTH, generator=draw)
    word = torch.randn(1, WORDS, 1, WIDTH, generator=draw)
    chance = torch.randn(TEMPLATES, WORDS, POSITIONS, WIDTH, generator=draw)
    return ((place + word + chance) / 3**0.5).reshape(PROMPTS, POSITIONS, WIDTH)


def cloud() -> TokenCloud:
    return TokenCloud.of(activations(), torch.ones(PROMPTS, POSITIONS, dtype=torch.bool), "made up")


def coder() -> SaeCoder:
    from sae_lens import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    return SaeCoder(TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K)))


def spectrum() -> Callable[[], object]:
    """Spectra of all three unfoldings of latents, some of them common, from one matrix of inner products."""
    from saema_utils.saes.topk_latents import TopKLatents
    from saema_utils.stratification.grams import cloud_grams, eigenvalues
    from saema_utils.stratification.spectra import measure_spectrum

    tokens, draw = cloud(), generator(0, "bench-width-pairs")
    share = LATENTS // K  # each active latent is of a part of its own, whose first ones fire the most
    where = share * torch.arange(K) + (share * torch.rand(len(tokens), K, generator=draw) ** 3).long()
    pairs = TopKLatents(torch.rand(len(tokens), K, generator=draw), where, LATENTS)

    def call() -> list:
        grams = cloud_grams(pairs, tokens, (0, 1, 2))
        values = eigenvalues([gram for gram, _, _ in grams.values()], [floor for _, floor, _ in grams.values()])
        return [measure_spectrum(found) for found in values]

    return call


def sweep() -> Callable[[], object]:
    """Ranks by prompt and by position of residual stream and latents, without noise and at one level of one seed."""
    from saema_utils.stratification.noise import sweep_clouds

    tokens, encoders = cloud(), {"residual": lambda x: x, "sae": coder().encode}
    return lambda: sweep_clouds([tokens], encoders, noise_levels=LEVELS, seeds=(0,), modes=(0, 1))


def dose() -> Callable[[], object]:
    """One dose of the poles and of a random direction, all tokens labelled by the word of their prompt."""
    from saema_utils.intervention.doses import dose_response

    tokens, sae = cloud(), coder()
    chosen = {"alphas": (DOSE,), "arms": ("poles", "random_direction")}
    return lambda: dose_response(sae.encode(tokens.points), tokens.prompt % WORDS, sae.decode, tokens.points, **chosen)


def splice() -> Callable[[], object]:
    """Reconstructions put into a language model of two layers, its losses beside the clean ones."""
    from saema_utils.model.splice import spliced_losses

    model, sae = language_model(), coder()
    ids = torch.randint(1, VOCABULARY, (PROMPTS, POSITIONS), generator=generator(0, "bench-width-tokens"))
    return lambda: spliced_losses(model, ids, "blocks.0.hook_resid_post", {"sae": sae.reconstruct})


def language_model():
    """Two layers with random weights, loaded as any checkpoint is."""
    from tokenizers import Tokenizer, models

    from saema_utils.model.loading import load_language_model

    with quietly():
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0"))
    shape = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 8}
    with tempfile.TemporaryDirectory() as folder, quietly():
        LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=2, **shape)).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="0", unk_token="0").save_pretrained(folder)
        return load_language_model(folder, "cpu")


STEPS: dict[str, Callable[[], Callable[[], object]]] = {made.__name__: made for made in (spectrum, sweep, dose, splice)}


def measure_here(name: str) -> dict[str, float]:
    """Seconds of one step in this process, and the most memory that the process ever held."""
    call = STEPS[name]()
    started = time.perf_counter()
    call()
    return {"seconds": time.perf_counter() - started, "peak": peak_memory()}


def rows(names: list[str], bound: float) -> Iterator[dict[str, object]]:
    """Each step measured in a process of its own, one after the other."""
    for name in names:
        command = [sys.executable, "-m", "benchmarks.bench_width", "--here", name]
        said = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(said.splitlines()[-1])
        yield {
            "Step": name,
            "What it does": STEPS[name].__doc__.rstrip("."),
            "Threads": torch.get_num_threads(),
            "Seconds": float(f"{found['seconds']:.3g}"),
            "Peak (GiB)": round(found["peak"] / 2**30, 2),
            "Bound (GiB)": bound,
        }


def main() -> int:
    """Print and write a row a step; 1 if one of them went over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", default=list(STEPS), help=f"some of {', '.join(STEPS)}. Default: all")
    parser.add_argument("--bound", type=float, default=BOUND, help="GiB. Default: %(default)s")
    parser.add_argument("--output", type=Path, default=TABLE)
    parser.add_argument("--here", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_here(given.here)))
        return 0
    found = []
    for row in rows(given.steps, given.bound):
        found.append(row)
        print(row, flush=True)
    table = pd.DataFrame(found)
    table.to_csv(given.output, index=False)
    return int((table["Peak (GiB)"] > table["Bound (GiB)"]).any())


if __name__ == "__main__":
    raise SystemExit(main())
