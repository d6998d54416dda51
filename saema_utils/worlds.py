"""Worlds whose answer is known: does the rank test measure what it claims to?

Tensors of a prescribed multilinear rank, and small studies (tokens, a map to latents, controls) in which
noise provably does, or provably does not, move the representation to another stratum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import SaemaError
from .rank_anatomy import only_distinct
from .rank_verdicts import STRONGEST, controls_table, stratification_table
from .runtime import generator
from .stratification import Encode, covariance_spectrum, numerical_rank, sweep_clouds
from .token_grams import TokenCloud

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

LEVELS = (0.0, 0.1, 0.3, 0.7)
PROMPTS, POSITIONS, CODED, FREE = 6, 4, 8, 16
WIDTH = CODED + FREE


def tucker_tensor(
    shape: Sequence[int], ranks: Sequence[int], *, seed: int = 0, noise: float = 0.0, dtype: torch.dtype | None = None
) -> Float[Tensor, "*shape"]:
    r"""A random tensor of multilinear rank exactly ``ranks``, of unit root mean square.

    .. math:: Z = G \times_1 U_1 \times_2 U_2 \times_3 U_3 + \sigma E

    with a Gaussian core G of shape ``ranks`` and orthonormal :math:`U_n` [1]_; ``noise`` is :math:`\sigma`.
    With probability one the mode-n unfolding has rank ``ranks[n]``, and so has its covariance (subtracting row
    means removes a direction only if the constant vector lies in the row space).

    Raises
    ------
    SaemaError
        If a rank exceeds its dimension or the product of the other ranks: no tensor has it.

    References
    ----------
    .. [1] Tucker, Psychometrika 31, 1966.
    """
    if len(shape) != len(ranks) or not len(shape):
        raise SaemaError(f"shape {tuple(shape)} and ranks {tuple(ranks)} differ in length; give one rank an axis.")
    for axis, (size, rank) in enumerate(zip(shape, ranks, strict=True)):
        most = min(size, math.prod(ranks) // max(1, rank))
        if not 1 <= rank <= most:
            raise SaemaError(f"rank of mode {axis} is {rank}; allowed: 1 to {most} with shape {tuple(shape)}.")
    draw = generator(seed, "tucker")
    tensor = torch.randn(*ranks, generator=draw, dtype=torch.float64)
    for size, rank in zip(shape, ranks, strict=True):
        factor = torch.linalg.qr(torch.randn(size, rank, generator=draw, dtype=torch.float64))[0]
        tensor = torch.tensordot(tensor, factor, dims=([0], [1]))  # consumes the first axis, appends the new one
    tensor = tensor / tensor.pow(2).mean().sqrt()
    if noise:
        tensor = tensor + noise * torch.randn(*shape, generator=draw, dtype=torch.float64)
    return tensor.to(dtype or torch.float32)


@dataclass(frozen=True)
class World:
    """Tokens, the map that is judged, its controls, and the truth about the map.

    ``truth`` is ``smooth`` (every noise leaves the latents on one stratum) or ``stratified``; ``rank`` is
    the feature-mode rank without noise.
    """

    name: str
    cloud: TokenCloud
    encode: Encode
    controls: Mapping[str, Encode]
    truth: str
    rank: int


def toy_tokens(seed: int, contexts: int = PROMPTS * POSITIONS) -> Tensor:
    """Tokens [6, 4, 24]: eight coded dimensions that hold one of two prototypes with its own strength, and
    sixteen free Gaussian ones. Fewer ``contexts`` than tokens repeat exactly."""
    draw = generator(seed, "world")
    strength = 0.8 + 0.4 * torch.rand(contexts, generator=draw)
    coded = torch.zeros(contexts, CODED)
    coded[torch.arange(contexts), torch.arange(contexts) % 2] = strength
    vectors = torch.cat([coded, torch.randn(contexts, FREE, generator=draw)], dim=1)
    order = torch.arange(PROMPTS * POSITIONS) % contexts
    return vectors[order].view(PROMPTS, POSITIONS, WIDTH)


def _cloud(seed: int, name: str, **options) -> TokenCloud:
    tokens = toy_tokens(seed, **options)
    return TokenCloud.of(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), f"{name}-{seed}")


def _top1(x: Float[Tensor, "n D"]) -> Float[Tensor, "n 8"]:
    """The strongest coded dimension, alone: each choice of it is a stratum of its own."""
    coded = x[:, :CODED].relu()
    return coded * torch.nn.functional.one_hot(coded.argmax(1), CODED)


def _fixed_support(x: Float[Tensor, "n D"]) -> Float[Tensor, "n 48"]:
    """Four directions, mapped linearly and injectively to six latents of 48: the others never fire."""
    draw = generator(0, "fixed-support")
    read = torch.linalg.qr(torch.randn(WIDTH, 4, generator=draw))[0]
    write = torch.linalg.qr(torch.randn(6, 4, generator=draw))[0].T
    latents = x.new_zeros(len(x), 48)
    latents[:, 10:16] = x @ read.to(x) @ write.to(x)
    return latents


def random_topk(seed: int, k: int = 4, n_latents: int = 48) -> Encode:
    """A random dictionary of unit vectors of which each token keeps the k strongest."""
    directions = torch.randn(WIDTH, n_latents, generator=generator(seed, "random-topk"))
    directions = directions / directions.norm(dim=0)

    def encode(x: Float[Tensor, "n D"]) -> Float[Tensor, "n F"]:
        values, where = (x @ directions.to(x)).topk(k, dim=-1)
        return x.new_zeros(len(x), n_latents).scatter_(1, where, values.relu())

    return encode


def _residual(x: Tensor) -> Tensor:
    return x


_CONTROLS: dict[str, Encode] = {"residual": _residual, "random_dictionary": random_topk(1)}


def smooth_world(seed: int = 0) -> World:
    """A linear map of rank 4 onto a fixed support: for any noise the latents have rank 4, so the truth is smooth."""
    return World("smooth", _cloud(seed, "smooth"), _fixed_support, _CONTROLS, "smooth", 4)


def repeated_world(seed: int = 0) -> World:
    """The smooth map on 24 tokens that are 3 contexts repeated, as prompts with one beginning are.

    Three points have rank 2; noise parts the copies and the rank becomes 4, though the map never left its
    stratum. The verdict that counts ranks alone is wrong here, by construction.
    """
    return World("repeated", _cloud(seed, "repeated", contexts=3), _fixed_support, _CONTROLS, "smooth", 2)


def stratified_world(seed: int = 0) -> World:
    """Top-1 of eight latents on two prototypes: rank 2 without noise; noise above the gap picks other latents.

    A token changes stratum when another coded dimension's noise exceeds its own by the strength (0.8 to 1.2);
    at noise 0.7 that happens to about half of the tokens, so that some of 24 do is all but certain.
    """
    return World("stratified", _cloud(seed, "stratified"), _top1, _CONTROLS, "stratified", 2)


def chance_world(seed: int = 0) -> World:
    """One random dictionary judged against another and the residual: nothing sets it apart."""
    return World("chance", _cloud(seed, "chance"), random_topk(2), _CONTROLS, "no more than controls", 23)


def rank_recovery(seed: int = 0) -> pd.DataFrame:
    """Known multilinear ranks, measured: columns shape, dtype, noise, true_ranks, found_ranks, recovered."""
    import pandas as pd

    rows = []
    for shape, ranks in (((30, 8, 200), (5, 4, 12)), ((60, 10, 2000), (6, 3, 9)), ((12, 12, 40), (12, 5, 20))):
        for dtype in (torch.float64, torch.float32, torch.float16):
            for noise in (0.0, 1e-5, 1e-2):
                tensor = tucker_tensor(shape, ranks, seed=seed, noise=noise, dtype=dtype)
                found = tuple(numerical_rank(covariance_spectrum(tensor, mode)) for mode in range(3))
                rows.append({
                    "shape": _by(shape), "dtype": str(dtype).removeprefix("torch."), "noise": noise,
                    "true_ranks": _by(ranks), "found_ranks": _by(found), "recovered": found == ranks,
                })  # fmt: skip
    return pd.DataFrame(rows)


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def false_alarm_and_sensitivity(n_seeds: int = 200, *, noise_seeds: int = 4) -> pd.DataFrame:
    """How often each verdict is right, over worlds drawn from ``n_seeds`` seeds.

    Returns
    -------
    Columns test (``rank changes``: :func:`~saema_utils.rank_verdicts.stratification_table`; ``rank changes,
    distinct contexts``; ``beats its controls``: :func:`~saema_utils.rank_verdicts.controls_table` before
    correction over worlds), world, truth, n, flagged (share called stratified, or more, or sooner), low, high
    (Wilson 95 % interval), error (false alarm or missed, as a rate), kind.
    """
    import pandas as pd

    rows = []
    for make in (smooth_world, repeated_world, stratified_world):
        worlds = [make(seed) for seed in range(n_seeds)]
        derived = {"distinct": ("sae", only_distinct)} if make is repeated_world else {}
        table = sweep_clouds(
            [w.cloud for w in worlds], {"sae": worlds[0].encode}, noise_levels=LEVELS, seeds=(0,),
            modes=(2,), derived=derived,
        )  # fmt: skip
        verdicts = stratification_table(table)
        for name in ("sae", *derived):
            flagged = (verdicts.loc[verdicts["representation"] == name, "verdict"] == "stratified").sum()
            test = "rank changes" if name == "sae" else "rank changes, distinct contexts"
            rows.append(_rate(test, worlds[0], int(flagged), n_seeds))
    for make in (repeated_world, chance_world, stratified_world):
        worlds = [make(seed) for seed in range(n_seeds)]
        rows.append(_rate("beats its controls", worlds[0], _beaten(worlds, noise_seeds), n_seeds))
    return pd.DataFrame(rows)


def _beaten(worlds: Sequence[World], noise_seeds: int) -> int:
    """In how many worlds the judged map moves more, or sooner, than its strongest control."""
    table = sweep_clouds(
        [w.cloud for w in worlds], {"sae": worlds[0].encode, **worlds[0].controls},
        noise_levels=(LEVELS[0], LEVELS[-1]), seeds=range(noise_seeds), modes=(2,),
    )  # fmt: skip
    found = controls_table(table, correct=False, only=STRONGEST)
    found = found[found["verdict"].isin(("more", "sooner"))]
    return len(set(found["concept"]) & {w.cloud.concept for w in worlds})


def _rate(test: str, world: World, flagged: int, n: int) -> dict[str, object]:
    low, high = wilson(flagged, n)
    is_alarm = world.truth != "stratified"
    return {
        "test": test, "world": world.name, "truth": world.truth, "n": n, "flagged": flagged / n, "low": low,
        "high": high, "error": flagged / n if is_alarm else 1 - flagged / n,
        "kind": "false alarm" if is_alarm else "missed",
    }  # fmt: skip


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which stays within 0 and 1 even at 0 of n."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(np.clip(centre - half, 0, 1)), float(np.clip(centre + half, 0, 1))


WORLDS: dict[str, Callable[[int], World]] = {
    "smooth": smooth_world, "repeated": repeated_world, "stratified": stratified_world, "chance": chance_world
}  # fmt: skip
