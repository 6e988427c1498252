"""Draw and print what ablations say of the gain of i-Mix: `python docs/figures/questions.py`.

The runs come from `questions.json`, which `gather.py` collects.
"""

import sys
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
from runs import by_seed, load_runs
from style import OWN, PARTNER, save

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from runner.report.paired import Paired, bold_if_sure, paired

RUNS = load_runs("questions")
DATA = {"cifar100": "CIFAR-100", "speechcommands": "spoken commands"}
NAMES = {
    "rows": "training rows",
    "epochs": "epochs",
    "width": "width",
    "depth": "depth",
    "augment": "augmentation",
    "mix": "mode",
    "lambda": "a lambda per",
    "alpha": "alpha",
    "inputmix": "InputMix, others",
    "temperature": "temperature",
    "queue": "queue",
}
WORDS = ("none", "weak", "default", "mixup", "cutmix", "row", "batch")  # values that no number orders
Question = tuple[str, str, str, str]  # over, data, method, change


def questions() -> list[Question]:
    """All that were asked, in the order of their names."""
    return sorted(set(map(asked_by, RUNS)), key=lambda one: (list(NAMES).index(one[0]), one[1:]))


def title(question: Question) -> str:
    """What was varied, and what else was not the grid's."""
    over, _, _, change = question
    return f"{NAMES[over]}, {change}" if change else NAMES[over]


def values(question: Question) -> list[str]:
    """From the smallest to the largest."""
    found = {run["value"] for run in RUNS if asked_by(run) == question}
    return sorted(found, key=lambda one: WORDS.index(one) if one in WORDS else float(one.removeprefix("resnet")))


def asked_by(run: dict) -> Question:
    """The question that a run answers; fewer rows with more epochs are one question, whatever the number of both."""
    name, _, changed = run["change"].partition("=")
    change = {"pretrain-rows": f"{changed} rows", "epochs": "as many steps"}.get(name, "")
    return run["over"], run["data"], run["method"], change


def found(question: Question, value: str, features: str, metric: str) -> dict[int, float]:
    """What was measured, seed by seed, in percent."""
    asked = [run for run in RUNS if asked_by(run) == question]
    return by_seed(asked, metric, value=value, features=features)


def gains(question: Question, value: str, metric: str) -> dict[int, float]:
    """With i-Mix less without, seed by seed."""
    with_mix, without = (found(question, value, mix, metric) for mix in ("mixup", "none"))
    return {seed: with_mix[seed] - without[seed] for seed in with_mix.keys() & without.keys()}


def compare(question: Question, value: str, metric: str) -> Paired:
    """The gain with its interval."""
    own = gains(question, value, metric)
    return paired(own, dict.fromkeys(own, 0.0))


def change_of_gain(question: Question, metric: str) -> Paired:
    """The gain at the last value less that at the first, seed by seed."""
    first, *_, last = (gains(question, value, metric) for value in values(question))
    return paired(last, first)


def table() -> str:
    """Accuracies and gains, a line for each value, in Markdown."""
    heads = ["question", "data, method", "value", "pairs", "without", "with i-Mix", "gain", "kNN: gain"]
    rows = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for question in questions():
        for value in values(question):
            cells = [title(question), f"{DATA[question[1]]}, {question[2]}", value]
            own = [found(question, value, mix, "probe") for mix in ("none", "mixup")]
            pairs = [compare(question, value, metric) for metric in ("probe", "knn")]
            cells += [str(pairs[0].pairs), *(f"{mean(one.values()):.1f}" for one in own), *map(bold_if_sure, pairs)]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def changes() -> str:
    """How the gain differs between the ends of each question, in Markdown."""
    rows = ["| the gain, between | data, method | linear probe | kNN |", "| --- " * 4 + "|"]
    for question in questions():
        first, *_, last = values(question)
        cells = [f"{title(question)}: {first} and {last}", f"{DATA[question[1]]}, {question[2]}"]
        cells += [bold_if_sure(change_of_gain(question, metric)) for metric in ("probe", "knn")]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(ink: str) -> plt.Figure:
    """A panel for each question: the mean gain against the value, with its 95 % interval as a band."""
    columns = 4
    lines = -(-len(questions()) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(10, 2.4 * lines), layout="constrained", squeeze=False)
    for axis in panels.flat[len(questions()) :]:
        axis.set_axis_off()
    for axis, question in zip(panels.flat, questions(), strict=False):
        axis.axhline(0, color=ink, linewidth=0.8)
        for metric, label, colour, mark in (("probe", "linear probe", OWN, "o"), ("knn", "kNN", PARTNER, "s")):
            pairs = [compare(question, value, metric) for value in values(question)]
            places = range(len(pairs))
            axis.plot(places, [one.gain for one in pairs], color=colour, marker=mark, markersize=4, label=label)
            axis.fill_between(
                places, [one.low for one in pairs], [one.high for one in pairs], color=colour, alpha=0.2, linewidth=0
            )
        axis.set_xticks(places, values(question), fontsize=8)
        axis.set_xlim(-0.3, len(pairs) - 0.7)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_title(f"{title(question)}\n{DATA[question[1]]}, {question[2]}", fontsize=9)
    for axis in panels[:, 0]:
        axis.set_ylabel("gain, points", fontsize=8)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside upper center", ncols=2)
    return figure


if __name__ == "__main__":
    print(table(), changes(), sep="\n\n")
    for question in questions():
        spent = [run["cpu_seconds"] for run in RUNS if asked_by(run) == question]
        print(
            title(question), f"{min(spent):.0f} to {max(spent):.0f} s, all {sum(spent) / 60:.0f} min", file=sys.stderr
        )
    save("questions", draw)
