"""How accurate each way is, on the mean of many tables, against the share of the labels that it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runner.report.paired import sign_test
from runner.report.signed import signed
from runner.report.wins import wins
from runner.state.files import write_atomically

Found = Mapping[float, Mapping[str, Mapping[str, float]]]  # by share, table and way, in percent


def averages(found: Found, arms: Sequence[str]) -> str:
    """The mean over the tables of each way with each share, as Markdown."""
    lines = [f"| mean of {len(min(found.values(), key=len))} tables | {' | '.join(map(in_percent, found))} |"]
    lines.append("| --- " * (len(found) + 1) + "|")
    columns = [{arm: mean(ways[arm] for ways in tables.values()) for arm in arms} for tables in found.values()]
    best = [f"{max(column.values()):.1f}" for column in columns]
    for arm in arms:
        numbers = [f"{column[arm]:.1f}" for column in columns]
        cells = [f"**{n}**" if n == top else n for n, top in zip(numbers, best, strict=True)]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def duels(found: Found, pairs: Sequence[tuple[str, str]]) -> str:
    """On how many tables the first of each pair is ahead and behind, by how much, and the sign test, as Markdown."""
    count = len(min(found.values(), key=len))
    lines = [f"| ahead : behind of {count} tables | {' | '.join(map(in_percent, found))} |"]
    lines.append("| --- " * (len(found) + 1) + "|")
    for one, other in pairs:
        cells = []
        for tables in found.values():
            ahead, behind = wins(tables, one, other)
            gain = mean(ways[one] - ways[other] for ways in tables.values())
            cells.append(f"{ahead} : {behind}, {signed(gain)}, p = {sign_test(ahead, behind):.2g}")
        lines.append(f"| {one} over {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def leads(found: Found, pairs: Sequence[tuple[str, str]], sizes: Mapping[str, dict[str, Any]]) -> str:
    """How far the first of each pair is ahead on each table, one share after the other, as Markdown."""
    lines = [f"| table | labels | {' | '.join(f'{one} over {other}' for one, other in pairs)} |"]
    lines.append("| --- " * (len(pairs) + 2) + "|")
    for table in sorted(next(iter(found.values()))):
        ways = [tables[table] for tables in found.values()]
        cells = [", ".join(signed(way[one] - way[other]) for way in ways) for one, other in pairs]
        labels = ", ".join(str(sizes[table]["labels"][str(share)]) for share in found)
        lines.append(f"| {table} | {labels} | {' | '.join(cells)} |")
    return "\n".join(lines)


def in_percent(share: float) -> str:
    """A share as it is written: 1 %, 2.5 %."""
    return f"{100 * share:g} %"


def draw_shares(path: Path, title: str, found: Found, arms: Sequence[str]) -> None:
    """Draw a line for each way."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    draw_shares_on(figure, title, found, arms)
    write_atomically(path, lambda file: FigureCanvasAgg(figure).print_png(file))


def draw_shares_on(figure: Figure, title: str, found: Found, arms: Sequence[str]) -> None:
    """Draw it on a figure: i-Mix blue, without it orange, all others grey; fine-tuned networks dashed."""
    axes = figure.add_subplot()
    shares = sorted(found)
    greys = iter(("o", "s", "^", "v"))
    for arm in arms:
        heights = [mean(ways[arm] for ways in found[share].values()) for share in shares]
        colour = "#2f7ed8" if arm.startswith("i-Mix") else "#f28f2c" if arm.startswith("none") else "#9aa0a6"
        marker = "." if colour != "#9aa0a6" else next(greys)
        style = "--" if "fine-tuned" in arm or "scratch" in arm else "-"
        axes.plot(range(len(shares)), heights, style, color=colour, marker=marker, label=arm)
    axes.set_xticks(range(len(shares)), [in_percent(share) for share in shares])
    axes.set_xlabel("of the labels")
    axes.set_ylabel("test accuracy in percent")
    axes.set_title(title, fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
