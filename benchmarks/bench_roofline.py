"""How near capture, encoding and training come to the machine's own speed of matrix products.

    python -m benchmarks.bench_roofline [--rounds N] [--output FILE]

Each work takes turns with ``torch.mm`` on the very products that it cannot do without: the same weights, the same
numbers of tokens at once, the same threads, one process. A last round under torch's profiler says where its other time
goes. Writes a table of the book's page on speed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from benchmarks.bench_capture import CONTEXT, LAYER, bare_model, package_model, tokens_and_lengths
from benchmarks.bench_sae_training import SIZES, one_step, tokens, trainer
from saema_utils.model.residual_stream import TOKENS_PER_BATCH, capture_residual_stream
from saema_utils.saes.coders import SaeCoder
from saema_utils.saes.topk_latents import rows_at_once

TABLE = Path(__file__).resolve().parents[1] / "book" / "static" / "roofline.csv"
ROUNDS = 5
SHOWN = 3  # of what the other time goes to, largest first
KINDS = {  # of torch's operations, by how their names begin behind "aten::"
    "products": ("mm", "addmm", "bmm"),
    "attention": ("_scaled_dot_product",),
    "choice of the largest": ("topk",),
    "sums of chosen rows": ("_embedding_bag", "index_add"),
    "sorting": ("sort", "bincount", "cumsum"),
    "Adam": ("_fused_adam",),
    "copies": ("copy_", "cat", "index", "clone", "fill_", "zero_", "scatter", "gather", "embedding"),
    "sums and products of entries": ("mul", "add", "sub", "div", "pow", "neg", "rsqrt", "mean", "sum", "silu", "relu"),
}


class Work(NamedTuple):
    """A call, the products that it must do (tokens at once, and weights ``[k, n]``), and their FLOPs."""

    name: str
    call: Callable[[], object]
    products: list[tuple[int, torch.Tensor]]
    flops: int


def product_flops(tokens: int, weights: torch.Tensor) -> int:
    """``2 tokens k n``: a product with ``[k, n]`` multiplies and adds once for each token and each weight."""
    return 2 * tokens * weights.numel()


def capture(ragged: bool) -> Work:
    r"""The residual stream behind block L: seven products a block with weights, for every token that is real.

    .. math:: \text{FLOPs} = 2 N (L + 1) (2 D^2 + 2 D D_{kv} + 3 D H)

    with D the width, :math:`D_{kv}` that of keys and values, H that of the MLP. The products of tokens with tokens, in
    attention, are small beside these; with padding they count as time that is lost.
    """
    ids, lengths = tokens_and_lengths(ragged)
    model, name = package_model("cpu"), f"blocks.{LAYER}.hook_resid_post"
    weights = [m.weight.detach().T for m in bare_model("cpu").layers.modules() if isinstance(m, torch.nn.Linear)]
    batches = lengths.sort(descending=True).values.split(max(1, TOKENS_PER_BATCH["cpu"] // ids.shape[1]))
    return Work(
        "capture, prompts of 4 to 32 tokens" if ragged else f"capture, rows of {CONTEXT} tokens",
        lambda: capture_residual_stream(model, ids, name, lengths=lengths),
        [(len(batch) * int(batch[0]), w) for batch in batches for w in weights],
        sum(product_flops(int(lengths.sum()), w) for w in weights),
    )


def encode() -> Work:
    r"""Pairs of latent and value: one product with the encoder, :math:`2 N D F`, a block of tokens at a time."""
    d_in, d_sae, k, batch = SIZES["default study"]
    coder, x = SaeCoder(topk_sae(d_in, d_sae, k)), tokens(batch, d_in)
    weights, size = coder.sae.W_enc, rows_at_once(x.device, d_sae)
    products = [(len(part), weights) for part in x.split(size)]
    return Work(
        f"encode, {d_in:,} to {d_sae:,}, k = {k}",
        lambda: coder.encode_pairs(x),
        products,
        product_flops(batch, weights),
    )


def topk_sae(d_in: int, d_sae: int, k: int):
    """A TopK autoencoder with random weights."""
    from sae_lens import TopKSAE, TopKSAEConfig

    made = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k))
    made.W_enc.data = torch.randn(d_in, d_sae, generator=torch.Generator().manual_seed(0))
    made.W_dec.data = made.W_enc.data.T.contiguous() / d_in
    return made.requires_grad_(False)


def training() -> Work:
    r"""One step of the sparse trainer: the encoder's product, :math:`2 N D F`, is the one that is needed in full.

    Decoding and gradients add up k rows a token, :math:`8 N D k`, which are no products and count as other time.
    """
    size = d_in, d_sae, k, batch = SIZES["default study"]
    made, x = trainer("ours", size), tokens(batch, d_in)
    weights = made.sae.W_enc.detach()
    return Work(
        f"training step, {d_in:,} to {d_sae:,}, k = {k}",
        lambda: one_step(made, x),
        [(batch, weights)],
        product_flops(batch, weights),
    )


WORKS: dict[str, Callable[[], Work]] = {
    "rows": lambda: capture(False),
    "prompts": lambda: capture(True),
    "encode": encode,
    "training": training,
}


def products_alone(work: Work) -> Callable[[], None]:
    """The machine's own way with a work's products: ``torch.mm`` and nothing else, into memory that is there."""
    x = {shape: torch.randn(shape) for shape in {(n, w.shape[0]) for n, w in work.products}}
    y = {shape: torch.empty(shape) for shape in {(n, w.shape[1]) for n, w in work.products}}

    @torch.no_grad()
    def call() -> None:
        for n, w in work.products:
            torch.mm(x[n, w.shape[0]], w, out=y[n, w.shape[1]])

    return call


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def shares_of_time(call: Callable[[], object]) -> pd.Series:
    """Which share of a call's time each kind of operation takes, largest first, and what is between operations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        whole = seconds_of(call)
    own = pd.Series({event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()})
    found = own.groupby(kind_of).sum() / whole
    found["between operations"] = max(0.0, 1 - found.sum())
    return found.sort_values(ascending=False)


def kind_of(operation: str) -> str:
    name = operation.removeprefix("aten::")
    fits = [(len(start), kind) for kind, starts in KINDS.items() for start in starts if name.startswith(start)]
    return max(fits)[1] if fits else "other"


def measured(work: Work, rounds: int) -> dict[str, object]:
    """One row of the table: medians of so many rounds in turns, and where the time goes that is no product."""
    alone = products_alone(work)
    for call in (work.call, alone):
        call()
    times = [(seconds_of(work.call), seconds_of(alone)) for _ in range(rounds)]
    own, machine = (statistics.median(side) for side in zip(*times, strict=True))
    speed = work.flops / own / 1e9
    most = sum(product_flops(n, w) for n, w in work.products) / machine / 1e9
    rest = shares_of_time(work.call).drop("products", errors="ignore")[:SHOWN]
    return {
        "Work": work.name,
        "Threads": torch.get_num_threads(),
        "GFLOP": round(work.flops / 1e9, 1),
        "Seconds": float(f"{own:.3g}"),
        "GFLOP/s": round(speed),
        "Products alone, GFLOP/s": round(most),
        "Share": f"{speed / most:.0%}",
        "Largest of the rest": ", ".join(f"{kind} {share:.0%}" for kind, share in rest.items()),
    }


def main() -> None:
    """Print and write the share of the machine's speed that each work reaches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=TABLE)
    given = parser.parse_args()
    rows = []
    for make in WORKS.values():
        rows.append(measured(make(), given.rounds))
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(given.output, index=False)


if __name__ == "__main__":
    main()
