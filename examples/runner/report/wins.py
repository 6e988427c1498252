"""How often one way is ahead of another over many tables: ``report.json``, the matrix in words, and the picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runner.errors import Refused
from runner.report.paired import bold_if_sure, paired, sign_test
from runner.report.signed import signed
from runner.state.checkpoint import naming
from runner.state.files import write_atomically, write_text

Cell = dict[str, Any]


class WinReport:
    """What was found on each table, in each way, with each seed; written anew after each, so that none is lost."""

    def __init__(self, folder: Path, title: str, *, recipe: dict[str, Any]) -> None:
        self.path, self.title, self.recipe = folder / "report.json", title, recipe
        self.tables: dict[str, dict[str, Any]] = {}
        self.cells: list[Cell] = []
        if self.path.exists():
            with naming(self.path):
                found = json.loads(self.path.read_bytes())
                self.tables, self.cells, before = found["tables"], found["cells"], found["recipe"]
            if before != recipe:
                odd = min(key for key in {*before, *recipe} if before.get(key) != recipe.get(key))
                differ = f"{odd} {before.get(odd)} there and {recipe.get(odd)} here"
                raise Refused(f"{self.path}: {differ}; give another --out")

    def has(self, table: str, arm: str, seed: int) -> bool:
        """Whether an earlier command has found it."""
        return any((cell["table"], cell["arm"], cell["seed"]) == (table, arm, seed) for cell in self.cells)

    def describe(self, table: str, sizes: dict[str, Any]) -> None:
        """Note how large a table is."""
        self.tables[table] = sizes

    def add(self, table: str, seed: int, found_by: dict[str, dict[str, float]]) -> None:
        """Note what was found on a table with a seed, in one way or more."""
        self.cells += [{"table": table, "arm": arm, "seed": seed, **metrics} for arm, metrics in found_by.items()]
        found = {"title": self.title, "recipe": self.recipe, "tables": self.tables, "cells": self.cells}
        write_text(self.path, json.dumps(found, indent=1) + "\n")


def means(cells: Iterable[Cell], metric: str, arms: Sequence[str]) -> dict[str, dict[str, float]]:
    """The mean over the seeds in percent, for each table that has all ``arms``, and each arm."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        if metric in cell:
            found.setdefault(cell["table"], {}).setdefault(cell["arm"], []).append(100 * cell[metric])
    complete = {table: ways for table, ways in found.items() if all(arm in ways for arm in arms)}
    return {table: {arm: mean(ways[arm]) for arm in arms} for table, ways in complete.items()}


def seeds_of(cells: Iterable[Cell]) -> str:
    """How many seeds the most repeated way has on each table, in words."""
    counts: dict[str, set[int]] = {}
    for cell in cells:
        counts.setdefault(cell["table"], set()).add(cell["seed"])
    numbers = sorted({len(seeds) for seeds in counts.values()})
    if numbers == [1]:
        return "one seed"
    return f"{' to '.join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1])))} seeds"


def wins(found: dict[str, dict[str, float]], one: str, other: str) -> tuple[int, int]:
    """On how many tables one is ahead of the other, and on how many behind; equal to 0.01 points is neither."""
    differences = [round(arms[one] - arms[other], 2) for arms in found.values()]
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def matrix(found: dict[str, dict[str, float]], arms: Sequence[str]) -> str:
    """Ahead and behind for each pair, as Markdown."""
    lines = [f"| ahead : behind | {' | '.join(arms)} |", "| --- " * (len(arms) + 1) + "|"]
    for one in arms:
        counts = ["" if one == other else "{} : {}".format(*wins(found, one, other)) for other in arms]
        lines.append(f"| {one} | {' | '.join(counts)} |")
    return "\n".join(lines)


