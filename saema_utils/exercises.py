"""Checks that a reader can run on an answer: ``check("3.1", answer)``.

Each exercise registers a function that returns nothing when the answer is right and raises
:class:`Wrong` with a hint when it is not. ``wrong`` is an answer that must be refused; a test tries it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from saema_utils.errors import SaemaError, unknown_name


class Wrong(Exception):
    """An answer that is not right; the message is a hint, not the solution."""


@dataclass(frozen=True)
class Exercise:
    judge: Callable[[Any], None]
    wrong: Any


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, *, wrong: Any) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the judge of one exercise together with an answer it must refuse."""

    def register(judge: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[name] = Exercise(judge, wrong)
        return judge

    return register


def check(name: str, answer: Any) -> bool:
    """Say whether an answer is right; a wrong one gets a hint. Returns True only when it is right."""
    if name not in EXERCISES:
        raise SaemaError(unknown_name("exercise", name, EXERCISES))
    if answer is None:
        print(f"{name}: not answered yet. Replace None by your answer and run the cell again.")
        return False
    try:
        EXERCISES[name].judge(answer)
    except Wrong as hint:
        print(f"{name}: not yet. {hint}")
        return False
    except Exception as error:  # a reader's answer can be anything at all: say what it did
        print(f"{name}: your answer could not be checked ({type(error).__name__}: {error}).")
        return False
    print(f"{name}: correct.")
    return True


def require(condition: Any, hint: str) -> None:
    """Refuse the answer with a hint unless the condition holds."""
    if not condition:
        raise Wrong(hint)


# ---- chapter 1 ---------------------------------------------------------------------------------


@exercise("1.1", wrong=100 / 200)
def _share_of_one_sink(answer: Any) -> None:
    require(0 <= float(answer) <= 1, "a share lies between 0 and 1.")
    require(abs(float(answer) - 0.5) > 1e-6, "a token weighs by the square of its norm.")
    require(abs(float(answer) - 10_000 / 10_100) < 1e-3, "add 100 squared norms of 1 to one of 100 squared.")


@exercise("1.2", wrong=lambda offsets, start, end: [s >= start and e <= end for s, e in offsets])
def _tokens_of_a_word(answer: Any) -> None:
    # "Look, beryllium." with the space inside the token before it, as many tokenizers cut
    offsets = [(0, 0), (0, 4), (4, 5), (5, 8), (8, 11), (11, 15), (15, 16)]
    found = [bool(value) for value in answer(offsets, 6, 15)]
    require(len(found) == len(offsets), f"give one value a token: {len(offsets)} here, yours has {len(found)}.")
    require(not found[0], "the BOS token has the empty span (0, 0) and belongs to no word.")
    require(found[4] and found[5], "a word may be cut into several tokens: all of them count.")
    require(found[3], "the token ' be' begins one character before the word, and still holds a part of it.")
    require(not found[2] and not found[6], "a token that only touches the word holds no part of it.")
    require(not any(answer([(0, 0), (0, 3)], 4, 6)), "a token that ends before the word starts is not part of it.")


@exercise("1.3", wrong=lambda p: sum(p[i + 1] - p[i] == 1 for i in range(len(p) - 1)) / len(p))
def _cyclic_order(answer: Any) -> None:
    require(abs(float(answer([0, 1, 2, 3, 4])) - 1) < 1e-9, "words in perfect order score 1: count the last step too.")
    require(abs(float(answer([4, 3, 2, 1, 0])) - 1) < 1e-9, "the other direction is as good.")
    require(abs(float(answer([3, 4, 0, 1, 2])) - 1) < 1e-9, "so is any start: place 4 is next to place 0.")
    require(abs(float(answer([0, 2, 4, 1, 3]))) < 1e-9, "in a five-pointed star no neighbours are neighbours.")
    require(abs(float(answer([1, 0, 2, 3, 4, 5])) - 4 / 6) < 1e-9, "swapping two neighbours breaks two steps of six.")


# ---- chapter 2 ---------------------------------------------------------------------------------


@exercise("2.1", wrong=lambda z: float((z != 0).sum()))
def _mean_l0(answer: Any) -> None:
    import torch

    z = torch.tensor([[0.0, 2.0, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.0]])
    found = float(answer(z))
    require(abs(found - 1.5) < 1e-6, f"these four tokens have 2, 1, 0 and 3 active latents; your mean is {found:g}.")
    require(abs(float(answer(-z)) - 1.5) < 1e-6, "a negative coefficient is active too: compare with zero, not above.")


@exercise("2.2", wrong=lambda x, x_hat: float(1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()))
def _without_sinks(answer: Any) -> None:
    import torch

    from saema_utils.saes.fidelity import explained_variance

    random = torch.Generator().manual_seed(7)
    x = torch.randn(60, 8, generator=random)
    x_hat = x + 0.8 * torch.randn(60, 8, generator=random)
    honest = explained_variance(x, x_hat)
    x[11], x_hat[11] = 4000.0, 3990.0
    keep = torch.arange(60) != 11
    found, target = float(answer(x, x_hat)), explained_variance(x[keep], x_hat[keep])
    hint = "drop rows of x whose norm is above five times the median norm, in x and in x_hat, then compute."
    require(
        abs(found - target) < 1e-3, f"you find {found:.4f} where ordinary tokens alone give about {honest:.2f}: {hint}"
    )


@exercise("2.3", wrong=lambda W_enc, b_enc, W_dec: (W_enc, b_enc, W_dec / W_dec.norm(dim=-1, keepdim=True)))
def _unit_rows(answer: Any) -> None:
    import torch

    random = torch.Generator().manual_seed(3)
    W_enc, b_enc, W_dec = (torch.randn(*shape, generator=random) for shape in ((5, 9), (9,), (9, 5)))
    x = torch.randn(30, 5, generator=random)
    before = torch.relu(x @ W_enc + b_enc) @ W_dec
    new_enc, new_b, new_dec = answer(W_enc.clone(), b_enc.clone(), W_dec.clone())
    require((new_dec.norm(dim=-1) - 1).abs().max() < 1e-4, "the decoder rows do not all have length 1.")
    after = torch.relu(x @ new_enc + new_b) @ new_dec
    hint = "what you divide a decoder row by, its encoder column and bias must be multiplied with."
    require((after - before).abs().max() < 1e-3, f"the reconstruction changed: {hint}")


# ---- chapter 3 ---------------------------------------------------------------------------------


@exercise("3.1", wrong=3)
def _effective_rank_of_three(answer: float) -> None:
    require(abs(answer - 8**0.5) < 0.02, "Shares are 1/2, 1/4, 1/4. What is the exponential of their entropy?")


@exercise("3.2", wrong=335)
def _clean_rank_of_templates(answer: int) -> None:
    require(answer != 72, "Almost: centring takes one direction away.")
    require(answer == 71, "Tokens before the word depend on the template only. How many different vectors are there?")


@exercise("3.3", wrong=5)
def _seeds_for_twenty(answer: int) -> None:
    from saema_utils.evidence.rank import seeds_needed

    require(
        answer == seeds_needed(20),
        "The smallest p-value is 1 in 2 to the n; Holm multiplies it by the number of concepts.",
    )


@exercise("3.4", wrong=lambda x: x.relu())
def _smooth_map(answer: Callable[[Any], Any]) -> None:
    from saema_utils.rulers.strata import toy_tokens
    from saema_utils.stratification.noise import noise_rank_sweep

    tokens = toy_tokens(seed=7)
    mask = tokens.new_ones(tokens.shape[:2]).bool()
    ranks = noise_rank_sweep(tokens, answer, mask=mask, noise_levels=(0, 0.1, 1, 10), seeds=(0, 1), modes=(2,))["rank"]
    require(ranks.nunique() == 1, f"Under noise the rank takes the values {sorted(set(ranks))}.")
    require(ranks.iloc[0] == 3, f"The rank stays, but at {ranks.iloc[0]} instead of 3.")


# ---- chapter 4 ---------------------------------------------------------------------------------


@exercise("4.1", wrong=(1.0, 4.0))
def _square_of_poles(answer: Any) -> None:
    separation, tree = (float(value) for value in answer)
    require(abs(tree - 3) < 1e-6, "a tree that joins four poles has three edges, and no cycle.")
    require(abs(separation - (4 + 2 * 2**0.5) / 6) < 1e-3, "six pairs: four sides and two diagonals.")


@exercise("4.2", wrong=0.75)
def _merged_by_threes(answer: Any) -> None:
    import math

    require(
        abs(float(answer) - math.log(4) / math.log(12)) < 1e-3, "H(words | cluster) is log 3, and H(words) is log 12."
    )


@exercise("4.3", wrong=1 / 5040)
def _luck_of_a_week(answer: Any) -> None:
    require(abs(float(answer) - 1 / 5040) > 1e-9, "a week that starts on Tuesday, or runs backwards, is as good.")
    require(abs(float(answer) - 14 / 5040) < 1e-6, "7! orders, of which 7 turns in 2 directions are in order.")


@exercise("4.4", wrong=lambda x: x)
def _code_without_a_circle(answer: Callable[[Any], Any]) -> None:
    import numpy as np
    import torch

    from saema_utils.distances import pairwise_distances
    from saema_utils.rulers.shapes import ordered_circle

    x = torch.as_tensor(ordered_circle(np.random.default_rng(4), 12, 0.0, 2))
    z = torch.as_tensor(answer(x)).double()
    require(z.ndim == 2 and len(z) == 12, f"give one row a point, 12 in all; yours has shape {tuple(z.shape)}.")
    require(bool(((z != 0).sum(1) <= 1).all()), "at most one latent may be active for each point.")
    d = pairwise_distances(z)[np.triu_indices(12, 1)]
    require(d.min() > 1e-6, "two different points got the same code.")
    require(d.max() - d.min() < 1e-6 * d.max(), "all points must be equally far from each other.")


# ---- chapter 5 ---------------------------------------------------------------------------------


def _toy_clusters(seed: int = 3) -> tuple[Any, Any]:
    """Latents ``[40, 6]`` in four clusters of ten."""
    import torch

    from saema_utils.runtime import generator

    draws = generator(seed, "chapter 5")
    labels = torch.arange(40) % 4
    poles = torch.randn(4, 6, generator=draws, dtype=torch.float64)
    return poles[labels] + 0.5 * torch.randn(40, 6, generator=draws, dtype=torch.float64), labels


@exercise("5.1", wrong=-0.5)
def _best_dose_of_a_projection(answer: Any) -> None:
    require(abs(float(answer)) < 1e-12, "What a projection leaves out is orthogonal to everything it can add.")


@exercise("5.2", wrong=lambda minus, zero, plus: 0.0)
def _vertex_from_three_doses(answer: Callable[..., Any]) -> None:
    for a, b, c in ((3.0, -0.4, 2.0), (1.0, 0.3, 0.5), (5.0, 0.0, 1.0)):
        measured = [a + 2 * b * dose + c * dose**2 for dose in (-1, 0, 1)]
        found = float(answer(*measured))
        require(abs(found + b / c) < 1e-9, f"Errors {measured} have their lowest point at {-b / c:g}, not {found:g}.")


@exercise("5.3", wrong=lambda latents, labels: float(latents.norm()))
def _scale_free_separation(answer: Callable[..., Any]) -> None:
    from saema_utils.intervention.edits import scale_separation

    latents, labels = _toy_clusters()
    value = float(answer(latents, labels))
    larger = float(answer(7 * latents, labels))
    require(abs(larger - value) < 1e-9 * max(1, abs(value)), "Seven times the latents must give the same number.")
    values = [float(answer(scale_separation(latents, labels, alpha), labels)) for alpha in (-0.5, 0, 0.5, 1)]
    require(values == sorted(set(values)), f"It must grow as the poles move apart; yours goes {values}.")


@exercise("5.4", wrong=lambda latents, labels, decoder: 3 * latents)
def _separate_unseen_by_the_decoder(answer: Callable[..., Any]) -> None:
    import torch

    from saema_utils.intervention.separation import separation_scale_free

    latents, labels = _toy_clusters()
    decoder = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = answer(latents.clone(), labels.clone(), decoder.clone())
    require(tuple(new.shape) == tuple(latents.shape), f"Return latents of shape {tuple(latents.shape)}.")
    change = float((new @ decoder - latents @ decoder).abs().max())
    require(change < 1e-6, f"The reconstruction has changed, by {change:.2g}: add only what the decoder maps to zero.")
    found = float(separation_scale_free(new, labels))
    require(found >= 0.95, f"The separation is {found:.2f}. How far along that direction should each word move?")


# ---- chapter 6 ---------------------------------------------------------------------------------


@exercise("6.1", wrong=(2, 2))
def _steps_that_two_losses_keep(answer: Any) -> None:
    first, second = answer
    require(first == 2, "The first loss adds 1 / separation to the error; work it out for each of the three steps.")
    require(second == 0, "The second loss adds the separation itself: which step is small in both?")


@exercise("6.2", wrong=(0.99, 0.99))
def _share_of_one_loud_feature(answer: Any) -> None:
    before, after = map(float, answer)
    require(abs(before - 100 / 100.99) < 1e-3, "Squared distances add variances up: one is 100, each other 0.01.")
    require(abs(after - 0.01) < 1e-3, "After z-scoring every feature has variance one.")


@exercise("6.3", wrong=(0.5, 0.5))
def _tree_of_half_the_poles(answer: Any) -> None:
    total, mean = map(float, answer)
    require(abs(total - 3 / 7) < 1e-3, "A tree that joins K poles has K - 1 edges, here all of one length.")
    require(abs(mean - 1) < 1e-6, "No edge has become shorter.")


# ---- chapter 7 ---------------------------------------------------------------------------------


@exercise("7.1", wrong=({}, ["no-such-claim"]))
def _verdicts_that_hang_on_the_lead(answer: Any) -> None:
    evidence, ids = answer
    require(isinstance(ids, list) and all(isinstance(i, str) for i in ids), "Give a list of claim ids.")
    require(set(ids) <= set(evidence), "Every id must be one of the claims that were judged.")
    from saema_utils.evidence.claims import load_claims
    from saema_utils.evidence.verdicts import judge

    minimum = {claim.id: claim.minimum_n for claim in load_claims()}
    changed = {
        name
        for name, (own, lead) in evidence.items()
        if judge(own, None, minimum[name]) != judge(own, lead, minimum[name])
    }
    require(set(ids) == changed, f"{len(changed)} verdicts change; you named {len(ids)}. Judge each with lead None.")
    require(ids == sorted(ids), "The right ids, but not sorted.")


@exercise("7.2", wrong=6)
def _sign_test_of_nine(answer: Any) -> None:
    from math import comb

    tail = sum(comb(9, k) for k in range(int(answer), 10)) / 2**9
    require(tail < 0.05, f"With {answer} of 9 the one-sided p-value is {tail:.3f}.")
    larger = tail + comb(9, int(answer) - 1) / 2**9
    require(larger >= 0.05, "One concept fewer would do.")


@exercise("7.3", wrong=17 / 40)
def _chance_of_any_false_alarm(answer: Any) -> None:
    require(0 < answer < 1, "A probability lies between 0 and 1.")
    require(abs(answer - 17 / 40) > 1e-9, "Adding chances counts double errors twice; use the complement.")
    require(abs((1 - answer) ** (1 / 17) - 39 / 40) < 1e-6, "All of them are right with probability (39/40) ** 17.")


# ---- chapter 8 ---------------------------------------------------------------------------------


@exercise("8.1", wrong=4.0)
def _cochrans_q_of_two(answer: Any) -> None:
    require(float(answer) > 0, "Q is a sum of squares.")
    require(abs(float(answer) - 4.0) > 1e-6, "That is one of the two squared distances: add the other run's.")
    require(abs(float(answer) - 8.0) < 1e-6, "Both runs lie 0.1 from the pooled 0.2: divide by 0.05, square, add.")


@exercise("8.2", wrong=2.0)
def _expected_share_of_spread(answer: Any) -> None:
    require(0 <= float(answer) <= 1, "It is a share: between 0 and 1.")
    require(abs(float(answer) - 0.5) < 1e-6, "The variance of an estimate doubles, so Q is expected to be twice n - 1.")


@exercise("8.3", wrong=lambda x, s: max(range(len(x)), key=lambda i: abs(x[i] - sum(x) / len(x))))
def _most_discordant_run(answer: Any) -> None:
    require(answer([0.0, 0.1, 0.05, 3.0], [0.1] * 4) == 3, "With equal errors it is the run that lies farthest off.")
    found = answer([0.0, 0.1, 5.0, 1.0], [0.1, 0.1, 10.0, 0.1])
    require(found != 2, "The run at 5.0 is so uncertain that it says nothing: weigh distances by the errors.")
    require(found == 3, "Leave each run out in turn and see which omission leaves the smallest Q.")


# ---- chapter 9 ---------------------------------------------------------------------------------


@exercise("9.1", wrong=lambda frame: float((frame["l0"] / frame["k"] - 1).max()))
def _farthest_from_the_sparsity_asked_for(answer: Any) -> None:
    import pandas as pd

    require(callable(answer), "Give the function itself, not its result.")
    dense = answer(pd.DataFrame({"l0": [32.0, 40.0], "k": [32, 32]}))
    require(abs(dense - 0.25) < 1e-9, "With L0 of 32 and 40 where 32 was asked for, the share is a quarter.")
    sparse = answer(pd.DataFrame({"l0": [16.0, 33.0], "k": [32, 32]}))
    require(abs(sparse - 0.5) < 1e-9, "L0 of 16 where 32 was asked for misses by a half: take absolute values.")


@exercise("9.2", wrong=[0.0, 0.8, 2.0, 0.0, 0.5])
def _latents_above_a_threshold(answer: Any) -> None:
    require(len(answer) == 5, "There are five latents.")
    require(answer[4] == 0, "A pre-activation equal to the threshold is not above it.")
    require(answer[0] == 0, "0.3 is positive, but not above the threshold.")
    require(list(answer[1:4]) == [0.8, 2.0, 0.0], "What passes keeps its whole value; the threshold is not subtracted.")


@exercise("9.3", wrong=10)
def _trainings_of_a_bisection(answer: Any) -> None:
    from math import log

    width = log(1000) / 2 ** int(answer)
    require(answer == int(answer), "Give a whole number of trainings.")
    require(
        width <= log(1.1), f"After {answer} trainings the ends still differ by a factor of {2.718281828**width:.2f}."
    )
    require(2 * width > log(1.1), "Fewer will do: it is the logarithm of the interval that is halved.")
