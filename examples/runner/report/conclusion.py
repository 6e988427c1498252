"""What a comparison shows, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean, stdev

from scipy import stats

from runner.report.signed import signed

NAMES = {"none": "training without i-Mix", "mixup": "i-Mix", "cutmix": "i-Mix (cutmix)"}


def conclude(found: Mapping[str, Mapping[int, float]], raw: str) -> str:
    """Say it from the accuracies in percent of each mix and control, seed by seed; ``raw`` is what the input is called.

    Controls are called ``raw``, of one seed for all, and ``untrained``.
    """
    controls = {"raw": f"the raw {raw}", "untrained": "the untrained network"}
    means = {name: mean(seeds.values()) for name, seeds in found.items() if seeds}
    trained = [name for name in NAMES if name in means]
    compared = [name for name in trained if name != "none"] or trained
    sentences = []
    for name in compared:
        parts = []
        if name != "none" and "none" in means:
            parts.append(f"{gain(found[name], found['none'])}")
        parts += [f"{signed(means[name] - means[one])} over {controls[one]}" for one in controls if one in means]
        if parts:
            sentences.append(f"{NAMES[name]} {', '.join(parts)}")
    best = max((means[name] for name in trained), default=0.0)
    better = [one for one in controls if one in means and means[one] > best]
    if better:
        one = max(better, key=means.__getitem__)
        verb = "do" if one == "raw" else "does"
        sentences.append(f"{controls[one]} {verb} better here: {means[one]:.1f}")
    return f"Linear probe: {'; '.join(sentences)}." if sentences else ""


def gain(with_mix: Mapping[int, float], without: Mapping[int, float]) -> str:
    """The mean gain over the seeds that both have, with Student's 95 % interval where there are two or more."""
    seeds = sorted(set(with_mix) & set(without))
    differences = [with_mix[seed] - without[seed] for seed in seeds]
    if not seeds:
        return f"{signed(mean(with_mix.values()) - mean(without.values()))} over none (no seed in common)"
    centre = mean(differences)
    if len(seeds) == 1:
        return f"{signed(centre)} over none (one seed)"
    half = stats.t.ppf(0.975, len(seeds) - 1) * stdev(differences) / len(seeds) ** 0.5
    interval = f"{signed(centre - half)} to {signed(centre + half)}"
    return f"{signed(centre)} over none ({interval}: 95 % over {len(seeds)} seeds)"