def accuracies(found: dict[str, dict[str, float]], arms: Sequence[str]) -> str:
    """Percent for each table and arm, and the mean of each arm, as Markdown."""
    lines = [f"| table | {' | '.join(arms)} |", "| --- " * (len(arms) + 1) + "|"]
    for table, ways in sorted(found.items()):
        best = max(round(ways[arm], 1) for arm in arms)
        numbers = [f"**{ways[arm]:.1f}**" if round(ways[arm], 1) == best else f"{ways[arm]:.1f}" for arm in arms]
        lines.append(f"| {table} | {' | '.join(numbers)} |")
    averages = [f"{mean(ways[arm] for ways in found.values()):.1f}" for arm in arms]
    return "\n".join([*lines, f"| mean | {' | '.join(averages)} |"])


def gains(cells: Iterable[Cell], metric: str, pairs: Sequence[tuple[str, str]]) -> str:
    """How far the first of each pair is ahead on each table, with Student's 95 % interval over the seeds, as Markdown.

    What was judged once, since nothing in it depends on the seed, is compared with every seed of the other.
    """
    by_seed: dict[str, dict[str, dict[int, float]]] = {}
    for cell in cells:
        if metric in cell:
            by_seed.setdefault(cell["table"], {}).setdefault(cell["arm"], {})[cell["seed"]] = 100 * cell[metric]
    lines = [f"| table | {' | '.join(f'{one} over {other}' for one, other in pairs)} |"]
    lines.append("| --- " * (len(pairs) + 1) + "|")
    for table, ways in sorted(by_seed.items()):
        if all(arm in ways for pair in pairs for arm in pair):
            lines.append(f"| {table} | {' | '.join(_gain(ways[one], ways[other]) for one, other in pairs)} |")
    return "\n".join(lines)


def _gain(one: dict[int, float], other: dict[int, float]) -> str:
    found = paired(one, dict.fromkeys(one, other[0]) if set(other) == {0} else other)
    return "no seed in common" if found is None else bold_if_sure(found)


def compare(found: dict[str, dict[str, float]], one: str, other: str) -> str:
    """One line of words for a pair."""
    ahead, behind = wins(found, one, other)
    differences = [arms[one] - arms[other] for arms in found.values()]
    spread = f" ± {stdev(differences):.1f}" if len(differences) > 1 else ""
    return (
        f"{one} is ahead of {other} on {ahead} of {len(found)} tables and behind on {behind} "
        f"(sign test p = {sign_test(ahead, behind):.2g}; {signed(mean(differences))}{spread} points, "
        f"worst {signed(min(differences))})"
    )


def draw_matrix(path: Path, title: str, found: dict[str, dict[str, float]], arms: Sequence[str]) -> None:
    """Draw on what share of the tables each row is ahead of each column."""
    figure = Figure(figsize=(1.0 * len(arms) + 2.4, 0.62 * len(arms) + 2.1), layout="constrained")
    draw_matrix_on(figure, title, found, arms)
    write_atomically(path, lambda file: FigureCanvasAgg(figure).print_png(file))


def draw_matrix_on(figure: Figure, title: str, found: dict[str, dict[str, float]], arms: Sequence[str]) -> None:
    """Draw it on a figure: orange where the row is ahead on more tables, purple where it is behind on more."""
    axes = figure.add_subplot()
    lead = [[0.0] * len(arms) for _ in arms]
    for i, one in enumerate(arms):
        for j, other in enumerate(arms):
            ahead, behind = wins(found, one, other)
            lead[i][j] = (ahead - behind) / len(found)
            if i != j:
                axes.text(j, i, str(ahead), ha="center", va="center", color="black", fontsize=10)
    axes.imshow(lead, cmap="PuOr_r", vmin=-1.3, vmax=1.3)
    names = [arm.replace(" + raw columns", "\n+ raw columns") for arm in arms]
    axes.set_xticks(range(len(arms)), names, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(len(arms)), names, fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{title}\non how many of {len(found)} tables the row is ahead of the column", fontsize=9)
