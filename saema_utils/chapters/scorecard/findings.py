"""What chapter 7 finds: whether its rules measure, what hangs on the analysis, and what is left of the claims."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import pandas as pd

from saema_utils.chapters.found import NOTHING, Count, Found, in_short, of_rows
from saema_utils.chapters.geometry.findings import significant_circles
from saema_utils.chapters.geometry.tables import circles_table as circles_table
from saema_utils.evidence.claims import Claim
from saema_utils.evidence.multiverse import ITSELF, LEAD, evidence_of
from saema_utils.evidence.multiverse import joint_test as joint_test
from saema_utils.evidence.verdicts import NO_EFFECT, NOT_LEARNED, SUPPORTED, VERDICTS, Evidence, lies
from saema_utils.evidence.verdicts import judge as judge
from saema_utils.rulers.rules import AS_LARGE
from saema_utils.statistics import with_interval

SELDOM, MOSTLY = 0.05, 0.8
REPLAYED = ("yes", "no")

# ---- does the ruler measure? --------------------------------------------------------------------


def rules_measure(laboratory: pd.DataFrame, seen: float = 2) -> Found:
    """Whether each rule hardly ever supports an effect that is not there, and mostly one of ``seen`` margins.

    None without both truths. The line names the rules that fail.
    """
    fair = laboratory[laboratory["control"] != AS_LARGE]
    nothing, much = (fair[fair["truth"] == truth].set_index("rule")[SUPPORTED] for truth in (0, seen))
    if nothing.empty or much.empty:
        return Found(None, "")
    lax, deaf = list(nothing[nothing > SELDOM].index), list(much[much < MOSTLY].index)
    shows = f"without an effect at most {nothing.max():.0%} · at {seen:g} margins at least {much.min():.0%}"
    wrong = ", ".join(dict.fromkeys(lax + deaf))
    return Found(not wrong, shows + (f" · not so: {wrong}" if wrong else ""))


def rules_say_no(laboratory: pd.DataFrame) -> Found:
    """Whether each rule mostly finds *no effect* where there is none; None without such a world."""
    nothing = laboratory[laboratory["truth"] == 0].set_index("rule")[NO_EFFECT]
    if nothing.empty:
        return Found(None, "")
    mute = ", ".join(nothing[nothing < MOSTLY].index)
    return Found(not mute, f"{NO_EFFECT}: at least {nothing.min():.0%}" + (f" · not so: {mute}" if mute else ""))


def rules_ask_what_was_learned(laboratory: pd.DataFrame) -> Found:
    """Whether an effect that a control which learned nothing shows as well is hardly ever supported."""
    rows = laboratory[laboratory["control"] == AS_LARGE].set_index("rule")
    if rows.empty:
        return Found(None, "")
    shows = f"supported at most {rows[SUPPORTED].max():.0%} · {NOT_LEARNED} {rows[NOT_LEARNED].mean():.0%} on average"
    return Found(bool((rows[SUPPORTED] <= SELDOM).all()), shows)


# ---- what hangs on the analysis? ----------------------------------------------------------------


def said_alone(specs: pd.DataFrame, contrast: str = ITSELF) -> pd.DataFrame:
    """The analyses of one contrast, in margins, with what each would say by itself.

    Returns
    -------
    Rows of ``07_multiverse`` that have an interval; estimate, low and high turned and in margins; a new column
    ``alone``: where its interval lies (above, within, below or across the margins).
    """
    rows = specs[(specs["contrast"] == contrast) & np.isfinite(specs["low"]) & np.isfinite(specs["high"])]
    sized = rows[["estimate", "low", "high"]].div(rows["margin"], axis=0)
    ends = np.sort(sized[["low", "high"]].to_numpy(), axis=1)  # a margin below zero turns an interval round
    found = rows.assign(estimate=sized["estimate"], low=ends[:, 0], high=ends[:, 1])
    return found.assign(alone=[lies(low, high, -1, 1) for low, high in ends])


def agreement(specs: pd.DataFrame) -> pd.Series:
    """Of each claim's analyses the share that say by themselves what most of them say; the least agreed on first."""
    alone = said_alone(specs)
    shares = alone.groupby("claim", sort=False)["alone"].agg(lambda said: said.value_counts(normalize=True).iloc[0])
    return shares.sort_values(kind="stable")


def hang_most_and_least(specs: pd.DataFrame) -> tuple[str, str]:
    """The claim on which its analyses agree least, and the one on which they agree most.

    The first and the last of all claims where no analysis has an interval.
    """
    names = list(agreement(specs).index) or list(specs["claim"].unique()) or [""]
    return str(names[0]), str(names[-1])


def analyses_agree(specs: pd.DataFrame) -> Found:
    """Whether the analyses of some claim agree with each other no more than by half; None without any."""
    shares = agreement(specs)
    if shares.empty:
        return Found(None, "")
    ends = {name: shares[name] for name in hang_most_and_least(specs)}
    return Found(bool(shares.iloc[0] <= 0.5), f"say the same: {in_short(ends, '.0%')}")


