"""Chapter 3 of a run: how noise moves the rank of every representation, and what that is worth as evidence."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from .artifacts import RunDirectory
from .files import digest, source_digest
from .rank_anatomy import covariance_root, only_distinct, shuffle_latents, subspace_drift, where_rank_moves
from .rank_verdicts import (
    EVERY_CONCEPT,
    ONE_RMS,
    STRONGEST,
    controls_table,
    ranks_at,
    stratification_table,
    tolerance_table,
)
from .stage1_activations import concept_activations, concepts_key
from .stage2_sae import coders_key, study_coders
from .stratification import MODES, Encode, measure_spectrum, sweep_clouds
from .token_grams import TokenCloud, cloud_grams, eigenvalues
from .worlds import false_alarm_and_sensitivity, rank_recovery

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float
    from torch import Tensor

DISTINCT = "/distinct"
ANATOMY = ("residual", "sae", "random_dictionary")
ANATOMY_SEEDS = 2
PLACE_RMS = 0.1
"""Where on the tensor the rank moves is shown at the level nearest to this share of the RMS."""


def _key(run: RunDirectory, *more: object) -> str:
    return digest([run.study.digest, concepts_key(run), coders_key(run), source_digest("stage3_stratification"), more])


def few_levels(run: RunDirectory, most: float = math.inf) -> tuple[float, ...]:
    """Noise zero and up to four other levels, spread evenly over the study's, the largest included.

    Of those up to ``most``; the smallest one if there is none.
    """
    first, *rest = run.study.noise_levels
    rest = [level for level in rest if level <= most] or rest[:1]
    step = -(-len(rest) // 4)
    return (first, *rest[::-1][::step][::-1])


def token_clouds(run: RunDirectory) -> list[TokenCloud]:
    """Unmasked tokens of every concept with their places in the tensor, on the run's device."""
    found = concept_activations(run)
    return [TokenCloud.of(a.residual.to(run.device), a.mask, concept) for concept, a in found.items()]


def representations(run: RunDirectory) -> dict[str, Encode]:
    """``residual`` (itself) and the study's coders, by name."""
    return {"residual": _itself, **{name: coder.encode for name, coder in study_coders(run).items()}}


