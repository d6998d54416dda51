"""Worlds whose answer is known: does the rank test measure what it claims to?

Tensors of a prescribed multilinear rank, and small studies (tokens, a map to latents, controls) in which
noise provably does, or provably does not, move the representation to another stratum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from saema_utils.errors import SaemaError
from saema_utils.evidence.rank import MARGIN, STRONGEST, advantage, movement, over_concepts, stratification_table
from saema_utils.evidence.verdicts import SUPPORTED
from saema_utils.runtime import generator
from saema_utils.stratification.noise import Encode
from saema_utils.stratification.spectra import DEFAULT_RTOL, covariance_spectrum, numerical_rank
from saema_utils.stratification.token_cloud import TokenCloud

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

LEVELS = (0.0, 0.1, 0.3, 0.7)
CONCEPTS = 9  # worlds that make a study: the units of the row over all concepts
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


@functools.lru_cache(maxsize=4096)
def _cloud(seed: int, contexts: int = PROMPTS * POSITIONS) -> TokenCloud:
    """The tokens of a seed and their noise: worlds that differ in their map only share both."""
    tokens = toy_tokens(seed, contexts)
    return TokenCloud.of(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), f"{contexts}-contexts-{seed}")


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


def _flat_map(x: Float[Tensor, "n D"]) -> Float[Tensor, "n 4"]:
    """The first four coordinates, of which clean tokens use two."""
    return x[:, :4]


def random_topk(seed: int) -> Encode:
    """A random dictionary of 48 unit vectors of which each token keeps the four strongest."""
    directions = torch.randn(WIDTH, 48, generator=generator(seed, "random-topk"))
    directions = directions / directions.norm(dim=0)

    def encode(x: Float[Tensor, "n D"]) -> Float[Tensor, "n F"]:
        values, where = (x @ directions.to(x)).topk(4, dim=-1)
        return x.new_zeros(len(x), 48).scatter_(1, where, values.relu())

    return encode


_CONTROLS: dict[str, Encode] = {"residual": lambda x: x, "random_dictionary": random_topk(1)}


def smooth_world(seed: int = 0) -> World:
    """A linear map of rank 4 onto a fixed support: for any noise the latents have rank 4, so the truth is smooth."""
    return World("smooth", _cloud(seed), _fixed_support, _CONTROLS, "smooth", 4)


def flat_world(seed: int = 0) -> World:
    """A linear map of distinct tokens that vary in two of the four dimensions that it reads: smooth, rank 2.

    Any noise fills the other two and the rank becomes 4. Nothing repeats, and controls that read more dimensions
    change less in proportion: no repair of the test removes this alarm. A cloud of deficient rank gains rank under
    noise, whatever the encoder.
    """
    return World("flat", _cloud(seed), _flat_map, _CONTROLS, "smooth", 2)


def repeated_world(seed: int = 0) -> World:
    """The smooth map on 24 tokens that are 3 contexts repeated, as prompts with one beginning are.

    Three points have rank 2; noise parts the copies and the rank becomes 4, though the map never left its
    stratum. The verdict that counts ranks alone is wrong here, by construction.
    """
    return World("repeated", _cloud(seed, contexts=3), _fixed_support, _CONTROLS, "smooth", 2)


def stratified_world(seed: int = 0) -> World:
    """Top-1 of eight latents on two prototypes: rank 2 without noise; noise above the gap picks other latents.

    A token changes stratum when another coded dimension's noise exceeds its own by the strength (0.8 to 1.2);
    at noise 0.7 that happens to about half of the tokens, so that some of 24 do is all but certain.
    """
    return World("stratified", _cloud(seed), _top1, _CONTROLS, "stratified", 2)


def chance_world(seed: int = 0) -> World:
    """One random dictionary judged against another and the residual: nothing sets it apart."""
    return World("chance", _cloud(seed), random_topk(2), _CONTROLS, "no more than controls", 23)


def rank_recovery(seed: int = 0) -> pd.DataFrame:
    """Known multilinear ranks, measured: columns shape, dtype, noise, true_ranks, found_ranks, recovered."""
    import pandas as pd

    rows = []
    for shape, ranks in (((30, 8, 200), (5, 4, 12)), ((60, 10, 2000), (6, 3, 9)), ((12, 12, 40), (12, 5, 20))):
        for dtype in (torch.float64, torch.float32, torch.float16):
            for noise in (0.0, 1e-5, 1e-2):
                tensor = tucker_tensor(shape, ranks, seed=seed, noise=noise, dtype=dtype)
                found = tuple(numerical_rank(covariance_spectrum(tensor, mode)) for mode in range(3))
                rows.append(
                    {
                        "shape": _by(shape),
                        "dtype": str(dtype).removeprefix("torch."),
                        "noise": noise,
                        "true_ranks": _by(ranks),
                        "found_ranks": _by(found),
                        "recovered": found == ranks,
                    }
                )
    return pd.DataFrame(rows)


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def false_alarm_and_sensitivity(n_seeds: int = 200) -> pd.DataFrame:
    """How often each verdict is right: every test on every world, over ``n_seeds`` draws of it.

    The tests that need no control judge one world a draw. The test against controls judges a study of nine worlds a
    draw by its row over all of them, corrected as in the chapter, because that row is the one to quote.

    Returns
    -------
    Columns test (``rank changes``: :func:`~saema_utils.evidence.rank.stratification_table`; ``rank changes,
    distinct contexts``; ``beats its controls``: :func:`~saema_utils.evidence.rank.over_concepts`, the strongest
    control), world, truth, n, flagged (share called stratified, or more, or sooner), low, high (Wilson 95 %
    interval), more, sooner (shares of the test against controls), error (false alarm or missed, as a rate), kind.
    """
    import pandas as pd

    rows = []
    for make in WORLDS.values():
        worlds = [make(seed) for seed in range(CONCEPTS * n_seeds)]
        encode, clouds = worlds[0].encode, [w.cloud for w in worlds]
        table = sweep_alike(clouds, {"sae": encode, **worlds[0].controls})
        if make is not chance_world:  # which asks about controls only: a random code has strata, and no rank to gain
            first = {cloud.concept for cloud in clouds[:n_seeds]}
            alone = table[(table["representation"] == "sae") & table["concept"].isin(first)]
            distinct = sweep_alike([cloud.distinct for cloud in clouds[:n_seeds]], {"sae": encode})
            for test, part in (("rank changes", alone), ("rank changes, distinct contexts", distinct)):
                flagged = (stratification_table(part)["called"] == "stratified").sum()
                rows.append(_rate(test, worlds[0], int(flagged), n_seeds))
        supported = _against_controls(table, [cloud.concept for cloud in clouds])
        more, sooner = (np.array([which in found for found in supported]) for which in ("excursion", "onset"))
        shares = {"more": more.mean(), "sooner": sooner.mean()}
        rows.append(_rate("beats its controls", worlds[0], int((more | sooner).sum()), n_seeds) | shares)
    order = ("rank changes", "rank changes, distinct contexts", "beats its controls")
    found = pd.DataFrame(sorted(rows, key=lambda row: order.index(row["test"])))
    return found[["test", "world", "truth", "n", "flagged", "low", "high", "more", "sooner", "error", "kind"]]


def sweep_alike(clouds: Sequence[TokenCloud], encoders: Mapping[str, Encode]) -> pd.DataFrame:
    """``sweep_clouds`` in the feature mode for thousands of small clouds of one size.

    One noise seed, the levels of this module, the columns that the verdicts read. All clouds are solved as one
    batch, an order of magnitude faster than one by one.
    """
    import pandas as pd

    points, noise = (torch.stack(part) for part in ([c.points for c in clouds], [c.noise(0) for c in clouds]))
    n = points.shape[1]
    head = {"concept": [c.concept for c in clouds], "mode": 2, "seed": 0}
    rms = np.array([c.rms for c in clouds])
    parts = []
    for name, encode in encoders.items():
        for level in LEVELS:
            latents = encode((points + level * noise).flatten(0, 1)).unflatten(0, (len(clouds), n)).double()
            latents = latents - latents.mean(1, keepdim=True)
            values = torch.linalg.eigvalsh(latents @ latents.mT / (n - 1)).clamp(min=0)
            largest = values.amax(1, keepdim=True)
            shares = values / values.sum(1, keepdim=True)
            parts.append(
                pd.DataFrame(
                    head
                    | {
                        "representation": name,
                        "noise": level,
                        "noise_rms": level / rms,
                        "rank": (values > DEFAULT_RTOL * largest).sum(1).numpy(),
                        "effective_rank": torch.special.entr(shares).sum(1).exp().numpy(),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def _against_controls(table: pd.DataFrame, concepts: Sequence[str]) -> list[set[str]]:
    """For each nine concepts in turn: the statistics that the row over all of them supports, against the strongest
    control."""
    moves = movement(table)
    gaps = {statistic: advantage(moves, statistic).droplevel("seed").loc[list(concepts)] for statistic in MARGIN}
    found = []
    for start in range(0, len(concepts), CONCEPTS):
        means = {
            (statistic, control): values.to_numpy()[start : start + CONCEPTS]
            for statistic, wide in gaps.items()
            for control, values in wide.items()
        }
        strongest = (row for row in over_concepts(means) if row["control"] == STRONGEST)
        found.append({row["statistic"] for row in strongest if row["verdict"] == SUPPORTED})
    return found


def _rate(test: str, world: World, flagged: int, n: int) -> dict[str, object]:
    low, high = wilson(flagged, n)
    is_alarm = world.truth != "stratified"
    return {
        "test": test,
        "world": world.name,
        "truth": world.truth,
        "n": n,
        "flagged": flagged / n,
        "low": low,
        "high": high,
        "error": flagged / n if is_alarm else 1 - flagged / n,
        "kind": "false alarm" if is_alarm else "missed",
    }


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which stays within 0 and 1 even at 0 of n.

    ``scipy.stats.binomtest`` has it with all digits of z, which would move the eighth digit of the tables.
    """
    z, share = 1.959964, successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(np.clip(centre - half, 0, 1)), float(np.clip(centre + half, 0, 1))


WORLDS: dict[str, Callable[[int], World]] = {
    "smooth": smooth_world,
    "flat": flat_world,
    "repeated": repeated_world,
    "stratified": stratified_world,
    "chance": chance_world,
}
