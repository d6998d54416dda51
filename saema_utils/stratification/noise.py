"""Ranks under noise: who encodes when, what is shared, what is solved together.

Pre-activations of a TopK SAE, and of both controls, are affine in the vector: with noise ``s e`` they are
``p(x) + s (e W)``. One product for the clean tokens and one a seed therefore serve every level, and only the choice
of the k largest is made anew. Encoders that offer no such split are called once a level and seed for all concepts.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch

from saema_utils.arrays import any_numbers
from saema_utils.errors import ActivationError, require
from saema_utils.runtime import progress_bar
from saema_utils.saes.coders import AffineCoder
from saema_utils.saes.topk_latents import TopKLatents
from saema_utils.stratification.grams import cloud_grams, eigenvalues, one_thread_each
from saema_utils.stratification.spectra import measure_spectrum
from saema_utils.stratification.token_cloud import TokenCloud
from saema_utils.study import NoiseUnit

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float
    from torch import Tensor

Encode = Callable[["Tensor"], "Tensor"]
Measure = Callable[["Tensor"], Mapping[str, float]]
Derive = Callable[["Tensor", TokenCloud], "tuple[Tensor, TokenCloud]"]
Latents = "Tensor | TopKLatents"
_ENCODED_BYTES = 2**28
_SOLVED_BYTES = 2**22
_CASE = ("concept", "representation", "mode", "noise", "noise_rms", "seed")
COLUMNS = (*_CASE, "rank", "effective_rank", "participation_ratio", "l0")


@any_numbers
def noise_rank_sweep(
    residual: Float[Tensor, "P T D"],
    encode: Encode,
    *,
    mask: Bool[Tensor, "P T"],
    noise_levels: Sequence[float],
    seeds: Sequence[int],
    modes: Sequence[int] = (0, 1, 2),
    concept: str = "",
    representation: str = "",
    noise_unit: NoiseUnit = "absolute",
) -> pd.DataFrame:
    r"""Ranks of a representation while isotropic Gaussian noise is added to the residual stream.

    .. math:: X_s = X + s\,\varepsilon, \quad \varepsilon \sim N(0, I), \qquad Z_s = \mathrm{encode}(X_s)

    The draw depends on the seed and the concept only: every representation meets the same noise, and
    every level is the same draw scaled. Noise 0 is deterministic and computed once.

    Parameters
    ----------
    residual, mask
        Activations and which tokens are real; masked ones are zero in modes 0 and 1 and dropped in mode 2.
    encode
        Maps token vectors [n, D] to latents [n, F], each token by itself.
    noise_levels, noise_unit
        Standard deviations in the units of ``residual``, or with ``rms`` in multiples of its root mean square.

    Returns
    -------
    One row per mode, level and seed with columns concept, representation, mode, noise (in the units of ``residual``),
    noise_rms (``noise`` over the root mean square of the unmasked activations), seed, rank, effective_rank,
    participation_ratio (NaN where all latents are equal) and l0 (mean nonzero latents per token).

    Raises
    ------
    ActivationError
        If shapes disagree, fewer than two tokens are unmasked, values or latents are not finite, or
        levels, seeds or modes are not allowed.
    """
    cloud = TokenCloud.of(residual, mask, concept)
    levels = {"noise_levels": noise_levels, "noise_unit": noise_unit}
    return sweep_clouds([cloud], {representation: encode}, seeds=seeds, modes=modes, **levels)


def sweep_clouds(
    clouds: Sequence[TokenCloud],
    encoders: Mapping[str, Encode],
    *,
    noise_levels: Sequence[float],
    seeds: Sequence[int],
    modes: Sequence[int] = (0, 1, 2),
    derived: Mapping[str, tuple[str, Derive]] | None = None,
    noise_shape: Float[Tensor, "D D"] | None = None,
    measure: Measure = measure_spectrum,
    description: str = "",
    noise_unit: NoiseUnit = "absolute",
) -> pd.DataFrame:
    """:func:`noise_rank_sweep` of many concepts and representations at once: equal rows, far less time.

    ``encode`` of a coder whose pre-activations are affine is replaced by one product for the clean tokens and one a
    seed (:func:`affine_coder`); any other encodes all concepts in one call a level and seed. One token
    Gram matrix serves the three modes; eigenproblems of one size are solved as a batch, on as many threads as torch
    was given.

    Parameters
    ----------
    derived
        ``{name: (source, change)}``: further representations made from the latents of ``source``, without
        encoding again; ``change(latents, cloud)`` returns new latents and the tokens that they belong to. Latents
        of a TopK coder come as :class:`~saema_utils.saes.topk_latents.TopKLatents`.
    noise_shape
        Square root of a covariance that shapes the noise (:meth:`TokenCloud.noise`); None is isotropic.
    measure
        From a spectrum to named numbers, one column each.
    noise_unit
        With ``rms`` a level is a multiple of each concept's own RMS.
    """
    import pandas as pd

    _check_sweep(noise_levels, seeds, modes)
    derived = derived or {}
    if not clouds or not encoders or any(source not in encoders for source, _ in derived.values()):
        raise ActivationError(
            f"the sweep has {len(clouds)} concept(s), encoders {list(encoders)}, derived {list(derived)}; "
            "allowed: at least one concept and one encoder, and derived representations of those encoders."
        )
    rows: dict[tuple[str, float, int | None], list[dict]] = {}
    levels_of = {seed: [s for s in noise_levels if s or seed == seeds[0]] for seed in seeds}
    levels_of = {seed: levels for seed, levels in levels_of.items() if levels}
    draws = sum(map(len, levels_of.values()))

    def keep(name: str, found: Iterable[Draw]) -> None:
        for row, level, seed in _solved(_with_derived(name, found, derived), modes, measure, noise_unit):
            rows.setdefault((row["representation"], level, seed), []).append(row)

    def affine(name: str, coder: AffineCoder, cloud: TokenCloud) -> int:
        for found in _affine_draws(name, coder, cloud, levels_of, noise_shape, noise_unit):
            keep(name, found)
        return draws

    def plain(name: str, lock: threading.Lock, group: list[TokenCloud], level: float, seed: int) -> int:
        sizes = [cloud.noise_size(level, noise_unit).absolute for cloud in group]
        noisy = [cloud.noisy(size, seed, noise_shape) for cloud, size in zip(group, sizes, strict=True)]
        points = torch.cat(noisy)
        with lock, torch.no_grad():
            latents = encoders[name](points)
        check_latents(latents, points, name, level)
        parts = zip(group, latents.split([len(cloud) for cloud in group]), strict=True)
        keep(name, [Draw(cloud, level, seed if level else None, part) for cloud, part in parts])
        return len(group)

    tasks: list[tuple] = []
    for name, encode in encoders.items():
        if (coder := affine_coder(encode)) is not None:
            tasks += [(affine, name, coder, cloud) for cloud in clouds]
            continue
        # Some encoders keep state between calls (sae_lens does); each waits for itself alone.
        lock, groups = threading.Lock(), list(_groups(clouds, encode, name))
        steps = [(level, seed) for seed, levels in levels_of.items() for level in levels]
        tasks += [(plain, name, lock, group, *step) for step in steps for group in groups]
    with (
        one_thread_each(clouds[0].points.device) as workers,
        progress_bar(len(encoders) * len(clouds) * draws, description) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        for done in pool.map(lambda task: task[0](*task[1:]), tasks):
            advance(done)
    steps = [(name, level, seed) for name in (*encoders, *derived) for level in noise_levels for seed in seeds]
    found = [{**row, "seed": seed} for name, level, seed in steps for row in rows[name, level, seed if level else None]]
    order = {"concept": [cloud.concept for cloud in clouds], "representation": [*encoders, *derived]}
    frame = pd.DataFrame(found).sort_values(
        ["concept", "representation", "mode", "noise", "seed"],
        key=lambda column: column.map(order[column.name].index) if column.name in order else column,
        kind="stable",
        ignore_index=True,
    )
    first = [column for column in COLUMNS if column in frame]
    return frame[first + [column for column in frame if column not in first]]


class Draw(NamedTuple):
    """Latents of one concept at one level (as it was given) of one seed (None where there is no noise)."""

    cloud: TokenCloud
    level: float
    seed: int | None
    latents: Latents


def affine_coder(encode: Encode) -> AffineCoder | None:
    """The coder behind ``coder.encode``, where its latents follow from affine pre-activations; None elsewhere.

    A class that overrides ``encode`` alone no longer follows the pre-activations that it inherits.
    """
    coder = getattr(encode, "__self__", None)
    if coder is None or getattr(encode, "__name__", "") != "encode" or not isinstance(coder, AffineCoder):
        return None
    writes_encode = next(kind for kind in type(coder).__mro__ if "encode" in vars(kind))
    return coder if "preactivations" in vars(writes_encode) and coder.is_affine else None


@torch.no_grad()
def _affine_draws(
    name: str,
    coder: AffineCoder,
    cloud: TokenCloud,
    levels_of: Mapping[int, Sequence[float]],
    shape: Tensor | None,
    unit: NoiseUnit,
) -> Iterator[list[Draw]]:
    """For each seed all its levels, from a product of its own and one of the clean tokens that serves all seeds.

    Where the pre-activations of all tokens are too large, blocks of tokens take turns and the latter is made anew.
    """
    width = coder.preactivations(cloud.points[:1]).shape[-1]
    block = max(1, _ENCODED_BYTES // (12 * width))
    kept = coder.preactivations(cloud.points) if len(cloud) <= block else None
    for seed, levels in levels_of.items():
        parts: list[list[Latents]] = [[] for _ in levels]
        for x, noise in zip(cloud.points.split(block), cloud.noise(seed, shape).split(block), strict=True):
            clean = coder.preactivations(x) if kept is None else kept
            slope = coder.preactivations(noise, constant=False)
            for found, level in zip(parts, levels, strict=True):
                size = cloud.noise_size(level, unit).absolute
                found.append(coder.from_preactivations(torch.add(clean, slope, alpha=size) if size else clean))
        draws = []
        for level, found in zip(levels, parts, strict=True):
            latents = TopKLatents.joined(found) if isinstance(found[0], TopKLatents) else torch.cat(found)
            check_latents(latents, cloud.points, name, level)
            draws.append(Draw(cloud, level, seed if level else None, latents))
        yield draws


def _with_derived(
    name: str, draws: Iterable[Draw], derived: Mapping[str, tuple[str, Derive]]
) -> Iterator[tuple[Draw, str, TokenCloud]]:
    """Each draw as it is, and changed by each derived representation: with its name and the tokens it is of."""
    changes = {new: change for new, (source, change) in derived.items() if source == name}
    for draw in draws:
        yield draw, name, draw.cloud
        for new, change in changes.items():
            latents, tokens = change(draw.latents, draw.cloud)
            yield draw._replace(latents=latents), new, tokens


def _solved(
    todo: Iterable[tuple[Draw, str, TokenCloud]], modes: Sequence[int], measure: Measure, unit: NoiseUnit
) -> Iterator[tuple[dict, float, int | None]]:
    """Rows with level and seed; eigenproblems are collected until their matrices take 4 MiB (64 on an accelerator)."""
    grams: list[Tensor] = []
    floors: list[float] = []
    labels: list[tuple] = []

    def solve() -> Iterator[tuple[dict, float, int | None]]:
        for (draw, name, mode, length, l0), spectrum in zip(labels, eigenvalues(grams, floors), strict=True):
            size = draw.cloud.noise_size(draw.level, unit)
            yield (
                {
                    "concept": draw.cloud.concept,
                    "representation": name,
                    "mode": mode,
                    "noise": size.absolute,
                    "noise_rms": size.rms,
                    **measure(spectrum[:length]),
                    "l0": l0,
                },
                draw.level,
                draw.seed,
            )

    for draw, name, tokens in todo:
        l0 = count_nonzero(draw.latents) / len(tokens)
        for mode, (gram, floor, length) in cloud_grams(draw.latents, tokens, modes).items():
            grams.append(gram)
            floors.append(floor)
            labels.append((draw._replace(latents=None), name, mode, length, l0))
        room = _SOLVED_BYTES if grams[-1].device.type == "cpu" else 16 * _SOLVED_BYTES
        if sum(gram.nbytes for gram in grams) > room:
            yield from solve()
            grams, floors, labels = [], [], []
    yield from solve()


def count_nonzero(latents: Latents) -> int:
    return int(torch.count_nonzero(latents.values if isinstance(latents, TopKLatents) else latents))


def _groups(clouds: Sequence[TokenCloud], encode: Encode, name: str) -> Iterator[list[TokenCloud]]:
    """Runs of clouds whose latents together stay within a quarter of a gigabyte."""
    one = clouds[0].points[:1]
    with torch.no_grad():
        latents = encode(one)
    check_latents(latents, one, name, 0)
    width = latents.shape[-1]
    size = max(1, _ENCODED_BYTES // (4 * max(1, width)))
    group: list[TokenCloud] = []
    for cloud in clouds:
        if group and sum(map(len, group)) + len(cloud) > size:
            yield group
            group = []
        group.append(cloud)
    yield group


def check_latents(latents: Latents, points: Tensor, name: str, level: float) -> None:
    """Refuse latents of another shape than one row a token, and values that are not finite."""
    if len(latents.shape) != 2 or len(latents) != len(points):
        raise ActivationError(
            f"encode of {name or 'the representation'} gave shape {tuple(latents.shape)} for {tuple(points.shape)}; "
            "allowed: [tokens, latents]."
        )
    if not torch.isfinite(latents.values if isinstance(latents, TopKLatents) else latents).all():
        raise ActivationError(
            f"latents of {name or 'the representation'} at noise {level:g} hold NaN or infinite values; "
            "check the activations and the encoder."
        )


def _check_sweep(noise_levels: Sequence[float], seeds: Sequence[int], modes: Sequence[int]) -> None:
    for what, given, is_allowed, allowed in (
        ("noise_levels", noise_levels, lambda s: math.isfinite(s) and s >= 0, "numbers of at least 0"),
        ("seeds", seeds, lambda _: True, "whole numbers"),
        ("modes", modes, lambda mode: mode in (0, 1, 2), "0 (prompt), 1 (position), 2 (feature)"),
    ):
        values = list(given)
        fits = values and all(map(is_allowed, values)) and len(set(values)) == len(values)
        require(fits, what, values, f"one or more of {allowed}, each once", ActivationError)
