"""Checks that a reader can run on an answer: ``check("3.1", answer)``.

Each exercise registers a function that returns nothing when the answer is right and raises
:class:`Wrong` with a hint when it is not. A judge asks what the text asks and no more: any function that does it,
and any kind of number, will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from saema_utils.errors import SaemaError, unknown_name
from saema_utils.interactive import publishing


class Wrong(Exception):
    """An answer that is not right; the message is a hint, not the solution."""


@dataclass(frozen=True)
class Exercise:
    """``why`` is said after a right answer, in one sentence."""

    judge: Callable[[Any], None]
    why: str


EXERCISES: dict[str, Exercise] = {}


def exercise(name: str, why: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register the judge of one exercise, and why a right answer is right."""

    def register(judge: Callable[[Any], None]) -> Callable[[Any], None]:
        EXERCISES[name] = Exercise(judge, why)
        return judge

    return register


def check(name: str, answer: Any, ours: bool = False) -> bool:
    """Say whether an answer is right, and why; a wrong one gets a hint. Returns True only when it is right.

    ``ours`` marks the solution that a chapter shows. A notebook that runs through calls it too, without anybody
    having answered: there it says no more than that the solution holds. A page folds it away, and says why.
    """
    if name not in EXERCISES:
        raise SaemaError(unknown_name("exercise", name, EXERCISES))
    if answer is None or (isinstance(answer, tuple | list) and any(part is None for part in answer)):
        print(f"{name}: not answered yet. Replace None by your answer and run the cell again.")
        return False
    try:
        EXERCISES[name].judge(answer)
    except Wrong as hint:
        text = str(hint)
        print(f"{name}: not yet. {text[0].upper()}{text[1:]}")
        return False
    except Exception as error:  # a reader's answer can be anything at all: say what it did
        print(f"{name}: your answer could not be checked ({type(error).__name__}: {error}).")
        return False
    if not ours:
        print(f"{name}: correct. {EXERCISES[name].why}")
    elif publishing():
        print(f"{name}: why this is right. {EXERCISES[name].why}")
    else:
        print(f"{name}: the solution above passes the check. To read why it is right, check it without ours=True.")
    return True


def require(condition: Any, hint: str) -> None:
    """Refuse the answer with a hint unless the condition holds."""
    if not condition:
        raise Wrong(hint)


# ---- what an answer is -------------------------------------------------------------------------


