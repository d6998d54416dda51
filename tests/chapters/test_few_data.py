"""Figures and findings of every chapter when a run has little: one concept, one seed, one word, no interval, no rows.

Whatever a study leaves out, they draw what there is, say what is missing, never raise, and never print ``nan``. Their
tables are those of the smoke study, cut down; ``SAEMA_TEST_TABLES`` names a folder of tables to take instead.
"""

from __future__ import annotations

import ast
import functools
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from saema_utils.chapters.across_models import figures as figures_8
from saema_utils.chapters.across_models import findings as findings_8
from saema_utils.chapters.across_models.tables import agreement
from saema_utils.chapters.activations import figures as figures_1
from saema_utils.chapters.activations import findings as findings_1
from saema_utils.chapters.families import figures as figures_9
from saema_utils.chapters.families import findings as findings_9
from saema_utils.chapters.families.measures import MEASURES, mean_over_concepts
from saema_utils.chapters.families.replicates import judged_claims
from saema_utils.chapters.found import Found
from saema_utils.chapters.geometry import figures as figures_4
from saema_utils.chapters.geometry import findings as findings_4
from saema_utils.chapters.intervention import figures as figures_5
from saema_utils.chapters.intervention import findings as findings_5
from saema_utils.chapters.replay import figures as figures_6
from saema_utils.chapters.replay import findings as findings_6
from saema_utils.chapters.sae import contexts as contexts_2
from saema_utils.chapters.sae import figures as figures_2
from saema_utils.chapters.sae import findings as findings_2
from saema_utils.chapters.scorecard import figures as figures_7
from saema_utils.chapters.scorecard import findings as findings_7
from saema_utils.chapters.scorecard.tables import card_in_brief
from saema_utils.chapters.stratification import figures as figures_3
from saema_utils.chapters.stratification import findings as findings_3
from saema_utils.evidence.claims import load_claims
from saema_utils.evidence.effects import coefficient_effects, effects
from saema_utils.evidence.geometry import compare_representations
from saema_utils.evidence.rank import EVERY_CONCEPT, controls_table, stratification_table
from saema_utils.evidence.replay import replay_signs
from saema_utils.evidence.replication import replication
from saema_utils.notebook import finding
from saema_utils.notebook import table as shown_table
from saema_utils.text.concepts import ConceptPrompts, Prompt

pytestmark = [pytest.mark.model, pytest.mark.slow]
CHAPTERS = Path(figures_1.__file__).parents[1]
CLAIMS = {claim.id: claim for claim in load_claims()}
LAYER = 15
LARGE = 99

# ---- little ------------------------------------------------------------------------------------------

# Columns that say where a row stands: a study may lack results, and still knows what it asked.
PLACES = {"noise", "noise_rms", "alpha", "coefficient", "level", "rtol", "scale", "kept", "truth", "margin", "upto"}
BOUNDS = re.compile(r"(^|_)(low|high|error|p|p_holm|p_value|joint_p|power|d|stated_error)$")


