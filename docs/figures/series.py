"""Draw the gains of i-Mix on series and print their tables: `python docs/figures/series.py`.

The runs come from `series.json`, which `series_runs.py` makes.
"""

import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from runs import by_seed, load_runs
from style import OWN, PARTNER, save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.report.paired import Paired, bold_if_sure, paired, sign_test
from runner.report.signed import signed

RUNS = load_runs("series")
WAVES = ("aligned phases", "random phases")
REAL = sorted({run["data"] for run in RUNS} - set(WAVES))
VIEWS = {"same": "no jitter", "jitter": "jitter"}
FEATURES = ("raw", "untrained", *(views + mixed for views in VIEWS for mixed in ("", ", i-Mix")))
METRICS = {"nn": "1-NN", "probe": "linear probe"}


def found(data: str, features: str, metric: str) -> dict[int, float]:
    """What was measured, seed by seed, in percent."""
    return by_seed(RUNS, metric, data=data, features=features)


def gain(data: str, views: str, metric: str) -> Paired:
    """What i-Mix adds to these views."""
    return paired(found(data, f"{views}, i-Mix", metric), found(data, views, metric))


def table(names: tuple[str, ...] | list[str], metric: str) -> str:
    """Accuracies and gains, a set a line."""
    heads = ["raw", "untrained", "none", "i-Mix", "jitter", "jitter + i-Mix", "gain, no jitter", "gain, jitter"]
    rows = [f"| {METRICS[metric]} | {' | '.join(heads)} |", "| --- " * (1 + len(heads)) + "|"]
    columns = [[mean(found(data, features, metric).values()) for data in names] for features in FEATURES]
    for place, data in enumerate(names):
        cells = [f"{column[place]:.1f}" for column in columns]
        cells += [bold_if_sure(gain(data, views, metric)) for views in VIEWS]
        rows.append(f"| {' | '.join([data, *cells])} |")
    if len(names) > len(WAVES):
        rows.append(f"| {' | '.join(['mean', *(f'{mean(column):.1f}' for column in columns)])} | | |")
    return "\n".join(rows)


def over_sets(metric: str, views: str) -> str:
    """On how many of the real sets i-Mix is ahead, by the means over the seeds."""
    gains = [round(gain(data, views, metric).gain, 4) for data in REAL]
    ahead, behind = sum(one > 0 for one in gains), sum(one < 0 for one in gains)
    p = sign_test(ahead, behind)
    return (
        f"- {METRICS[metric]}, {VIEWS[views]}: ahead on {ahead} of {len(gains)} sets and behind on {behind} "
        f"(sign test p = {p:.2g}; {signed(mean(gains))} points in the mean, worst {signed(min(gains))})"
    )


def draw(ink: str) -> plt.Figure:
    """The mean gain of i-Mix by nearest neighbour with its interval: real sets and waves, without and with jitter."""
    figure, axis = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    axis.axvline(0, color=ink, linewidth=0.8)
    names = [*REAL, *(f"waves, {data}" for data in WAVES)]
    for side, views, color, mark in ((0.13, "same", OWN, "o"), (-0.13, "jitter", PARTNER, "s")):
        pairs = [gain(data, views, "nn") for data in (*REAL, *WAVES)]
        ends = [[p.gain - (p.gain if p.low is None else p.low) for p in pairs]]
        ends.append([(p.gain if p.high is None else p.high) - p.gain for p in pairs])
        places = [side - place for place in range(len(names))]
        style = {"fmt": mark, "color": color, "capsize": 3, "markersize": 4, "label": VIEWS[views]}
        axis.errorbar([p.gain for p in pairs], places, xerr=ends, **style)
    axis.set_yticks([-place for place in range(len(names))], names, fontsize=8)
    axis.set_xlabel("gain of i-Mix by the nearest neighbour, points", fontsize=8)
    axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    for names in (REAL, WAVES):
        print(*(table(names, metric) for metric in METRICS), sep="\n\n", end="\n\n")
    print("\n".join(over_sets(metric, views) for metric in METRICS for views in VIEWS))
    trained = [run["cpu_seconds"] for run in RUNS if run["features"] not in ("raw", "untrained")]
    print(f"{len(trained)} runs, {min(trained)} to {max(trained)} s each, {sum(trained):.0f} s in all", file=sys.stderr)
    save("series", draw)