def _number(answer: Any, what: str = "your answer") -> float:
    """One finite number, of whatever library; a text or a truth value is none."""
    kind = type(answer).__name__
    hint = f"{what} must be one number; it is of type {kind}."
    require(not isinstance(answer, str | bytes | bool) and not callable(answer), hint)
    require(not any(name in str(getattr(answer, "dtype", "")) for name in ("bool", "complex")), hint)
    try:
        value = float(answer.item() if hasattr(answer, "item") else answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise Wrong(hint) from error
    require(math.isfinite(value), f"{what} must be a finite number; it is {value}.")
    return value


def _whole(answer: Any, what: str = "your answer") -> int:
    value = _number(answer, what)
    require(value == int(value), f"{what} must be a whole number; it is {value:g}.")
    return int(value)


def _items(answer: Any, n: int, what: str = "your answer") -> list[Any]:
    """Exactly ``n`` things in an order: of a list, a tuple, an array, a tensor or a generator."""
    hint = f"{what} must be {n} values in a list; it is of type {type(answer).__name__}."
    unordered = isinstance(answer, str | bytes | dict | set | frozenset)
    require(not unordered and (isinstance(answer, Iterable) or hasattr(answer, "tolist")), hint)
    found = answer.tolist() if hasattr(answer, "tolist") else list(answer)
    require(isinstance(found, list), hint)
    require(len(found) == n, f"{what} must have {n} values; it has {len(found)}.")
    return found


def _pair(answer: Any) -> tuple[float, float]:
    first, second = (_number(value, "each of the two") for value in _items(answer, 2))
    return first, second


def _function(answer: Any) -> Callable[..., Any]:
    require(callable(answer), "Write a function, and give the function itself and not its result.")
    return answer


def _on_any_kind(answer: Any, columns: Sequence[Sequence[Any]], *rest: Any) -> Any:
    """What a function makes of columns: some are written for lists, others for arrays or tensors."""
    import numpy as np
    import torch

    for kind in (list, np.array):
        try:
            return _function(answer)(*map(kind, columns), *rest)
        except (TypeError, AttributeError):
            continue
    return answer(*map(torch.tensor, columns), *rest)


# ---- chapter 1 ---------------------------------------------------------------------------------


@exercise("1.1", "Two spans share a character exactly if each begins before the other ends.")
def _tokens_of_a_word(answer: Any) -> None:
    def found(offsets: list[tuple[int, int]], start: int, end: int) -> list[bool]:
        values = _items(_on_any_kind(answer, [offsets], start, end), len(offsets), "the list, one value a token,")
        return [bool(value) for value in values]

    # "Look, beryllium." with the space inside the token before it, as many tokenizers cut
    cut = found([(0, 0), (0, 4), (4, 5), (5, 8), (8, 11), (11, 15), (15, 16)], 6, 15)
    require(not cut[0], "the BOS token has the empty span (0, 0) and belongs to no word.")
    require(cut[4] and cut[5], "a word may be cut into several tokens: all of them count.")
    require(cut[3], "the token ' be' begins one character before the word, and still holds a part of it.")
    require(not cut[2] and not cut[6], "a token that only touches the word holds no part of it.")
    require(not any(found([(0, 0), (0, 3)], 4, 6)), "a token that ends before the word starts is not part of it.")
    touching = found([(0, 0), (0, 4), (4, 6), (6, 9)], 4, 6)
    require(touching == [False, False, True, False], "a token that ends where the word begins holds no part of it.")
    first = found([(0, 0), (0, 3), (3, 5), (5, 6)], 0, 5)
    require(first == [False, True, True, False], "try a word at the start of the text: BOS is there, and empty.")
    require(found([(0, 0), (0, 9)], 3, 6) == [False, True], "one token may hold the whole word, and more.")


@exercise("1.2", "Squares weigh a hundredfold norm ten thousandfold, a hundred times as much as all others together.")
def _share_of_one_sink(answer: Any) -> None:
    share = _number(answer)
    require(0 <= share <= 1, "a share lies between 0 and 1.")
    require(abs(share - 0.5) > 1e-6, "a token weighs by the square of its norm.")
    off = abs(share - 10_000 / 10_100)
    require(off > 2e-4 or off < 5e-5, "nearly: the total is all 101 tokens, and a rounded share needs four decimals.")
    require(off < 5e-5, "add 100 squared norms of 1 to one of 100 squared.")


@exercise("1.3", "On a cycle of n places, two are neighbours if they are one step apart or n - 1.")
def _cyclic_order(answer: Any) -> None:
    def score(*places: int) -> float:
        return _number(_on_any_kind(answer, [places]), "what your function returns")

    require(abs(score(0, 1, 2, 3, 4) - 1) < 1e-6, "words in perfect order score 1: count the last step too.")
    require(abs(score(4, 3, 2, 1, 0) - 1) < 1e-6, "the other direction is as good.")
    require(abs(score(3, 4, 0, 1, 2) - 1) < 1e-6, "so is any start: place 4 is next to place 0.")
    require(abs(score(0, 2, 4, 1, 3)) < 1e-6, "in a five-pointed star no neighbours are neighbours.")
    require(abs(score(1, 0, 2, 3, 4, 5) - 4 / 6) < 1e-6, "swapping two neighbours breaks two steps of six.")
    require(abs(score(0, 1, 2, 5, 4, 3) - 4 / 6) < 1e-6, "a part may run one way and the rest the other.")


# ---- chapter 2 ---------------------------------------------------------------------------------


@exercise("2.1", "L0 counts, token by token, what is not zero: neither how large it is nor its sign.")
def _mean_l0(answer: Any) -> None:
    import torch

    z = torch.tensor([[0, 2, 0, 0.5, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [3, 1e-6, 2, 0, 0]])

    def mean(latents: Any) -> float:
        return _number(_function(answer)(latents.clone()), "what your function returns")

    found = mean(z)
    require(abs(found - 1.2) > 1e-5, "that is a mean over latents: count along each row, and average over tokens.")
    require(abs(found - 1.5) < 1e-5, f"these four tokens have 2, 1, 0 and 3 active latents; your mean is {found:g}.")
    require(abs(mean(-z) - 1.5) < 1e-5, "a negative coefficient is active too: compare with zero, not above.")
    require(abs(mean(z[:1]) - 2) < 1e-5, "one token with two active latents has a mean of 2.")


@exercise("2.2", "With the sink left in, explained variance is near 1 whatever becomes of the other tokens.")
def _without_sinks(answer: Any) -> None:
    import torch

    from saema_utils.saes.fidelity import explained_variance

    random = torch.Generator().manual_seed(7)
    x = 1 + torch.randn(60, 8, generator=random)
    x_hat = x + 0.8 * torch.randn(60, 8, generator=random)
    x[30] *= 4.5 * x.norm(dim=1).median() / x[30].norm()  # long, and no sink
    x_hat[31] *= 6  # rebuilt badly, and no sink

    def judge(sinks: Sequence[int], height: float, hint: str) -> None:
        y, y_hat, keep = x.clone(), x_hat.clone(), torch.ones(60, dtype=torch.bool)
        for sink in sinks:
            y[sink], y_hat[sink], keep[sink] = height, 0.9975 * height, False
        target = explained_variance(y[keep], y_hat[keep])
        found = _number(_function(answer)(y.clone(), y_hat.clone()), "what your function returns")
        require(
            abs(found - target) < 1e-3 * max(1, abs(target)),
            f"you find {found:.4f} where ordinary tokens alone give {target:.2f}: {hint}",
        )

    judge([11], 4000, "drop rows of x whose norm is above five times the median norm, in x and in x_hat, then compute.")
    judge([11, 40], 4000, "there may be more than one sink.")
    judge([], 0, "where there is no sink, no token is to be dropped.")
    judge(range(10, 25), 10, "many sinks lift the mean norm: compare with the median.")


@exercise("2.3", "Relu lets a positive factor pass, so what a row loses its latent may gain.")
def _unit_rows(answer: Any) -> None:
    import torch

    random = torch.Generator().manual_seed(3)
    W_enc, b_enc, W_dec = (torch.randn(*shape, generator=random) for shape in ((5, 9), (9,), (9, 5)))
    W_dec = W_dec * torch.logspace(-1, 1, 9)[:, None]
    x = torch.randn(30, 5, generator=random)
    before = torch.relu(x @ W_enc + b_enc) @ W_dec
    found = _function(answer)(W_enc.clone(), b_enc.clone(), W_dec.clone())
    require(isinstance(found, Sequence) and len(found) == 3, "return three arrays: W_enc, b_enc, W_dec.")
    new_enc, new_b, new_dec = (torch.as_tensor(array).float() for array in found)
    shapes = [tuple(array.shape) for array in (new_enc, new_b, new_dec)]
    require(shapes == [(5, 9), (9,), (9, 5)], f"the arrays must keep their shapes; yours have {shapes}.")
    require((new_dec.norm(dim=-1) - 1).abs().max() < 1e-4, "the decoder rows do not all have length 1.")
    after = torch.relu(x @ new_enc + new_b) @ new_dec
    hint = "what you divide a decoder row by, its encoder column and bias must be multiplied with."
    require((after - before).abs().max() < 1e-3, f"the reconstruction changed: {hint}")


# ---- chapter 3 ---------------------------------------------------------------------------------


@exercise("3.1", "One direction holds more than its third, so three unequal ones count for fewer than three.")
def _effective_rank_of_three(answer: Any) -> None:
    hint = "shares are 1/2, 1/4, 1/4. What is the exponential of their entropy?"
    require(abs(_number(answer) - 8**0.5) < 0.005, hint)


@exercise(
    "3.2", "A causal model gives equal beginnings equal vectors, so only different contexts count, less their mean."
)
def _clean_rank_of_templates(answer: Any) -> None:
    rank = _whole(answer)
    require(rank != 72, "almost: centring takes one direction away.")
    require(rank == 71, "tokens before the word depend on the template only. How many different vectors are there?")


@exercise(
    "3.3",
    "Holm asks the smallest of twenty p-values to be below 0.05 / 20, and only the signs of n seeds can be flipped.",
)
def _seeds_for_twenty(answer: Any) -> None:
    from saema_utils.evidence.rank import seeds_needed

    hint = "the smallest p-value is 1 in 2 to the n; Holm multiplies it by the number of concepts."
    require(_whole(answer) == seeds_needed(20), hint)


@exercise("3.4", "Three latents that are never switched off span three directions, with noise as without it.")
def _smooth_map(answer: Any) -> None:
    import torch

    from saema_utils.rulers.strata import toy_tokens
    from saema_utils.stratification.noise import noise_rank_sweep

    tokens = toy_tokens(seed=7)

    def encode(x: Any) -> Any:
        z = torch.as_tensor(_function(answer)(x.clone()))
        require(
            z.ndim == 2 and len(z) == len(x), f"return one row of latents a token; yours has shape {tuple(z.shape)}."
        )
        return z.float()

    flat = tokens.flatten(0, 1)
    z = encode(flat)
    alone = torch.cat([encode(row) for row in flat.split(1)])
    require(z.shape == alone.shape, "a token must have as many latents alone as among others.")
    require(torch.allclose(z, alone, atol=1e-4), "what a token is encoded to must depend on that token alone.")
    mask = tokens.new_ones(tokens.shape[:2]).bool()
    ranks = noise_rank_sweep(tokens, encode, mask=mask, noise_levels=(0, 0.1, 1, 10), seeds=(0, 1), modes=(2,))["rank"]
    require(ranks.nunique() == 1, f"under noise the rank takes the values {sorted(set(ranks))}.")
    require(ranks.iloc[0] == 3, f"the rank stays, but at {ranks.iloc[0]} instead of 3.")


# ---- chapter 4 ---------------------------------------------------------------------------------


@exercise("4.1", "Of the 7! orders of seven days, those in order differ only in their start and their direction.")
def _luck_of_a_week(answer: Any) -> None:
    chance = _number(answer)
    require(0 < chance < 1, "a probability lies between 0 and 1.")
    require(abs(chance - 1 / 5040) > 1e-6, "a week that starts on Tuesday, or runs backwards, is as good.")
    require(abs(chance * 360 - 1) < 0.01, "of 7! orders, how many are in order? Count starts, and directions.")


@exercise("4.2", "Knowing the cluster leaves three words to choose from, and not knowing it leaves twelve.")
def _merged_by_threes(answer: Any) -> None:
    hint = "H(words | cluster) is log 3, and H(words) is log 12."
    require(abs(_number(answer) - math.log(4) / math.log(12)) < 1e-3, hint)


@exercise("4.3", "All pairs count for the one, and only the edges that join everything for the other.")
def _square_of_poles(answer: Any) -> None:
    separation, tree = _pair(answer)
    require(abs(tree - 3) < 1e-6, "a tree that joins four poles has three edges, and no cycle.")
    require(abs(separation - (4 + 2 * 2**0.5) / 6) < 2e-3, "six pairs: four sides and two diagonals.")


@exercise("4.4", "Codes that share no latent are all equally far apart, so sparsity alone keeps no neighbours.")
def _code_without_a_circle(answer: Any) -> None:
    import numpy as np
    import torch

    from saema_utils.distances import pairwise_distances
    from saema_utils.rulers.shapes import ordered_circle

    x = torch.as_tensor(ordered_circle(np.random.default_rng(4), 12, 0.0, 2))
    z = torch.as_tensor(_function(answer)(x.clone())).double()
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


@exercise("5.1", "The error of a projection is orthogonal to all that the code can add, so every edit makes it larger.")
def _best_dose_of_a_projection(answer: Any) -> None:
    hint = "what a projection leaves out is orthogonal to everything it can add."
    require(abs(_number(answer)) < 1e-6, hint)


@exercise("5.2", "Errors at three doses give the parabola's slope and curvature at zero, and these its lowest point.")
def _vertex_from_three_doses(answer: Any) -> None:
    for a, b, c in ((3.0, -0.4, 2.0), (1.0, 0.3, 0.5), (5.0, 0.0, 1.0), (9.0, -1.5, 0.5)):
        measured = [a + 2 * b * dose + c * dose**2 for dose in (-1, 0, 1)]
        found = _number(_function(answer)(*measured), "what your function returns")
        shown = [round(error, 3) for error in measured]
        require(abs(found + b / c) < 1e-4, f"errors {shown} have their lowest point at {-b / c:g}, not {found:g}.")


@exercise("5.3", "A quotient of two lengths has no unit, so size cannot move it.")
def _scale_free_separation(answer: Any) -> None:
    import torch

    from saema_utils.intervention.edits import scale_separation

    for seed in (3, 4):
        latents, labels = _toy_clusters(seed)

        def measure(z: Any, names: Any = labels) -> float:
            return _number(_function(answer)(z.clone(), names.clone()), "what your function returns")

        value = measure(latents)
        for factor in (7, 0.01):
            apart = abs(measure(factor * latents) - value)
            require(apart < 1e-4 * max(abs(value), 1e-9), f"latents times {factor} must give the same number.")
        values = [measure(scale_separation(latents, labels, alpha)) for alpha in (-0.5, 0, 0.5, 1)]
        shown = [round(found, 3) for found in values]
        require(values == sorted(set(values)), f"it must grow as the poles move apart; yours goes {shown}.")
        again = measure(latents, 3 - labels)
        require(abs(again - value) < 1e-4 * abs(value), "other numbers for the same clusters must not matter.")
        draws = torch.Generator().manual_seed(seed)
        shuffled = measure(latents, labels[torch.randperm(40, generator=draws)])
        require(shuffled < value, "labels dealt out at random must separate less: what do you use them for?")


@exercise("5.4", "Perfectly separated, and rebuilt as before: by itself the one is no cause of the other.")
def _separate_unseen_by_the_decoder(answer: Any) -> None:
    import torch

    from saema_utils.intervention.separation import separation_scale_free

    for seed in (3, 4):
        latents, labels = _toy_clusters(seed)
        decoder = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        new = torch.as_tensor(_function(answer)(latents.clone(), labels.clone(), decoder.clone())).double()
        require(tuple(new.shape) == tuple(latents.shape), f"return latents of shape {tuple(latents.shape)}.")
        change = float((new @ decoder - latents @ decoder).abs().max())
        hint = f"the reconstruction has changed, by {change:.2g}: add only what the decoder maps to zero."
        require(change < 1e-3, hint)
        found = float(separation_scale_free(new, labels))
        hint = f"the separation is {found:.2f}. How far along that direction should each word move?"
        require(found >= 0.95, hint)


# ---- chapter 6 ---------------------------------------------------------------------------------


@exercise(
    "6.1", "One loss rewards distance and the other punishes it, so each keeps the end of the walk that suits it."
)
def _steps_that_two_losses_keep(answer: Any) -> None:
    first, second = (_whole(value, "each of the two") for value in _items(answer, 2))
    require(
        first == 2,
        "the first loss adds 1 / separation to the error; work it out for each of the three steps, counted from 0.",
    )
    require(second == 0, "the second loss adds the separation itself: which step is small in both?")


@exercise(
    "6.2", "A total grows with the number of edges, so fewer poles make a lighter tree and nothing has come closer."
)
def _tree_of_half_the_poles(answer: Any) -> None:
    total, mean = _pair(answer)
    require(abs(total - 3 / 7) < 2e-3, "a tree that joins K poles has K - 1 edges, here all of one length.")
    require(abs(mean - 1) < 1e-6, "no edge has become shorter.")


@exercise(
    "6.3",
    "Z-scoring gives every feature the same say, and the one that held nearly all differences is one of a hundred.",
)
def _share_of_one_loud_feature(answer: Any) -> None:
    before, after = _pair(answer)
    target = 100 / 100.99
    require(
        abs(before - target) > 3e-4 or abs(before - target) < 5e-5,
        "nearly: there are 99 others, and four decimals tell.",
    )
    require(abs(before - target) < 5e-5, "squared distances add variances up: one is 100, each other 0.01.")
    require(abs(after - 0.01) < 5e-5, "after z-scoring every feature has variance one, and there are a hundred.")


# ---- chapter 7 ---------------------------------------------------------------------------------


@exercise("7.1", "Of nine signs each way is as likely, and eight or nine of one kind come up in 10 of 512 cases.")
def _sign_test_of_nine(answer: Any) -> None:
    positive = _whole(answer)
    require(0 <= positive <= 9, "of nine concepts, between none and nine are positive.")
    tail = sum(math.comb(9, k) for k in range(positive, 10)) / 2**9
    require(tail < 0.05, f"with {positive} of 9 the one-sided p-value is {tail:.3f}.")
    larger = tail + math.comb(9, positive - 1) / 2**9
    require(larger >= 0.05, "one concept fewer would do.")


@exercise("7.2", "Where the lead turns a verdict, a code that learned nothing shows the effect as well.")
def _verdicts_that_hang_on_the_lead(answer: Any) -> None:
    from saema_utils.evidence.claims import load_claims
    from saema_utils.evidence.verdicts import judge

    require(isinstance(answer, tuple) and len(answer) == 2, "give the check both: (evidence, answer).")
    evidence, given = answer
    require(isinstance(given, Iterable) and not isinstance(given, str | bytes | dict), "give a list of claim ids.")
    require(not isinstance(given, set | frozenset), "a set has no order: give a sorted list.")
    ids = list(given)
    require(all(isinstance(i, str) for i in ids), "give a list of claim ids.")
    require(set(ids) <= set(evidence), "every id must be one of the claims that were judged.")
    minimum = {claim.id: claim.minimum_n for claim in load_claims()}
    changed = {
        name
        for name, (own, lead) in evidence.items()
        if judge(own, None, minimum[name]) != judge(own, lead, minimum[name])
    }
    require(
        set(ids) == changed, f"{len(changed)} verdicts change; you named {len(set(ids))}. Judge each with lead None."
    )
    require(len(ids) == len(changed), "each id once.")
    require(ids == sorted(ids), "the right ids, but not sorted.")


@exercise("7.3", "That none of seventeen errs takes seventeen rules to be right at once, and their chances multiply.")
def _chance_of_any_false_alarm(answer: Any) -> None:
    chance = _number(answer)
    require(0 < chance < 1, "a probability lies between 0 and 1.")
    require(abs(chance - 17 / 40) > 1e-4, "adding chances counts double errors twice; use the complement.")
    require(abs(chance - (1 - (39 / 40) ** 17)) < 5e-4, "all of them are right with probability (39/40) ** 17.")


# ---- chapter 8 ---------------------------------------------------------------------------------


@exercise("8.1", "Both runs lie two of their errors from what they share, and Q adds the squares.")
def _cochrans_q_of_two(answer: Any) -> None:
    q = _number(answer)
    require(q > 0, "Q is a sum of squares.")
    require(abs(q - 4.0) > 1e-4, "that is one of the two squared distances: add the other run's.")
    require(abs(q - 8.0) < 1e-3, "both runs lie 0.1 from the pooled 0.2: divide by 0.05, square, add.")


@exercise(
    "8.2", "Scatter as large as the errors doubles the variance of what is measured, and half of Q is then beyond them."
)
def _expected_share_of_spread(answer: Any) -> None:
    share = _number(answer)
    require(0 <= share <= 1, "it is a share: between 0 and 1.")
    require(abs(share - 0.5) < 1e-3, "the variance of an estimate doubles, so Q is expected to be twice n - 1.")


@exercise("8.3", "A run pulls the pooled effect towards itself, so only leaving it out shows how far off it is.")
def _most_discordant_run(answer: Any) -> None:
    def found(estimates: list[float], errors: list[float]) -> int:
        return _whole(_on_any_kind(answer, [estimates, errors]), "what your function returns")

    first = found([0.0, 0.1, 0.05, 3.0], [0.1] * 4)
    require(first != 4, "indices count from 0.")
    require(first == 3, "with equal errors it is the run that lies farthest off.")
    second = found([0.0, 0.1, 5.0, 1.0], [0.1, 0.1, 10.0, 0.1])
    require(second != 2, "the run at 5.0 is so uncertain that it says nothing: weigh distances by the errors.")
    hint = "leave each run out in turn, pool the others anew, and see which omission leaves the smallest Q."
    require(second == 3 and found([-1.0, 0.1, 0.05, 0.0], [0.1] * 4) == 0, hint)
    require(found([0.0, 1.0, 1.1, 0.9], [0.3, 1.0, 1.0, 1.0]) == 0, hint)


# ---- chapter 9 ---------------------------------------------------------------------------------


@exercise("9.1", "A jump lets whatever is above the threshold through as it is, where a shift would make it smaller.")
def _latents_above_a_threshold(answer: Any) -> None:
    z = [_number(value, "each latent") for value in _items(answer, 5)]
    require(z[4] == 0, "a pre-activation equal to the threshold is not above it.")
    require(z[0] == 0, "0.3 is positive, but not above the threshold.")
    near = all(abs(value - right) < 1e-6 for value, right in zip(z[1:4], (0.8, 2.0, 0.0), strict=True))
    require(near, "what passes keeps its whole value; the threshold is not subtracted.")


@exercise(
    "9.2", "A share of what was asked for makes misses comparable, and its absolute value counts both ways alike."
)
def _farthest_from_the_sparsity_asked_for(answer: Any) -> None:
    import pandas as pd

    def miss(l0: list[float], k: list[int]) -> float:
        return _number(_function(answer)(pd.DataFrame({"l0": l0, "k": k})), "what your function returns")

    hint = "with L0 of 32 and 40 where 32 was asked for, the share is a quarter."
    require(abs(miss([32.0, 40.0], [32, 32]) - 0.25) < 1e-6, hint)
    hint = "L0 of 16 where 32 was asked for misses by a half: take absolute values."
    require(abs(miss([16.0, 33.0], [32, 32]) - 0.5) < 1e-6, hint)
    hint = "each row has a k of its own: L0 of 12 where 8 was asked for is farther off than 70 where 64 was."
    require(abs(miss([70.0, 12.0, 16.0], [64, 8, 16]) - 0.5) < 1e-6, hint)
    require(abs(miss([32.0], [32])) < 1e-6, "nothing is missed where L0 is k.")


@exercise("9.3", "Each training halves the logarithm of the ratio of the ends, which falls from log 1000 to log 1.1.")
def _trainings_of_a_bisection(answer: Any) -> None:
    trainings = _whole(answer)
    require(0 <= trainings < 1000, "give a number of trainings.")
    width = math.log(1000) / 2**trainings
    hint = f"after {trainings} trainings the ends still differ by a factor of {math.exp(width):.2f}."
    require(width <= math.log(1.1), hint)
    require(2 * width > math.log(1.1), "fewer will do: it is the logarithm of the interval that is halved.")
