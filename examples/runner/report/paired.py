"""What pairs of runs, alike but for i-Mix, show: the mean gain, and how far chance alone would explain it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from scipy import stats

from runner.report.signed import signed


@dataclass(frozen=True)
class Paired:
    """In the units of what was compared; None where there are too few pairs, or no two that differ."""

    pairs: int
    gain: float
    low: float | None  # Student's 95 % interval
    high: float | None
    ahead: int  # pairs in which i-Mix is ahead
    p_t: float | None  # paired t-test, two-sided
    p_sign: float | None  # sign test, two-sided; pairs that are equal do not count


def paired(with_mix: Mapping[int, float], without: Mapping[int, float]) -> Paired | None:
    """Compare by seed; seeds that only one of the two has are left out. None where no seed is left."""
    seeds = sorted(set(with_mix) & set(without))
    gains = [with_mix[seed] - without[seed] for seed in seeds]
    if not gains:
        return None
    ahead, behind = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    p_sign = sign_test(ahead, behind) if ahead + behind else None
    low = high = p_t = None
    if len(set(gains)) > 1:
        test = stats.ttest_1samp(gains, 0.0)
        low, high = map(float, test.confidence_interval(0.95))
        p_t = float(test.pvalue)
    return Paired(len(gains), mean(gains), low, high, ahead, p_t, p_sign)


def sign_test(ahead: int, behind: int) -> float:
    """How likely so uneven a result is by chance, either way."""
    return float(stats.binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def interval(found: Paired, digits: int = 1) -> str:
    """From where to where it reaches; nothing where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{signed(found.low, digits)} to {signed(found.high, digits)}"


def with_interval(found: Paired, digits: int = 1) -> str:
    """The gain, and in brackets its interval where there is one."""
    reach = interval(found, digits)
    return f"{signed(found.gain, digits)} ({reach})" if reach else signed(found.gain, digits)


def bold_if_sure(found: Paired) -> str:
    """The same in Markdown, bold where the interval leaves zero out."""
    is_sure = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    return f"**{with_interval(found)}**" if is_sure else with_interval(found)


def gain_in_words(without: Sequence[float], with_mix: Sequence[float]) -> str:
    """The gain of runs in the order of their seeds, with interval and p of the t-test where there are several."""
    found = paired(dict(enumerate(with_mix)), dict(enumerate(without)))
    if found is None:
        return ""
    if found.p_t is None:
        return signed(found.gain, 2)
    return f"{signed(found.gain, 2)} ({interval(found, 2)}, p = {found.p_t:.2g})"