def one_choice_away(specs: pd.DataFrame, claims: Mapping[str, Claim]) -> dict[str, set[str]]:
    """By claim, what is said by the named analysis and by those that differ from it in one choice.

    Claims whose named analysis has no interval are left out.
    """
    alone, found = said_alone(specs), {}
    for name, claim in claims.items():
        rows = alone[alone["claim"] == name]
        ways = rows[list(claim.primary)].astype(object).fillna("")  # an empty way comes back from a file as missing
        named = ways[rows["primary"].astype(bool)]
        if len(named):
            found[name] = set(rows.loc[(ways != named.iloc[0]).sum(axis=1) <= 1, "alone"])
    return found


def one_choice_turns(specs: pd.DataFrame, claims: Mapping[str, Claim]) -> Found:
    """Whether for most claims another way of one single choice would say something else."""
    turned = {name: len(said) > 1 for name, said in one_choice_away(specs, claims).items()}
    count = Count.true(turned.values())
    return Found(2 * count.n > count.of if count.of else None, f"{count} claims")


def both_ways(specs: pd.DataFrame) -> Found:
    """Whether some claim has analyses that would support it and others that would contradict it."""
    said = said_alone(specs).groupby("claim", sort=False)["alone"].agg(set)
    both = [str(name) for name, found in said.items() if {"above", "below"} <= found]
    return Found(bool(both) if len(said) else None, ", ".join(both) or "none")


def moves_more(choices: pd.DataFrame, these: Iterable[str], than: str) -> Found:
    """Whether each of some choices explains more of the spread of estimates than another, on the claims that have both.

    Shares of a claim's effect itself are compared; None where no claim has the two.
    """
    shares = choices[choices["contrast"] == ITSELF].pivot_table(index="claim", columns="choice", values="share")
    wins, shown = [], {}
    for name in (*these, than):
        if name not in shares or than not in shares:
            return Found(None, "")
        both = shares.dropna(subset=list(dict.fromkeys((name, than))))
        shown[name] = both[name].mean()
        wins.append(name == than or bool(both[name].mean() > both[than].mean()))
    return Found(all(wins), in_short(shown, ".0%"))


# ---- what is left? ------------------------------------------------------------------------------


def evidence_by_claim(
    specs: pd.DataFrame, short: pd.DataFrame, claims: Mapping[str, Claim]
) -> dict[str, tuple[Evidence, Evidence | None]]:
    """What is judged of each claim: the evidence for its effect, and for its lead over a control (None without one)."""
    return {
        name: (evidence_of(specs, short, claim, ITSELF), evidence_of(specs, short, claim, LEAD))
        for name, claim in claims.items()
    }


def none_supported(card: pd.DataFrame) -> Found:
    """Whether no claim holds up; None where most lack the units to be judged."""
    counts = card["holds_up"].value_counts().reindex(VERDICTS, fill_value=0)
    shows = f"of {len(card)}: " + " · ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    lacking = (card["n"] < card["minimum_n"]).sum()
    return Found(bool(counts[SUPPORTED] == 0) if 2 * lacking <= len(card) else None, shows)


def come_back(card: pd.DataFrame) -> Found:
    """Whether most measures of the paper that were replayed show what the paper says; None where none was."""
    replayed = card[card["reproduces"].isin(REPLAYED)]
    back = Count.true(replayed["reproduces"] == "yes")
    others = ", ".join(replayed.loc[replayed["reproduces"] == "no", "claim"])
    return Found(
        2 * back.n > back.of if back.of else None,
        f"{back} measures of the paper" + (f" · not {others}" if others else ""),
    )


def would_be_seen(card: pd.DataFrame) -> Found:
    """Whether for most claims an effect of twice the margin would mostly have been seen with units as these."""
    known = card["power"].dropna()
    count = Count.true(known >= MOSTLY)
    blind = ", ".join(card.loc[card["power"] < MOSTLY, "claim"])
    shows = f"{count} claims" + (f" · not {blind}" if blind else "")
    return Found(2 * count.n > count.of if count.of else None, shows)


@of_rows
def circle_stays(circles: pd.DataFrame, card: pd.DataFrame, cycles: Collection[str] = ("months", "days")) -> Found:
    """Whether these cycles of ``04_circles`` keep their circle in the latents and in a random dictionary, and that what
    was learned bends circles is not supported; None where one of them, or the claim, was not measured."""
    rows = card[card["claim"] == "circle-lost"]
    if rows.empty or not set(cycles) <= set(circles["concept"]):
        return Found(None, NOTHING)
    claim, found = rows.iloc[0], significant_circles(circles)
    stays = {code: Count.true(name in found.kept(code) for name in cycles) for code in ("sae", "random_dictionary")}
    effect = with_interval(*claim[["estimate", "low", "high"]], "+.2f")
    bent = f"circles of {claim['n']} cycles bent by {effect}, margin {claim['margin']:+.2g}: {claim['holds_up']}"
    holds = all(count.all for count in stays.values()) and claim["holds_up"] != SUPPORTED
    return Found(holds, f"kept: {in_short(stays)} · {bent}")


@of_rows
def words_are_harder(card: pd.DataFrame) -> Found:
    """Whether the SAE explains less of what the claims are about than of held-out running text."""
    names = {"words": "words of the concepts", "tokens": "all their tokens", "text": "running text"}
    found = {shown: card[f"explained_variance_{name}"].iloc[0] for name, shown in names.items()}
    words, _, text = found.values()
    known = np.isfinite([words, text]).all()
    return Found(bool(words < text) if known else None, f"explained variance: {in_short(found, '.2f')}")
