"""Cases of several parameters of which the quick suite runs a few, and the slow one all."""

import itertools

import pytest


def in_pairs(**values):
    """Parametrize over all combinations; slow are those beyond the few in which each two values meet."""
    cases, few = list(itertools.product(*values.values())), []
    left = {pair for case in cases for pair in _pairs(case)}
    while left:
        few.append(max(cases, key=lambda case: len(left & _pairs(case))))
        left -= _pairs(few[-1])
    return pytest.mark.parametrize(
        tuple(values), [case if case in few else pytest.param(*case, marks=pytest.mark.slow) for case in cases]
    )


def _pairs(case):
    return set(itertools.combinations(enumerate(case), 2))