def one(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows of the first value of these columns, where the table has them."""
    for column in columns:
        if column in table and len(table):
            table = table[table[column].isin([table[column].iloc[0], EVERY_CONCEPT])]
    return table


def without_bounds(table: pd.DataFrame) -> pd.DataFrame:
    lost = [name for name in table if BOUNDS.search(name) and name not in PLACES]
    few = {name: 1 for name in ("n", "n_concepts", "n_prompts", "n_seeds") if name in table}
    said = {"sign": "no interval", "verdict": "too few units", "holds_up": "too few units"}
    judged = {name: word for name, word in said.items() if name in table and lost}
    return table.assign(**dict.fromkeys(lost, np.nan), **few, **judged)


def without_values(table: pd.DataFrame) -> pd.DataFrame:
    kinds = table.select_dtypes("float").columns
    return without_bounds(table).assign(**{name: np.nan for name in kinds if name not in PLACES})


CUTS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "all of it": lambda table: table,
    "one concept": lambda table: one(table, "concept"),
    "one concept, seed and run": lambda table: one(table, "concept", "seed", "run"),
    "one word, one sentence": lambda table: one(table, "concept", "word", "template"),
    "no interval": without_bounds,
    "no value": without_values,
    "no row": lambda table: table[:0],
}
# What is made from other tables is made again from what is left of them.
MADE: dict[str, Callable[[Tables], pd.DataFrame]] = {
    "03_controls": lambda t: controls_table(t["03_noise_rank"]),
    "03_stratification": lambda t: stratification_table(t["03_noise_rank"]),
    "04_comparison": lambda t: compare_representations(t["04_geometry"], t["04_merging"]),
    "05_coefficient_effects": lambda t: coefficient_effects(t["05_separability_training"]),
    "05_effects": lambda t: effects(
        *(t[name] for name in ("05_dose_response", "05_optimum", "05_language_model", "05_separability_training")),
        t["05_natural_variation"],
        t["05_beyond_scaling"],
    ),
    "06_replay_signs": lambda t: replay_signs(t["06_replay"]),
    "09_replication": lambda t: replication(t["09_replicates"], judged_claims()),
    "09_families": lambda t: mean_over_concepts(t["09_measures"], ["architecture", "seed"]).merge(
        t["09_training"].drop(columns="trials"), on=["architecture", "seed"], how="left"
    ),
}


ONCE: dict[tuple[str, str], tuple[pd.DataFrame, dict[str, pd.DataFrame]]] = {}


class Tables:
    """Tables of a finished run by name, each cut down in one way."""

    def __init__(self, read: Callable[[str], pd.DataFrame], cut: str):
        self.read, self.cut, self.taken = read, cut, {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name not in self.taken:
            if name not in MADE:
                found = self.read(name)
            elif self.cut.startswith(("one", "all of it")):
                found = self.made(name)
            else:
                found = Tables(self.read, "all of it").made(name)
            whole = self.cut == "all of it" or (name in MADE and self.cut.startswith("one"))
            self.taken[name] = found if whole else CUTS[self.cut](found)
        return self.taken[name].copy()

    def made(self, name: str) -> pd.DataFrame:
        """A table that is made from others, once for all cases."""
        if (self.cut, name) not in ONCE:
            inner = Tables(self.read, self.cut)
            ONCE[self.cut, name] = MADE[name](inner), inner.taken
        found, behind = ONCE[self.cut, name]
        self.taken |= behind
        return found

    @property
    def concept(self) -> str:
        return self.read("01_concepts")["concept"].iloc[0]


@pytest.fixture(scope="session")
def read(request) -> Callable[[str], pd.DataFrame]:
    given = os.environ.get("SAEMA_TEST_TABLES")
    if given:
        return functools.cache(lambda name: pd.read_csv(Path(given) / f"{name}.csv"))
    return functools.cache(request.getfixturevalue("smoke_run").run.table)


# ---- what takes stored tables ------------------------------------------------------------------------


def similarities(t: Tables) -> dict[str, pd.DataFrame]:
    """A frame a concept that has a map, of the cosines between the words' places in it."""
    found = {}
    for concept, rows in t["01_word_maps"].query("layer == @LAYER").groupby("concept"):
        places = rows[["x", "y"]].to_numpy()
        with np.errstate(invalid="ignore"):
            places = places / np.linalg.norm(places, axis=1, keepdims=True)
        found[concept] = pd.DataFrame(places @ places.T, rows["word"], rows["word"])
    return found


def prompts(t: Tables) -> dict[str, ConceptPrompts]:
    words = t.read("01_word_maps").groupby("concept")["word"].unique()
    return {c: ConceptPrompts(c, tuple(Prompt(w, w, "{}", c) for w in found)) for c, found in words.items()}


def curves(t: Tables) -> pd.DataFrame:
    return findings_5.with_parabola(t["05_dose_response"], t["05_optimum"])


def compared(t: Tables) -> pd.DataFrame:
    """Two runs, the second of which is another seed, so that there is something to compare."""
    found = t.read("08_comparison").assign(seed=0)
    mine = found[found["run"] == found["run"].iloc[0]]
    return CUTS[t.cut](pd.concat([mine, mine.assign(run="another", seed=1)], ignore_index=True))


def agreed(t: Tables) -> pd.DataFrame:
    return agreement(compared(t))


def cut_specs(t: Tables) -> pd.DataFrame:
    return t["07_multiverse"].astype({"primary": bool})


def verdicts(t: Tables) -> pd.DataFrame:
    return t["07_claims"][["claim", "holds_up"]].rename(columns={"holds_up": "smoke"})


CASES: dict[str, Callable[[Tables], Any]] = {
    # 1
    "activations.figures.norms_by_position": lambda t: figures_1.norms_by_position(t["01_norms"]),
    "activations.figures.variance_with_and_without_sink": lambda t: figures_1.variance_with_and_without_sink(
        t["01_sink_variance"]
    ),
    "activations.figures.word_circles": lambda t: figures_1.word_circles(t["01_word_maps"], LAYER),
    "activations.figures.word_circles_by_layer": lambda t: figures_1.word_circles_by_layer(t["01_word_maps"], LAYER),
    "activations.figures.order_by_layer": lambda t: figures_1.order_by_layer(t["01_word_maps"], LAYER),
    "activations.figures.similarity_matrices": lambda t: figures_1.similarity_matrices(similarities(t)),
    "activations.findings.sink_gap": lambda t: findings_1.sink_gap(t["01_norms"]),
    "activations.findings.first_components": lambda t: findings_1.first_components(t["01_sink_variance"]),
    "activations.findings.shared_part": lambda t: findings_1.shared_part(t["01_shared_part"]),
    "activations.findings.rings": lambda t: findings_1.rings(t["01_word_maps"], LAYER, prompts(t), {"months", "days"}),
    "activations.findings.neighbours_and_others": lambda t: findings_1.neighbours_and_others(similarities(t)),
    # 2
    "sae.figures.training_curve": lambda t: figures_2.training_curve(t["02_sae_training"], t.read("02_sae_eval")),
    "sae.figures.density_histogram": lambda t: figures_2.density_histogram(t["02_latent_density"]),
    "sae.figures.sparsity_frontier": lambda t: figures_2.sparsity_frontier(t["02_sparsity_curve"]),
    "sae.figures.cross_entropy": lambda t: figures_2.cross_entropy(t["02_sae_eval"]),
    "sae.figures.concept_heatmap": lambda t: figures_2.concept_heatmap(t["02_concept_latents"], t.concept),
    "sae.findings.reconstruction": lambda t: findings_2.reconstruction(t["02_sae_eval"], t["02_sae_training"]),
    "sae.findings.cost_to_the_model": lambda t: findings_2.cost_to_the_model(t["02_sae_eval"]),
    "sae.findings.frontier": lambda t: findings_2.frontier(t["02_sparsity_curve"], t.read("02_sae_eval")),
    "sae.findings.workload": lambda t: findings_2.workload(t["02_latent_density"]),
    "sae.findings.telling_latents": lambda t: findings_2.telling_latents(t["02_concept_latents"], t.concept),
    "sae.contexts.meaning_of_latents": lambda t: contexts_2.meaning_of_latents(t["02_contexts"], t.concept),
    # 3
    "stratification.figures.rank_against_noise": lambda t: figures_3.rank_against_noise(t["03_noise_rank"]),
    "stratification.figures.noise_kinds": lambda t: figures_3.noise_kinds(t["03_on_manifold"]),
    "stratification.figures.repeated_contexts": lambda t: figures_3.repeated_contexts(
        t["03_noise_rank"], t["03_distinct"], t.concept
    ),
    "stratification.figures.drift_curves": lambda t: figures_3.drift_curves(t["03_subspace_drift"]),
    "stratification.figures.sink_ranks": lambda t: figures_3.sink_ranks(t["03_sinks"]),
    "stratification.figures.tolerance_map": lambda t: figures_3.tolerance_map(t["03_tolerance"]),
    "stratification.figures.gain_against_repeats": lambda t: figures_3.gain_against_repeats(t["03_where"]),
    "stratification.figures.noise_units": lambda t: figures_3.noise_units(t["03_noise_rank"]),
    "stratification.figures.advantage_forest": lambda t: figures_3.advantage_forest(t["03_controls"]),
    "stratification.findings.rank_by_sinks": lambda t: findings_3.rank_by_sinks(t["03_sinks"]),
    "stratification.findings.stratified_concepts": lambda t: findings_3.stratified_concepts(t["03_stratification"]),
    "stratification.findings.gains_that_are_repeats": lambda t: findings_3.gains_that_are_repeats(t["03_where"]),
    "stratification.findings.tolerances_matter": lambda t: findings_3.tolerances_matter(t["03_tolerance"]),
    "stratification.findings.advantages": lambda t: findings_3.advantages(t["03_controls"]),
    "stratification.findings.keeps_its_place": lambda t: findings_3.keeps_its_place(t["03_subspace_drift"]),
    "stratification.findings.drift_near_one_rms": lambda t: findings_3.drift_near_one_rms(t["03_subspace_drift"]),
    # 4
    "geometry.figures.circle_grid": lambda t: figures_4.circle_grid(t["04_circle_points"], t["04_circles"]),
    "geometry.figures.map_of_tokens": lambda t: figures_4.map_of_tokens(t["04_map"], t.concept),
    "geometry.figures.map_of_words": lambda t: figures_4.map_of_words(t["04_word_map"], t.concept),
    "geometry.figures.merging_dots": lambda t: figures_4.merging_dots(t["04_merging"]),
    "geometry.figures.dimension_intervals": lambda t: figures_4.dimension_intervals(t["04_geometry"]),
    "geometry.figures.persistence_diagrams": lambda t: figures_4.persistence_diagrams(t["04_persistence"], t.concept),
    "geometry.figures.comparison_forest": lambda t: figures_4.comparison_forest(t["04_comparison"]),
    "geometry.figures.word_change_intervals": lambda t: figures_4.word_change_intervals(t["04_uncertainty"]),
    "geometry.figures.numbers_by_seed": lambda t: figures_4.numbers_by_seed(t["04_geometry"]),
    "geometry.figures.map_to_hover": lambda t: figures_4.map_to_hover(
        pd.concat([t["04_map"], t["04_map_random"]]), t.concept
    ),
    "geometry.findings.significant_circles": lambda t: findings_4.significant_circles(t["04_circles"]).in_short(),
    "geometry.findings.change": lambda t: findings_4.change(t["04_comparison"], "words", "ami"),
    "geometry.findings.cluster_agreement": lambda t: findings_4.cluster_agreement(t["04_merging"]),
    "geometry.findings.follow_texts": lambda t: findings_4.follow_texts(t["04_merging"], t["04_geometry"]),
    "geometry.findings.share_of_copies": lambda t: findings_4.share_of_copies(t["04_geometry"]),
    "geometry.findings.seed_spread": lambda t: findings_4.seed_spread(t["04_geometry"]),
    "geometry.findings.clusters_by_words": lambda t: findings_4.clusters_by_words(t["04_geometry"], 4),
    "geometry.findings.fresh_merges": lambda t: findings_4.fresh_merges(t["04_merged_words"]),
    "geometry.findings.moved_trees": lambda t: findings_4.moved_trees(t["04_uncertainty"], "sae"),
    "geometry.findings.words_shape": lambda t: findings_4.words_shape(t["04_geometry"]),
    # 5
    "intervention.figures.dose_curves": lambda t: figures_5.dose_curves(curves(t), t["05_optimum"]),
    "intervention.figures.misleading_correlation": lambda t: figures_5.misleading_correlation(
        curves(t), t["05_correlation"], t.concept
    ),
    "intervention.figures.search_courses": lambda t: figures_5.search_courses(t["05_optimised"]),
    "intervention.figures.spliced_effects": lambda t: figures_5.spliced_effects(t["05_language_model"]),
    "intervention.figures.training_changes": lambda t: figures_5.training_changes(t["05_separability_training"]),
    "intervention.figures.natural_variation": lambda t: figures_5.natural_variation(t["05_natural_variation"]),
    "intervention.figures.gaming": lambda t: figures_5.gaming(t["05_gaming"]),
    "intervention.figures.reversed_cause": lambda t: figures_5.reversed_cause(t["05_reversed_cause"]),
    "intervention.figures.effect_forest": lambda t: figures_5.effect_forest(t["05_effects"]),
    "intervention.figures.dose_explorer": lambda t: figures_5.dose_explorer(curves(t), t["05_planes"]),
    "intervention.findings.with_parabola": curves,
    "intervention.findings.mean_by_arm": lambda t: findings_5.mean_by_arm(t["05_optimum"], "gain"),
    "intervention.findings.sides": lambda t: findings_5.sides(t["05_correlation"]),
    "intervention.findings.search_costs": lambda t: findings_5.search_costs(t["05_optimised"]),
    "intervention.findings.costs_at_the_word": lambda t: findings_5.costs_at_the_word(t["05_language_model"]),
    "intervention.findings.at_largest_coefficient": lambda t: findings_5.at_largest_coefficient(
        t["05_coefficient_effects"]
    ),
    "intervention.findings.gaming_ratios": lambda t: findings_5.gaming_ratios(t["05_gaming"]),
    "intervention.findings.size_was_bought": lambda t: findings_5.size_was_bought(t["05_gaming"]),
    "intervention.findings.reward_buys_separation": lambda t: findings_5.reward_buys_separation(
        t["05_coefficient_effects"]
    ),
    "intervention.findings.whom_the_reward_serves": lambda t: findings_5.whom_the_reward_serves(
        t["05_training_choices"]
    ),
    "intervention.findings.natural_relation": lambda t: findings_5.natural_relation(t["05_natural_variation"]),
    "intervention.findings.reversed_changes": lambda t: findings_5.reversed_changes(t["05_reversed_cause"]),
    "intervention.findings.verdict_counts": lambda t: findings_5.verdict_counts(t["05_effects"]),
    # 6
    "replay.figures.signs_forest": lambda t: figures_6.signs_forest(t["06_replay_signs"]),
    "replay.figures.steps_forest": lambda t: figures_6.steps_forest(t["06_replay_signs"]),
    "replay.figures.correlations_strip": lambda t: figures_6.correlations_strip(t["06_replay_correlations"]),
    "replay.figures.one_walk": lambda t: figures_6.one_walk(findings_6.first_walk(t["06_replay_steps"])),
    "replay.findings.come_back": lambda t: findings_6.come_back(t["06_replay_signs"], "sae", ["n_local"]),
    "replay.findings.shown_too": lambda t: findings_6.shown_too(t["06_replay_signs"], "sae", "random_dictionary"),
    "replay.findings.makes_the_sign": lambda t: findings_6.makes_the_sign(
        t["06_replay_signs"], "mst_weight", "embedding"
    ),
    "replay.findings.choice_relates": lambda t: findings_6.choice_relates(t["06_replay_correlations"]),
    "replay.findings.how_far_poles_move": lambda t: findings_6.how_far_poles_move(t["06_replay_steps"]),
    # 7
    "scorecard.figures.laboratory_curves": lambda t: figures_7.laboratory_curves(t["07_laboratory"]),
    "scorecard.figures.specification_curve": lambda t: figures_7.specification_curve(
        cut_specs(t), CLAIMS["more-dimensions"]
    ),
    "scorecard.figures.multiverse_curves": lambda t: figures_7.multiverse_curves(cut_specs(t)),
    "scorecard.figures.choices_map": lambda t: figures_7.choices_map(t["07_choices"]),
    "scorecard.figures.claims_forest": lambda t: figures_7.claims_forest(t["07_claims"]),
    "scorecard.figures.verdict_grid": lambda t: figures_7.verdict_grid(verdicts(t)),
    "scorecard.findings.rules_measure": lambda t: findings_7.rules_measure(t["07_laboratory"]),
    "scorecard.findings.rules_say_no": lambda t: findings_7.rules_say_no(t["07_laboratory"]),
    "scorecard.findings.rules_ask_what_was_learned": lambda t: findings_7.rules_ask_what_was_learned(
        t["07_laboratory"]
    ),
    "scorecard.findings.circle_stays": lambda t: findings_7.circle_stays(t["04_circles"], t["07_claims"]),
    "scorecard.findings.agreement": lambda t: findings_7.agreement(cut_specs(t)),
    "scorecard.findings.hang_most_and_least": lambda t: findings_7.hang_most_and_least(cut_specs(t)),
    "scorecard.findings.analyses_agree": lambda t: findings_7.analyses_agree(cut_specs(t)),
    "scorecard.findings.one_choice_turns": lambda t: findings_7.one_choice_turns(cut_specs(t), CLAIMS),
    "scorecard.findings.both_ways": lambda t: findings_7.both_ways(cut_specs(t)),
    "scorecard.findings.moves_more": lambda t: findings_7.moves_more(t["07_choices"], ("centring",), "prompts"),
    "scorecard.findings.evidence_by_claim": lambda t: findings_7.evidence_by_claim(
        cut_specs(t), t.read("07_multiverse_in_short"), CLAIMS
    ),
    "scorecard.findings.none_supported": lambda t: findings_7.none_supported(t["07_claims"]),
    "scorecard.findings.come_back": lambda t: findings_7.come_back(t["07_claims"]),
    "scorecard.findings.would_be_seen": lambda t: findings_7.would_be_seen(t["07_claims"]),
    "scorecard.findings.words_are_harder": lambda t: findings_7.words_are_harder(t["07_claims"]),
    "scorecard.tables.card_in_brief": lambda t: card_in_brief(t["07_claims"]),
    # 8
    "across_models.figures.by_run": lambda t: figures_8.by_run(compared(t)),
    "across_models.figures.effects_by_run": lambda t: figures_8.effects_by_run(compared(t)),
    "across_models.figures.sae_quality": lambda t: figures_8.sae_quality(compared(t)),
    "across_models.figures.agreement_forest": lambda t: figures_8.agreement_forest(
        compared(t), agreed(t), ["rank-moves-more", "more-dimensions"]
    ),
    "across_models.figures.effects_along": lambda t: figures_8.effects_along(compared(t), "layer"),
    "across_models.figures.sweep_figure": lambda t: figures_8.sweep_figure(compared(t), ["seed"]),
    "across_models.findings.beyond_chance": lambda t: findings_8.beyond_chance(compared(t)),
    "across_models.findings.all_beyond_chance": lambda t: findings_8.all_beyond_chance(compared(t)),
    "across_models.findings.pointing_apart": lambda t: findings_8.pointing_apart(compared(t)),
    "across_models.findings.training_parts_the_models": lambda t: findings_8.training_parts_the_models(compared(t)),
    "across_models.findings.disagreeing": lambda t: findings_8.disagreeing(agreed(t)),
    # 9
    "families.figures.sparsity_dots": lambda t: figures_9.sparsity_dots(t["09_training"]),
    "families.figures.family_strips": lambda t: figures_9.family_strips(t["09_families"]),
    "families.figures.families_or_seeds": lambda t: figures_9.families_or_seeds(
        findings_9.family_spread(t["09_families"], [*MEASURES, "explained_variance"])
    ),
    "families.figures.over_depth": lambda t: figures_9.over_depth(t["09_layers"], LAYER),
    "families.findings.sparsity_match": lambda t: findings_9.sparsity_match(t["09_training"]),
    "families.findings.gaps_of_families": lambda t: findings_9.in_ranges(findings_9.gaps_of_families(t["09_families"])),
    "families.findings.gaps_over_layers": lambda t: findings_9.in_ranges(findings_9.gaps_over_layers(t["09_layers"])),
    "families.findings.lower_at_every_depth": lambda t: findings_9.lower_at_every_depth(t["09_layers"]),
    "families.findings.excursion_by_recipe": lambda t: findings_9.excursion_by_recipe(t["09_families"], t["09_layers"]),
    "families.findings.best_dose": lambda t: findings_9.best_dose(t["09_families"]),
    "families.figures.replication_forest": lambda t: figures_9.replication_forest(
        t["09_replication"], t["09_replicates"]
    ),
    "families.findings.replication_in_brief": lambda t: findings_9.replication_in_brief(t["09_replication"]),
    "families.findings.none_for_the_next": lambda t: findings_9.none_for_the_next(t["09_replication"]),
    "families.findings.what_differs_most": lambda t: findings_9.what_differs_most(t["09_replication"]),
    "families.findings.margins_beyond_starts": lambda t: findings_9.margins_beyond_starts(t["09_replication"]),
    "families.findings.family_spread": lambda t: findings_9.family_spread(t["09_families"], list(MEASURES)),
}
# What takes no stored table, or is called by one of the above.
OTHERS = {
    "activations": {"ring"},
    "sae": {"features_found", "known_features"},
    "stratification": {"toy_spectra", "recovered_by_noise", "flagged_by_test"},
    "geometry": {"ruler_facts"},
    "intervention": {"closed_form", "edit_names"},
    "replay": {
        "signs_of",
        "in_words",
        "what_a_step_moves",
        "mean_correlations",
        "first_walk",
        "what_is_measured",
        "unrelated_walks",
    },
    "scorecard": {"in_margins", "draw_intervals", "rule_by_example", "said_alone", "one_choice_away"},
    "across_models": {"null_spread", "alarms"},
    "families": {"in_ranges"},
}


def test_no_figure_and_no_finding_is_left_out():
    for folder, others in OTHERS.items():
        for module in ("figures", "findings"):
            tree = ast.parse((CHAPTERS / folder / f"{module}.py").read_text())
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            names = {name for name in names if not name.startswith("_")} - others
            tried = {case.split(".")[-1] for case in CASES if case.startswith(f"{folder}.{module}.")}
            assert names == tried, (folder, module)


def texts_of(found: Any) -> list[str]:
    """Every text that a page would show of a figure, a finding, a line or a table."""
    if isinstance(found, Figure):
        found.set_layout_engine("none")  # which takes longest, and has nothing to say
        found.draw_without_rendering()
        texts = [text for text in found.findobj(Text) if text.get_visible() and text.get_text().strip()]
        smallest = min((text.get_fontsize() for text in texts), default=LARGE)
        # A page shows a figure 670 pixels wide, a phone 560 that one can push: letters of 9 and 7 pixels at least.
        assert smallest >= 72 * found.get_figwidth() / 74, f"letters of {smallest} points are too small on a page"
        return [text.get_text() for text in texts]
    if isinstance(found, Found):
        return [found.shows, finding("This holds.", holds=found.holds, shows=found.shows).data]
    if isinstance(found, pd.Series):
        found = found.rename("value").reset_index()
    if isinstance(found, pd.DataFrame):
        return [shown_table(found).data]
    if hasattr(found, "to_plotly_json"):
        controls = [*found.layout.updatemenus, *found.layout.sliders]
        steps = [step for control in controls for step in control["buttons" if "buttons" in control else "steps"]]
        changed = [name for step in steps if isinstance(step.args[0], dict) for name in step.args[0]["name"]]
        written = [note.text for note in found.layout.annotations] + [trace.name or "" for trace in found.data]
        return [*written, *changed, *(step.label for step in steps)]
    if isinstance(found, dict):
        return [finding("This holds.", holds=True, shows=findings_3.in_short(found)).data]
    return [finding("This holds.", holds=True, shows=str(found)).data]


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("case", CASES)
def test_little_is_drawn_and_told_without_a_number_that_is_not_there(read, case):
    whole = Tables(read, "all of it")
    found = {"all of it": texts_of(CASES[case](whole))}
    for cut, change in CUTS.items():
        if any(not change(table).equals(table) for table in whole.taken.values()):
            try:
                found[cut] = texts_of(CASES[case](Tables(read, cut)))
            except Exception as error:
                raise AssertionError(f"{case} with {cut}: {error!r}") from error
    for cut, texts in found.items():
        wrong = [text for text in texts if re.search(r"\bnan\b", text, re.IGNORECASE)]
        assert not wrong, (cut, wrong)


def standing_on_each_other(words: list[Text]) -> list[tuple[str, str]]:
    """Pairs of words whose boxes meet."""
    boxes = [(word.get_text(), word.get_window_extent().padded(-1)) for word in words if word.get_text().strip()]
    return [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]


@pytest.mark.parametrize("case", [case for case in CASES if ".figures." in case])
def test_no_word_in_a_figure_stands_on_another_and_numbers_are_written_as_in_prose(read, case):
    figure = CASES[case](Tables(read, "all of it"))
    if isinstance(figure, Figure):
        figure.draw_without_rendering()
        said = [text.get_text() for text in figure.findobj(Text) if "mathdefault" not in text.get_text()]
        assert [text for text in said if re.search(r"(?<![\w.])-\.?\d|\de[-+]\d|\d%", text)] == []
        for axes in (axes for axes in figure.axes if axes.get_visible()):
            words = [text for text in axes.texts if text.get_text().strip()]
            assert standing_on_each_other(words) == []
            for axis in (axes.xaxis, axes.yaxis):
                ticks = axis.get_ticklabels()  # slanting ones fill little of their boxes
                assert standing_on_each_other([tick for tick in ticks if tick.get_rotation() % 90 == 0]) == []
