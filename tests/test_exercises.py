"""Every check is attacked: wrong answers that look right, right ones that look different, and what is no answer."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from reading import NOTEBOOKS, defined_on, tagged

from saema_utils.errors import SaemaError
from saema_utils.evidence.verdicts import Evidence
from saema_utils.exercises import EXERCISES, check
from saema_utils.interactive import PUBLISHING

LARGE, NONE = Evidence(1.5, 2.5, 9, 2.0, 0.004), Evidence(-0.5, 0.5, 9, 0.0, 0.9)
EVIDENCE = {"merging": (LARGE, NONE), "pieces": (LARGE, LARGE), "compression": (LARGE, NONE)}


# ---- answers that are functions ------------------------------------------------------------------


def ev(x, x_hat):
    return 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def without(rows):
    def answer(x, x_hat):
        keep = ~rows(x, x_hat)
        return float(ev(x[keep], x_hat[keep]))

    return answer


def ev_by_numpy(x, x_hat):
    x, x_hat = x.numpy(), x_hat.numpy()
    norms = np.linalg.norm(x, axis=1)
    keep = [i for i in range(len(x)) if norms[i] <= 5 * np.median(norms)]
    return 1 - ((x[keep] - x_hat[keep]) ** 2).sum() / ((x[keep] - x[keep].mean(axis=0)) ** 2).sum()


def ev_of_zeroed_rows(x, x_hat):
    sinks = x.norm(dim=1) > 5 * x.norm(dim=1).median()
    x[sinks], x_hat[sinks] = 0, 0
    return ev(x, x_hat)


def rows_by_loop(W_enc, b_enc, W_dec):
    for i, row in enumerate(W_dec.clone()):
        length = float((row**2).sum() ** 0.5)
        W_dec[i] /= length
        W_enc[:, i] *= length
        b_enc[i] *= length
    return [W_enc.numpy(), b_enc.numpy(), W_dec.numpy()]


def rows_and_order(W_enc, b_enc, W_dec):
    length, order = W_dec.norm(dim=1), torch.arange(W_dec.shape[0]).flip(0)
    return (W_enc * length)[:, order], (b_enc * length)[order], (W_dec / length[:, None])[order]


def ring_by_steps(places):
    around = np.roll(places, -1)
    return np.isin(np.abs(np.array(places) - around), (1, len(places) - 1)).mean()


def ring_by_tensor(places):
    step = (places - places.roll(1)) % len(places)
    return ((step == 1) | (step == len(places) - 1)).double().mean()


def q_without(i, estimates, errors):
    x, s = np.delete(estimates, i), np.delete(errors, i)
    weight = s**-2.0
    return (weight * (x - (weight * x).sum() / weight.sum()) ** 2).sum()


def worst_by_slices(estimates, errors):
    def q(x, s):
        pooled = sum(a / b**2 for a, b in zip(x, s, strict=True)) / sum(1 / b**2 for b in s)
        return sum(((a - pooled) / b) ** 2 for a, b in zip(x, s, strict=True))

    left = [q(estimates[:i] + estimates[i + 1 :], errors[:i] + errors[i + 1 :]) for i in range(len(errors))]
    return left.index(min(left))


def worst_by_leverage(estimates, errors):
    weight = errors**-2.0
    away = estimates - (weight * estimates).sum() / weight.sum()
    return np.argmax(weight * away**2 / (1 - weight / weight.sum()))


def worst_by_z(estimates, errors):
    weight = np.array(errors) ** -2.0
    away = np.array(estimates) - (weight * estimates).sum() / weight.sum()
    return int(np.argmax(weight * away**2))


def poles_of(z, labels):
    return torch.stack([z[labels == k].mean(0) for k in labels.unique()])


def within(z, labels):
    return torch.cat([z[labels == k] - z[labels == k].mean(0) for k in labels.unique()])


def silhouette(z, labels):
    from sklearn.metrics import silhouette_score

    return silhouette_score(z, labels)


def eta_squared(z, labels):
    between = ((poles_of(z, labels) - z.mean(0)) ** 2).sum(1).mean()
    return between / (between + (within(z, labels) ** 2).sum(1).mean())


def aedp(z, labels):
    return torch.pdist(poles_of(z, labels)).mean()


def by_null_space(z, labels, decoder):
    from scipy.linalg import null_space

    return z.numpy() + 50 * np.outer(labels.numpy() - 1.5, null_space(decoder.numpy().T)[:, 0])


def by_projection(z, labels, decoder):
    """The part that the decoder reads stays; the rest says the label."""
    read = decoder @ torch.linalg.pinv(decoder)
    unseen = torch.eye(len(decoder), dtype=decoder.dtype) - read
    return z @ read + 1000 * torch.nn.functional.one_hot(labels, len(decoder)).to(z) @ unseen


def in_null_space(z, labels, decoder, size):
    return z + size * labels[:, None] * torch.linalg.svd(decoder.T).Vh[-1]


def corners(x):
    return torch.nn.functional.one_hot((torch.atan2(x[:, 1], x[:, 0]) * 6 / torch.pi).round().long() % 12, 12)


# ---- right ones that look different, wrong ones that look right ----------------------------------

SHARE = 10_000 / 10_100
BINOMIAL = 17 / 40 * (39 / 40) ** 16
LOUD = 100 / 100.99
ANY = 1 - (39 / 40) ** 17

RIGHT = {
    "1.1": [
        lambda o, s, e: np.array([min(last, e) > max(first, s) for first, last in o]),
        lambda o, s, e: torch.tensor([bool(set(range(a, b)) & set(range(s, e))) for a, b in o]),
        lambda o, s, e: (not (b <= s or a >= e) for a, b in o),
        lambda o, s, e: (o[:, 0] < e) & (o[:, 1] > s),
    ],
    "1.2": [Fraction(100, 101), np.float32(SHARE), torch.tensor(SHARE), Decimal("0.9901")],
    "1.3": [
        ring_by_steps,
        ring_by_tensor,
        lambda p: Fraction(sum((a - b) % len(p) in (1, len(p) - 1) for a, b in zip(p, p[1:] + p[:1])), len(p)),  # noqa: B905
    ],
    "2.1": [
        lambda z: (z != 0).sum(1).float().mean(),
        lambda z: np.count_nonzero(z.numpy()) / len(z),
        lambda z: z.norm(p=0) / z.shape[0],
        lambda z: sum(sum(1 for value in row if value) for row in z.tolist()) / len(z),
    ],
    "2.2": [
        without(lambda x, _: x.norm(dim=1) > 5 * x.norm(dim=1).median()),
        ev_by_numpy,
        lambda x, x_hat: torch.tensor(ev_by_numpy(x, x_hat)),
    ],
    "2.3": [
        lambda W, b, V: (W * V.norm(dim=1), b * V.norm(dim=1), torch.nn.functional.normalize(V, dim=1)),
        rows_by_loop,
        rows_and_order,
    ],
    "3.1": [2.83, np.exp(1.5 * np.log(2)), torch.tensor(8.0).sqrt(), 2**1.5],
    "3.2": [71.0, np.int64(71), torch.tensor(71), Fraction(142, 2)],
    "3.3": [9.0, np.ceil(np.log2(400)), torch.tensor([9])],
    "3.4": [
        lambda x: x[:, -3:].tanh(),
        lambda x: x.double() @ torch.randn(24, 3, generator=torch.Generator().manual_seed(0)).double() + 5,
        lambda x: (x @ torch.eye(24)[:, -3:]).repeat(1, 4),
        lambda x: x.numpy()[:, 10:13],
    ],
    "4.1": [14 / 5040, Fraction(1, 360), np.float64(0.00278), torch.tensor(14 / 5040)],
    "4.2": [math.log(4, 12), 0.558, np.log2(4) / np.log2(12), torch.tensor(0.5579)],
    "4.3": [np.array([1.138, 3]), torch.tensor([1.1381, 3.0]), [(2 + 2**0.5) / 3, Fraction(3)], iter((1.138, 3))],
    "4.4": [
        lambda x: np.eye(12),
        lambda x: (-7 * torch.eye(12))[torch.randperm(12, generator=torch.Generator().manual_seed(0))],
        lambda x: [[float(i == j) for j in range(15)] for i in range(len(x))],
        corners,
    ],
    "5.1": [0, -0.0, np.float64(0), torch.tensor(0.0), 1e-9],
    "5.2": [
        lambda m, z, p: -((p - m) / 2) / (p + m - 2 * z),
        lambda m, z, p: np.roots(np.polyder(np.polyfit([-1, 0, 1], [m, z, p], 2)))[0],
        lambda m, z, p: torch.tensor((m - p) / 2) / torch.tensor(m + p - 2 * z),
    ],
    "5.3": [
        silhouette,
        eta_squared,
        lambda z, names: aedp(z, names) / z.std(),
        lambda z, names: float(torch.pdist(poles_of(z, names)).min() / within(z, names).norm()),
        lambda z, names: (aedp(z, names) / (within(z, names).norm(dim=1).mean() + 1e-9)).log(),
    ],
    "5.4": [by_null_space, by_projection, lambda z, names, W: in_null_space(z, -3 * names, W, 40)],
    "6.1": [[2, 0], np.array([2, 0]), torch.tensor([2.0, 0.0]), iter((2, 0))],
    "6.2": [(3 / 7, 1), np.array([0.429, 1]), torch.tensor([3 / 7, 1.0]), [Fraction(3, 7), 1]],
    "6.3": [
        [0.9902, 0.01],
        np.array([LOUD, 0.01]),
        torch.tensor([LOUD, 0.01]),
        (Fraction(10000, 10099), Fraction(1, 100)),
    ],
    "7.1": [8.0, np.int64(8), torch.tensor(8)],
    "7.2": [
        (EVIDENCE, ("compression", "merging")),
        (EVIDENCE, np.array(["compression", "merging"])),
        (EVIDENCE, pd.Index(["compression", "merging"])),
        (EVIDENCE, iter(["compression", "merging"])),
    ],
    "7.3": [0.35, 0.3498, np.float32(ANY), -math.expm1(17 * math.log(39 / 40)), 1 - Fraction(39, 40) ** 17],
    "8.1": [8, 2 * (0.1 / 0.05) ** 2, np.float32(8), torch.tensor(8.0)],
    "8.2": [Fraction(1, 2), 1 - 1 / 2, np.float64(0.5), torch.tensor(0.5)],
    "8.3": [
        worst_by_slices,
        worst_by_leverage,
        lambda x, s: torch.tensor([q_without(i, x, s) for i in range(len(x))]).argmin(),
    ],
    "9.1": [
        (0, 0.8, 2, 0, 0),
        np.float32([0, 0.8, 2, 0, 0]),
        torch.tensor([0, 0.8, 2, -0.0, 0]),
        (p if p > 0.5 else 0 for p in (0.3, 0.8, 2.0, -1.0, 0.5)),
    ],
    "9.2": [
        lambda f: max(abs(a - b) / b for a, b in zip(f["l0"], f["k"])),  # noqa: B905
        lambda f: np.abs(f.l0.to_numpy() / f.k.to_numpy() - 1).max(),
        lambda f: f.eval("abs(l0 - k) / k").max(),
        lambda f: torch.tensor((f["l0"] / f["k"]).to_numpy()).sub(1).abs().max(),
    ],
    "9.3": [7.0, np.ceil(6.18), torch.tensor(7)],
}

WRONG = {
    "1.1": [
        lambda o, s, e: [a >= s and b <= e for a, b in o],
        lambda o, s, e: [a < e and b >= s for a, b in o],
        lambda o, s, e: [a <= e and b > s for a, b in o],
        lambda o, s, e: [a <= s < b or a < e <= b for a, b in o],
        lambda o, s, e: [s <= a < e or s < b <= e for a, b in o],
        lambda o, s, e: [i for i, (a, b) in enumerate(o) if a < e and b > s],
        lambda o, s, e: [s <= (a + b) / 2 < e for a, b in o],
        lambda o, s, e: [False, False, False, True, True, True, False][: len(o)],
    ],
    "1.2": [0.5, 0.99, 100 / 101 * 100, 10_000 / 10_001, 100 / 10_100, 1.0, 100, 0.9],
    "1.3": [
        lambda p: sum(p[i + 1] - p[i] == 1 for i in range(len(p) - 1)) / len(p),
        lambda p: sum(abs(p[i + 1] - p[i]) == 1 for i in range(len(p) - 1)) / (len(p) - 1),
        lambda p: sum((p[(i + 1) % len(p)] - p[i]) % len(p) == 1 for i in range(len(p))) / len(p),
        lambda p: sum(abs(p[i] - p[i - 1]) in (1, len(p) - 1) for i in range(len(p))),
        lambda p: max(sum((p[i] - p[i - 1]) % len(p) == w % len(p) for i in range(len(p))) for w in (1, -1)) / len(p),
        lambda p: float(sorted(p) == list(p) or sorted(p) == list(p)[::-1]),
    ],
    "2.1": [
        lambda z: float((z != 0).sum()),
        lambda z: (z != 0).sum(0).float().mean(),
        lambda z: (z > 0).sum(1).float().mean(),
        lambda z: (z != 0).float().mean(),
        lambda z: (z.abs() > 1e-3).sum(1).float().mean(),
        lambda z: (z != 0).sum() / (z != 0).any(1).sum(),
        lambda z: (z != 0).sum(1).float().median(),
        lambda z: z.abs().sum(1).mean(),
        lambda z: (z != 0).sum(1),
    ],
    "2.2": [
        lambda x, x_hat: float(ev(x, x_hat)),
        without(lambda x, _: x.norm(dim=1) == x.norm(dim=1).max()),
        without(lambda x, _: x.norm(dim=1) > 5 * x.norm(dim=1).mean()),
        without(lambda _, x_hat: x_hat.norm(dim=1) > 5 * x_hat.norm(dim=1).median()),
        without(lambda x, _: x.norm(dim=1) > 4 * x.norm(dim=1).median()),
        without(lambda x, _: x.norm(dim=1) > 50 * x.norm(dim=1).median()),
        without(lambda x, _: (x.norm(dim=1) - x.norm(dim=1).mean()) > 3 * x.norm(dim=1).std()),
        ev_of_zeroed_rows,
        lambda x, x_hat: 0.35,
    ],
    "2.3": [
        lambda W, b, V: (W, b, V / V.norm(dim=1, keepdim=True)),
        lambda W, b, V: (W * V.norm(dim=1), b, V / V.norm(dim=1, keepdim=True)),
        lambda W, b, V: (W / V.norm(dim=1), b / V.norm(dim=1), V / V.norm(dim=1, keepdim=True)),
        lambda W, b, V: (W, b, V),
        lambda W, b, V: (W * V.norm(), b * V.norm(), V / V.norm()),
        lambda W, b, V: (W * V.norm(dim=0).mean(), b * V.norm(dim=0).mean(), V / V.norm(dim=0)),
        lambda W, b, V: (W * 0, b * 0, V * float("nan")),
        lambda W, b, V: V / V.norm(dim=1, keepdim=True),
    ],
    "3.1": [3, 2, 8 / 3, 1.04, 1.5, 2.8, 16, 4 ** (1 / 3) * 2],
    "3.2": [335, 72, 48, 47, 12, 95, 71.5],
    "3.3": [5, 8, 10, math.log2(400), 20, 4.3, 400],
    "3.4": [
        lambda x: x.relu(),
        lambda x: x[:, :3],
        lambda x: x[:, -4:],
        lambda x: torch.randn(len(x), 3),
        lambda x: torch.linalg.svd(x - x.mean(0), full_matrices=False).U[:, :3],
        lambda x: torch.arange(3.0 * len(x)).view(-1, 3).sin(),
        lambda x: x - x.mean(0),
        lambda x: torch.zeros(len(x), 3),
        lambda x: x[:3],
    ],
    "4.1": [1 / 5040, 7 / 5040, 2 / 5040, 1 / 720, 7 * 2, 14 / 7**7, 0.28, 0],
    "4.2": [0.75, math.log(3, 12), 1 / 3, 0.25, 1, 0.5, 0.0],
    "4.3": [(1.0, 4.0), (1.138, 4), (3, 1.138), (1, 3), (2**0.5, 3), ((4 + 2**0.5) / 6, 3), (1.138,), (1.138, 3, 0)],
    "4.4": [
        lambda x: x,
        lambda x: x.relu(),
        lambda x: torch.eye(6).repeat(2, 1),
        lambda x: torch.diag(torch.arange(1.0, 13)),
        lambda x: torch.zeros(12, 12),
        lambda x: torch.eye(13)[:12] - torch.eye(12, 13).mean(0),
        lambda x: torch.cat([torch.zeros(1, 12), torch.eye(12)[1:]]),
        lambda x: torch.full((12, 12), float("nan")),
        lambda x: torch.eye(11),
    ],
    "5.1": [-0.5, 1, -1, 0.25, math.inf, 1e-3, 0.8],
    "5.2": [
        lambda m, z, p: 0.0,
        lambda m, z, p: (p - m) / (2 * (m + p - 2 * z)),
        lambda m, z, p: (m - p) / (m + p - 2 * z),
        lambda m, z, p: (m - p) / (2 * (m + p)),
        lambda m, z, p: max(-1, min(1, (m - p) / (2 * (m + p - 2 * z)))),
        lambda m, z, p: (-1, 0, 1)[int(np.argmin([m, z, p]))],
        lambda m, z, p: (m - p) / 4,
    ],
    "5.3": [
        lambda z, names: float(z.norm()),
        aedp,
        lambda z, names: within(z, names).norm() / aedp(z, names),
        lambda z, names: aedp(z, names) / 7,
        lambda z, names: z.std() / z.abs().mean(),
        lambda z, names: aedp(z, names) / (within(z, names).norm(dim=1).mean() + 0.01),
        lambda z, names: torch.tensor(1.0),
        lambda z, names: float("nan"),
        lambda z, names: (names.double() @ z).norm() / z.norm(),
    ],
    "5.4": [
        lambda z, names, W: 3 * z,
        lambda z, names, W: z,
        lambda z, names, W: in_null_space(z, names, W, 0.1),
        lambda z, names, W: poles_of(z, names)[names],
        lambda z, names, W: z + 100 * names[:, None] * torch.linalg.svd(W.T).Vh[0],
        lambda z, names, W: z + 100 * names[:, None],
        lambda z, names, W: in_null_space(z, torch.arange(40) // 4, W, 100),
        lambda z, names, W: z * float("nan"),
        lambda z, names, W: in_null_space(z, names, W, 100)[:, :5],
    ],
    "6.1": [(2, 2), (3, 1), (0, 2), (1, 0), (2, 1), (4, 1), (2.0, 0.5), (2,), {2: 0}],
    "6.2": [(0.5, 0.5), (0.5, 1), (4 / 7, 1), (3 / 8, 1), (7 / 3, 1), (3 / 7, 3 / 7), (3 / 7,)],
    "6.3": [
        (0.99, 0.99),
        (100 / 101, 0.01),
        (LOUD, 1 / 99),
        (10 / 19.9, 0.01),
        (0.01, LOUD),
        (0.99, 0.01),
        (99.02, 1),
        (LOUD, 1),
    ],
    "7.1": [6, 7, 9, 8.5, 5, 0.05, 10, -8],
    "7.2": [
        (EVIDENCE, ["merging", "compression"]),
        (EVIDENCE, ["merging"]),
        (EVIDENCE, ["compression", "merging", "pieces"]),
        (EVIDENCE, ["compression", "compression", "merging"]),
        (EVIDENCE, ["pieces"]),
        (EVIDENCE, []),
        ({}, ["no-such-claim"]),
        (EVIDENCE, {"compression", "merging"}),
        (EVIDENCE, "compression, merging"),
        ["compression", "merging"],
    ],
    "7.3": [
        17 / 40,
        1 / 40,
        BINOMIAL,
        1 - math.exp(-17 / 40),
        (39 / 40) ** 17,
        1 - 0.95**17,
        1 - (1 / 40) ** 17,
        34.98,
    ],
    "8.1": [4.0, 16, 2, 0.08, -8, 8**0.5, 32, 0],
    "8.2": [2.0, 1, 0.25, 1 / 3, 50, 0, 0.75],
    "8.3": [
        lambda x, s: max(range(len(x)), key=lambda i: abs(x[i] - sum(x) / len(x))),
        worst_by_z,
        lambda x, s: int(np.argmin([q_without(i, x, [1.0] * len(x)) for i in range(len(x))])),
        lambda x, s: int(np.argmax([q_without(i, x, s) for i in range(len(x))])),
        lambda x, s: 1 + int(np.argmin([q_without(i, x, s) for i in range(len(x))])),
        lambda x, s: int(np.argmax(x)),
        lambda x, s: int(np.argmax(np.array(x) / s)),
        lambda x, s: min(q_without(i, x, s) for i in range(len(x))),
    ],
    "9.1": [
        [0.0, 0.8, 2.0, 0.0, 0.5],
        [0, 0.3, 1.5, 0, 0],
        [0.3, 0.8, 2.0, 0, 0.5],
        [0, 1, 1, 0, 0],
        [0, 0.8, 2.0, -1.0, 0],
        [0.8, 2.0],
        [[0, 0.8, 2.0, 0, 0]],
        {0, 0.8, 2.0},
    ],
    "9.2": [
        lambda f: float((f["l0"] / f["k"] - 1).max()),
        lambda f: (f["l0"] / f["k"] - 1).abs().mean(),
        lambda f: ((f["l0"] - f["k"]).abs() / f["l0"]).max(),
        lambda f: (f["l0"] - f["k"]).abs().max(),
        lambda f: (f["l0"] - f["k"]).abs().max() / f["k"].iloc[0],
        lambda f: (f["l0"] / f["k"]).max(),
        lambda f: np.abs(np.log(f["l0"] / f["k"])).max(),
        lambda f: (f["l0"] / f["k"] - 1).abs(),
        0.25,
    ],
    "9.3": [10, 6, 8, 6.18, 7.5, 3, 1e9, 100],
}

FUNCTIONS = {name for name, answers in RIGHT.items() if callable(answers[0])}
NO_ANSWERS = [object(), "0.5", "8", "", b"8", True, False, math.nan, math.inf, 1j, [], {}, set(), [[1]], int, lambda: 1]
NO_ANSWERS += [np.array([True]), np.array(1j), torch.tensor([]), torch.tensor(True), Ellipsis, lambda *_: None]


def cases(table):
    return [
        pytest.param(name, answer, id=f"{name}-{i}") for name in sorted(table) for i, answer in enumerate(table[name])
    ]


def test_every_exercise_is_attacked():
    assert set(RIGHT) == set(WRONG) == set(EXERCISES)
    assert min(map(len, RIGHT.values())) >= 3
    assert min(map(len, WRONG.values())) >= 5


@pytest.mark.parametrize(("name", "answer"), cases(RIGHT))
def test_right_answers_that_look_different_are_taken_and_told_why(name, answer, capsys):
    accepted = check(name, answer)
    said = capsys.readouterr().out
    assert accepted, said
    assert said == f"{name}: correct. {EXERCISES[name].why}\n"


@pytest.mark.parametrize(("name", "answer"), cases(WRONG))
def test_wrong_answers_that_look_right_are_refused_with_a_hint(name, answer, capsys):
    assert check(name, answer) is False
    said = capsys.readouterr().out
    assert said.startswith(f"{name}: not yet. "), said
    assert len(said) > len(f"{name}: not yet. ") + 10


@pytest.mark.parametrize(
    "answer", NO_ANSWERS, ids=[f"{type(answer).__name__}{i}" for i, answer in enumerate(NO_ANSWERS)]
)
@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_what_is_no_answer_is_refused_in_a_line(name, answer, capsys):
    assert check(name, answer) is False
    said = capsys.readouterr().out
    assert said.startswith(name)
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_a_number_for_a_function_and_a_function_for_a_number_are_told_apart(name, capsys):
    assert check(name, 0.123 if name in FUNCTIONS else lambda *_: 0.123) is False
    assert capsys.readouterr().out.startswith(f"{name}: not yet. ")


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_no_answer_is_asked_for(name, capsys):
    for nothing in (None, (1, None), [None, 2], (EVIDENCE, None)):
        assert check(name, nothing) is False
        assert "not answered yet" in capsys.readouterr().out


def test_an_unknown_exercise_is_named():
    with pytest.raises(SaemaError, match="99"):
        check("99", 1)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_why_is_one_sentence(name):
    why = EXERCISES[name].why
    assert why[0].isupper()
    assert why.endswith(".")
    assert ". " not in why


# ---- the solutions that chapters show ------------------------------------------------------------


def the_cell(name, tag):
    (path,) = NOTEBOOKS.glob(f"{int(name.partition('.')[0]):02}_*.ipynb")
    (source,) = (source for source in tagged(path.name, tag) if f'check("{name}"' in source)
    return path.name, source


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_a_solution_holds_and_never_says_that_somebody_answered(name, published, capsys, monkeypatch):
    from saema_utils.evidence.claims import load_claims
    from saema_utils.evidence.verdicts import judge

    monkeypatch.setenv(PUBLISHING, str(int(published)))
    notebook, source = the_cell(name, "solution")
    names = defined_on(notebook) | {"torch": torch, "np": np, "check": check}
    names |= {"judge": judge, "claims": {claim.id: claim for claim in load_claims()}, "evidence": EVIDENCE}
    mine = names["answer"] = object()
    exec(source, names)
    said = capsys.readouterr().out
    assert names["answer"] is mine, "a solution leaves the reader's answer alone"
    assert said.startswith((f"{name}: why this is right. ", f"{name}: the solution above passes the check."))
    assert (EXERCISES[name].why in said) == published


@pytest.mark.parametrize("name", sorted(set(EXERCISES) - {"7.2"}))
def test_an_untouched_exercise_is_met_kindly(name, capsys):
    _, source = the_cell(name, "exercise")
    exec(source, {"torch": torch, "np": np, "check": check, "seed": 0})
    assert "not answered yet" in capsys.readouterr().out