def _itself(x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
    return x


def _swept(run: RunDirectory) -> pd.DataFrame:
    """Everything that one pass over noise gives: all representations, all tokens and distinct contexts, all
    tolerances. One part for each concept, so that an interrupted run resumes."""
    import pandas as pd

    clouds, key = token_clouds(run), _key(run)
    parts = {cloud.concept: f"parts/03_noise_rank_{i:03d}" for i, cloud in enumerate(clouds)}
    todo = [c for c in clouds if not run.is_fresh(f"tables/{parts[c.concept]}.csv", key)]
    # A few concepts at a time: one encoding serves them all, and what is finished is kept.
    for start in range(0, len(todo), 3):
        group = todo[start : start + 3]
        swept = _sweep(run, group, f"noise {start + 1}-{start + len(group)} of {len(todo)} concepts")
        for concept, part in swept.groupby("concept", sort=False):
            run.save_table(parts[concept], part, key)
    return pd.concat([run.table(name) for name in parts.values()], ignore_index=True)


def _sweep(run: RunDirectory, clouds: list[TokenCloud], description: str) -> pd.DataFrame:
    encoders = representations(run)
    derived = {"shuffled": ("sae", functools.partial(shuffle_latents, seed=run.study.seed))}
    derived |= {name + DISTINCT: (name, only_distinct) for name in ANATOMY if name in encoders}
    return sweep_clouds(
        clouds, encoders, noise_levels=run.study.noise_levels, seeds=run.study.seeds, derived=derived,
        measure=ranks_at(), description=description,
    )  # fmt: skip


def noise_rank_table(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_noise_rank``: ranks of every concept, representation, mode, noise level and seed.

    Representations: residual, sae, pca (as many components as reconstruct like the SAE), random_dictionary
    (as wide and as sparse as the SAE), shuffled (the SAE's latents with features permuted token by token).
    """

    def compute() -> pd.DataFrame:
        swept = _swept(run)
        whole = swept[~swept["representation"].str.endswith(DISTINCT)]
        return whole[[c for c in whole if not c.startswith("rank@")]]

    return run.cached_table("03_noise_rank", _key(run), compute)


def distinct_contexts(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_distinct``: the same sweep with one token for each distinct context (same columns)."""

    def compute() -> pd.DataFrame:
        swept = _swept(run)
        alone = swept[swept["representation"].str.endswith(DISTINCT)]
        alone = alone.assign(representation=alone["representation"].str.removesuffix(DISTINCT))
        return alone[[c for c in alone if not c.startswith("rank@")]]

    return run.cached_table("03_distinct", _key(run), compute)


def tolerance_sweep(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_tolerance``: the verdict of each concept, representation and mode at each tolerance."""

    def compute() -> pd.DataFrame:
        swept = _swept(run)
        return tolerance_table(swept[~swept["representation"].str.endswith(DISTINCT)])

    return run.cached_table("03_tolerance", _key(run), compute)


def stratification_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_stratification``: rank range, first noise level that changes it, verdict; the paper's rank test."""
    key = _key(run)
    return run.cached_table("03_stratification", key, lambda: stratification_table(noise_rank_table(run)))


def control_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_controls``: does the SAE's rank move more, or sooner, than its controls'? With intervals."""
    key = _key(run)
    return run.cached_table("03_controls", key, lambda: controls_table(noise_rank_table(run), seed=run.study.seed))


def on_manifold(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_on_manifold``: isotropic noise against noise shaped by the activations' covariance.

    Equal norm token by token; feature mode; every representation; four levels up to one RMS, the largest of them
    included, because that is how far an excursion is taken and where it is found; columns of ``03_noise_rank`` and
    kind (isotropic, on_manifold). Two seeds: excursions differ between concepts ten times as much as between seeds.
    """
    import pandas as pd

    def compute() -> pd.DataFrame:
        clouds, same, seeds = token_clouds(run), noise_rank_table(run), run.study.seeds[:ANATOMY_SEEDS]
        levels = few_levels(run, most=ONE_RMS * min(cloud.rms for cloud in clouds))
        shuffled = {"shuffled": ("sae", functools.partial(shuffle_latents, seed=run.study.seed))}
        parts = [
            sweep_clouds(
                [cloud], representations(run), noise_levels=levels, seeds=seeds, modes=(2,), derived=shuffled,
                noise_shape=covariance_root(cloud.points),
            )
            for cloud in clouds
        ]  # fmt: skip
        same = same[(same["mode"] == 2) & same["noise"].isin(levels) & same["seed"].isin(seeds)]
        return pd.concat(
            [same.assign(kind="isotropic"), *(part.assign(kind="on_manifold") for part in parts)], ignore_index=True
        )

    return run.cached_table("03_on_manifold", _key(run, "on_manifold"), compute)


def manifold_verdicts(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_manifold_controls``: the test against controls for each kind of noise, over all concepts, with the
    largest level that it looks at (largest_noise_rms).

    Under noise shaped like the activations the residual keeps the shape of its covariance by construction,
    so that the random dictionary is the control that counts.
    """
    import pandas as pd

    def compute() -> pd.DataFrame:
        table = on_manifold(run)
        parts = []
        for kind, part in table.groupby("kind", sort=False):
            found = controls_table(part, seed=run.study.seed)
            largest = float(part["noise_rms"].max())
            parts.append(found[found["concept"] == EVERY_CONCEPT].assign(kind=kind, largest_noise_rms=largest))
        return pd.concat(parts, ignore_index=True)

    key = _key(run, "on_manifold")
    return run.cached_table("03_manifold_controls", key, compute)


def drift(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_subspace_drift``: principal angles of each mode's leading subspace to noise zero."""
    names = representations(run)
    return run.cached_table(
        "03_subspace_drift", _key(run, "drift"),
        lambda: subspace_drift(
            token_clouds(run), {name: names[name] for name in ANATOMY}, noise_levels=few_levels(run),
            seeds=run.study.seeds[:ANATOMY_SEEDS], description="subspace drift",
        ),
    )  # fmt: skip


def where(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_where``: which prompts and positions gain rank, at the level nearest to a tenth of the RMS."""

    def compute() -> pd.DataFrame:
        clouds, names = token_clouds(run), representations(run)
        levels = [level for level in run.study.noise_levels if level > 0]
        level = min(levels, key=lambda s: abs(s / clouds[0].rms - PLACE_RMS))
        return where_rank_moves(clouds, {name: names[name] for name in ANATOMY}, level=level, seed=run.study.seed)

    return run.cached_table("03_where", _key(run, "where"), compute)


def sinks(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_sinks``: ranks without noise when one attention sink, or every sink, is left in the tensor.

    Columns concept, representation, mode, mode_name, kept (``masked``, ``one sink``, ``all sinks``), rank,
    effective_rank, sink_norm (of the largest masked token) and typical_norm (median of the unmasked).
    """

    def compute() -> pd.DataFrame:
        import pandas as pd

        encoders = {name: f for name, f in representations(run).items() if name in ("residual", "sae")}
        rows = []
        for concept, found in concept_activations(run).items():
            norms = found.residual.norm(dim=-1)
            hidden = ~found.mask & (norms > 0)
            if not hidden.any():
                continue
            one = found.mask.clone()
            one.view(-1)[norms.masked_fill(~hidden, 0).argmax()] = True
            all_of_them = found.mask | (hidden & (norms > 5 * norms[found.mask].median()))
            for kept, mask in (("masked", found.mask), ("one sink", one), ("all sinks", all_of_them)):
                cloud = TokenCloud.of(found.residual.to(run.device), mask, concept)
                for name, encode in encoders.items():
                    grams = cloud_grams(encode(cloud.points), cloud, range(len(MODES)))
                    spectra = eigenvalues([gram for gram, _, _ in grams.values()], [f for _, f, _ in grams.values()])
                    for (mode, (_, _, length)), spectrum in zip(grams.items(), spectra, strict=True):
                        measured = measure_spectrum(spectrum[:length])
                        rows.append({
                            "concept": concept, "representation": name, "mode": mode, "mode_name": MODES[mode],
                            "kept": kept, "rank": measured["rank"], "effective_rank": measured["effective_rank"],
                            "sink_norm": float(norms[hidden].max()),
                            "typical_norm": float(norms[found.mask].median()),
                        })  # fmt: skip
        return pd.DataFrame(rows)

    return run.cached_table("03_sinks", _key(run, "sinks"), compute)


def laboratory(run: RunDirectory, n_seeds: int = 200) -> pd.DataFrame:
    """Table ``03_laboratory``: false alarms and sensitivity of the verdicts on worlds whose answer is known."""
    key = digest([source_digest("worlds"), n_seeds])
    return run.cached_table("03_laboratory", key, lambda: false_alarm_and_sensitivity(n_seeds))


def recovery(run: RunDirectory) -> pd.DataFrame:
    """Table ``03_recovery``: prescribed multilinear ranks and what was measured."""
    return run.cached_table("03_recovery", digest([source_digest("worlds")]), rank_recovery)


def _largest_spread(tolerances: pd.DataFrame) -> float:
    """Largest ratio, over concepts, of the first noise levels that change one concept's rank at different tolerances.

    1 where the tolerance changes nothing; tolerances at which the rank never changes are left out.
    """
    first = tolerances.groupby("concept")["first_noise_rms"]
    largest = float((first.max() / first.min()).max())
    return 1.0 if math.isnan(largest) else largest


def gains_that_are_repeats(places: pd.DataFrame) -> tuple[int, int]:
    """Places of ``03_where`` that gain exactly as much rank as they have repeats, of all with a gain or a repeat."""
    gains, repeats = places["rank_gain"], places["n_tokens"] - places["n_distinct"]
    either = (gains != 0) | (repeats != 0)
    return int((gains == repeats)[either].sum()), int(either.sum())


def findings(run: RunDirectory) -> dict[str, object]:
    """The numbers that the chapter's sentences quote, by name, from the tables of this chapter.

    Counts are of concepts in the feature mode unless named otherwise.
    """
    import numpy as np

    ranks, distinct = stratification_verdicts(run), stratification_table(distinct_contexts(run))
    ranks, distinct = (t[t["mode"] == 2].set_index(["representation", "concept"]) for t in (ranks, distinct))
    places = where(run).query("axis == 'position' and representation == 'residual'")
    same, either = gains_that_are_repeats(places)
    tests = control_verdicts(run).query("concept == @EVERY_CONCEPT").set_index(["statistic", "control"])
    shaped = manifold_verdicts(run).query("kind == 'on_manifold' and statistic == 'excursion'").set_index("control")
    tolerances = tolerance_sweep(run).query("representation == 'sae' and mode == 2")
    turned = drift(run).query("mode == 2 and noise_rms <= 1")
    turned = turned[turned["noise"] == turned["noise"].max()].groupby("representation").mean(numeric_only=True)
    left = sinks(run).query("mode == 2 and representation == 'sae'").groupby("kept")["effective_rank"]
    sink_rank = left.apply(lambda r: float(np.exp(np.log(r).mean())))
    found: dict[str, object] = {
        "n_concepts": len(concept_activations(run)), "n_seeds": run.study.n_seeds,
        "contexts_explain": int(
            (ranks.loc["residual", "rank_clean"] == distinct.loc["residual", "rank_clean"]).sum()
        ),
        "gain_is_repeats": same, "gain_or_repeats": either,
        "tolerance_flips": int((tolerances.groupby("concept")["verdict"].nunique() > 1).sum()),
        "first_noise_spread": _largest_spread(tolerances),
        "shaped_noise_rms": float(shaped["largest_noise_rms"].iloc[0]),
        "drift_noise_rms": float(turned["noise_rms"].iloc[0]) if len(turned) else float("nan"),
        "sink_rank_masked": sink_rank.get("masked"), "sink_rank_one": sink_rank.get("one sink"),
    }  # fmt: skip
    for name in ANATOMY:
        found[f"stratified_{name}"] = int((ranks.loc[name, "verdict"] == "stratified").sum())
        found[f"stratified_distinct_{name}"] = int((distinct.loc[name, "verdict"] == "stratified").sum())
        if name in turned.index:
            found[f"drift_{name}"] = float(turned.loc[name, "angle_mean"])
            found[f"support_{name}"] = float(turned.loc[name, "support_kept"])
    for label, row in (
        ("more", tests.loc["excursion", STRONGEST]), ("residual", tests.loc["excursion", "residual"]),
        ("random", tests.loc["excursion", "random_dictionary"]), ("sooner", tests.loc["onset", STRONGEST]),
        ("shaped_random", shaped.loc["random_dictionary"]), ("shaped_residual", shaped.loc["residual"]),
    ):  # fmt: skip
        found |= {f"{label}_{field}": row[field] for field in ("difference", "low", "high", "p", "verdict")}
    return found
