"""The doubt of a comparison, by the textbook and by counting."""

import math
from itertools import product
from statistics import mean

import pytest
from runner.report.paired import gain_in_words, paired
from runner.report.signed import signed
from scipy.integrate import quad

WITHOUT = {0: 61.2, 1: 60.1, 2: 62.4, 3: 59.9, 4: 61.0}
WITH = {0: 63.1, 1: 60.8, 2: 62.2, 3: 62.5, 4: 63.3, 7: 99.0}  # seed 7 has no partner


def student(t, degrees):
    """Density of Student's distribution."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    return scale * (1 + t * t / degrees) ** (-(degrees + 1) / 2)


def test_gain_interval_and_t_test_by_the_textbook():
    found = paired(WITH, WITHOUT)
    gains = [1.9, 0.7, -0.2, 2.6, 2.3]
    centre = mean(gains)
    error = math.sqrt(sum((gain - centre) ** 2 for gain in gains) / 4 / 5)
    assert (found.pairs, found.ahead) == (5, 4)
    assert found.gain == pytest.approx(centre)
    assert found.p_t == pytest.approx(2 * quad(student, centre / error, math.inf, args=(4,))[0], rel=1e-6)
    half = found.high - found.gain
    assert found.gain - found.low == pytest.approx(half)
    assert half / error == pytest.approx(2.7764451052, rel=1e-8)  # Student's table, four degrees of freedom


@pytest.mark.parametrize(("ahead", "behind"), [(5, 0), (4, 1), (9, 1), (3, 3), (0, 8)])
def test_sign_test_by_counting_all_coins(ahead, behind):
    gains = dict(enumerate([1.0 + i for i in range(ahead)] + [-1.0 - i for i in range(behind)] + [0.0]))
    n = ahead + behind
    as_far = sum(abs(sum(coins) - n / 2) >= abs(ahead - n / 2) for coins in product((0, 1), repeat=n))
    assert paired(gains, dict.fromkeys(gains, 0.0)).p_sign == pytest.approx(as_far / 2**n)


def test_too_little_to_tell():
    one = paired({3: 2.0}, {3: 1.5})
    assert (one.gain, one.low, one.p_t, one.p_sign) == (0.5, None, None, 1.0)
    alike = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert (alike.gain, alike.p_t, alike.p_sign) == (0.0, None, None)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_in_words():
    assert gain_in_words([], []) == ""
    assert gain_in_words([60.0], [61.5]) == "+1.50"
    assert gain_in_words([60.0, 61.0], [61.0, 63.0, 70.0]) == "+1.50 (-4.85 to +7.85, p = 0.2)"  # t = 3, one degree


@pytest.mark.parametrize(
    ("points", "digits", "written"),
    [
        *((0.04, 1, "0.0"), (-0.04, 1, "0.0"), (0.0, 1, "0.0"), (-0.0, 2, "0.00")),
        *((0.06, 1, "+0.1"), (-0.06, 1, "-0.1"), (-0.04, 2, "-0.04"), (12.0, 1, "+12.0")),
    ],
)
def test_a_difference_of_nothing_has_no_sign(points, digits, written):
    assert signed(points, digits) == written
