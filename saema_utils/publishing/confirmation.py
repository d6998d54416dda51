"""The confirmatory card beside the exploratory one: what a model says that the rules had not seen.

Both are committed in ``book/``, since the second model is not everybody's. The sentences were written by a person who
had seen both; whether they hold is read from the cards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saema_utils.errors import BookError
from saema_utils.statistics import with_interval
from saema_utils.wording import in_prose, signed

if TYPE_CHECKING:
    import pandas as pd

    from saema_utils.chapters.found import Found

CLAIMS, CONFIRMATORY = "book/default_claims.csv", "book/confirmatory_claims.csv"
NOT_YET = "*(Both cards stand here once the confirmatory study has run.)*"


def read_card(path: Path) -> pd.DataFrame:
    """The scorecard of a run.

    Raises
    ------
    BookError
        If its verdicts are of other rules than these.
    """
    import pandas as pd

    card = pd.read_csv(path)
    if "holds_up" not in card:
        raise BookError(f"{path} was judged by other rules. Run chapter 7 again.")
    return card


# ---- what both say ---------------------------------------------------------------------------------


def none_on_either(explored: pd.DataFrame, confirmed: pd.DataFrame) -> Found:
    """Whether no claim is supported on either model."""
    from saema_utils.chapters.found import Found
    from saema_utils.evidence.verdicts import SUPPORTED

    counts = [int((card["holds_up"] == SUPPORTED).sum()) for card in (explored, confirmed)]
    return Found(
        not any(counts), f"supported: {counts[0]} of {len(explored)} claims, and {counts[1]} of {len(confirmed)}"
    )


def contraction_is_not_learned(explored: pd.DataFrame, confirmed: pd.DataFrame) -> Found:
    """Whether on both models poles contract in place, and no more than for a random dictionary."""
    from saema_utils.chapters.found import Found
    from saema_utils.evidence.verdicts import NOT_LEARNED

    rows = [card.loc["compression-in-place"] for card in (explored, confirmed)]
    return Found(
        all(row["holds_up"] == NOT_LEARNED for row in rows),
        "log of the poles' distance, reconstruction minus residual: " + ", and ".join(map(_effect, rows)),
    )


def words_lose_distinction(explored: pd.DataFrame, confirmed: pd.DataFrame) -> Found:
    """Whether the claim of the abstract's main verb is contradicted on the second model, and supported on neither."""
    from saema_utils.chapters.found import Found
    from saema_utils.evidence.verdicts import CONTRADICTED, SUPPORTED

    first, second = (card.loc["distinctions"] for card in (explored, confirmed))
    return Found(
        second["holds_up"] == CONTRADICTED and first["holds_up"] != SUPPORTED,
        f"share of scatter between words: {_effect(first)}, and {_effect(second)}",
    )


def few_of_the_words_are_explained(explored: pd.DataFrame, confirmed: pd.DataFrame) -> Found:
    """Whether both autoencoders explain less of the words that are measured than of running text."""
    from saema_utils.chapters.found import Found

    words, text = (
        [card[f"explained_variance_{place}"].iloc[0] for card in (explored, confirmed)] for place in ("words", "text")
    )
    return Found(
        all(word < running for word, running in zip(words, text, strict=True)),
        f"explained variance of words {words[0]:.2f}, and {words[1]:.2f} · of running text {text[0]:.2f}, "
        f"and {text[1]:.2f}",
    )


SENTENCES: tuple[tuple[str, Callable[[pd.DataFrame, pd.DataFrame], Found]], ...] = (
    ("No claim is supported on either model.", none_on_either),
    (
        "On both models what the autoencoder gives back has its poles closer together, and on both a random dictionary "
        "does as much.",
        contraction_is_not_learned,
    ),
    (
        "Sparse coding does not amplify the distinctions between words; on the second model it takes some away.",
        words_lose_distinction,
    ),
    (
        "Both autoencoders explain less of the words than of running text, and what they leave out no verdict can see.",
        few_of_the_words_are_explained,
    ),
)


def both_cards(root: Path) -> str:
    """The sentences with their numbers (the first model's first), and the two scorecards claim by claim."""
    import pandas as pd

    from saema_utils.notebook import finding, table

    if not (root / CONFIRMATORY).exists():
        return NOT_YET
    explored, confirmed = _cards(root)
    found = [(sentence, check(explored, confirmed)) for sentence, check in SENTENCES]
    lines = [f"- {finding(sentence, holds=of.holds, shows=of.shows).data}" for sentence, of in found]
    both = {
        "claim": explored["statement"],
        "exploratory: SmolLM2-135M": explored.apply(_verdict, axis="columns"),
        "confirmatory: Gemma 3 270M": confirmed.apply(_verdict, axis="columns").reindex(explored.index),
        "margin": explored["margin"],
    }
    return "\n".join([*lines, "", table(pd.DataFrame(both), html_columns=tuple(both)[1:3]).data])


def on_a_second_model(root: Path) -> str:
    """What the confirmatory study says: its verdicts counted, and in how many claims they are the exploratory ones."""
    if not (root / CONFIRMATORY).exists():
        return ""
    from saema_utils.evidence.verdicts import SUPPORTED, VERDICTS

    explored, confirmed = (card["holds_up"] for card in _cards(root))
    shared = explored.index.intersection(confirmed.index)
    same = int((explored[shared] == confirmed[shared]).sum())
    counts = {verdict: int((confirmed == verdict).sum()) for verdict in VERDICTS}
    kinds = [f"{n} {verdict}" for verdict, n in counts.items() if n or verdict == SUPPORTED]
    return (
        "\n### On a model that the rules had not seen\n\n"
        f"Gemma 3 270M was judged once, by rules that were committed before: {'; '.join(kinds)}. "
        f"The verdict is that of the first model in {same} of {len(shared)} claims. "
        "[The book's page on the claims](book/claims.md) shows both cards.\n"
    )


def _cards(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    explored, confirmed = (read_card(root / path).set_index("claim") for path in (CLAIMS, CONFIRMATORY))
    return explored, confirmed


def _verdict(row: pd.Series) -> str:
    return f"<strong>{signed(row['holds_up'])}</strong><br>{in_prose(_effect(row))}"


def _effect(row: pd.Series) -> str:
    return with_interval(row["estimate"], row["low"], row["high"])
