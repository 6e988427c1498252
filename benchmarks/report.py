"""Tables for the eye, JSON for the record, plots for the page."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def merge(path: Path, machine: dict[str, object], rows: list[Row]) -> list[Row]:
    """Put rows into a file of results, in the place of former ones of the same size and dtype; return all of them."""
    former = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    by_key = {_key(row): row for row in [*former, *rows]}
    merged = sorted(by_key.values(), key=_order)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({"machine": machine, "rows": merged}, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return merged


def _key(row: Row) -> tuple[str, str]:
    return row["size"], row.get("dtype", "")


def _order(row: Row) -> tuple[str, float, str]:
    return row.get("dtype", ""), float(row.get("operations") or row.get("nmd") or row.get("bytes") or 0), row["size"]


def table(subcommand: str, rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [_cells(subcommand, row) for row in rows]
    heads = list(dict.fromkeys(head for line in lines for head in line))
    out = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    out += ["| " + " | ".join(line.get(head, "") for head in heads) + " |" for line in lines]
    return "\n".join(out)


def _cells(subcommand: str, row: Row) -> dict[str, str]:
    cells = {"size": row["size"]}
    if "dtype" in row:
        cells["dtype"] = row["dtype"]
    for name, each in row.get("times", {}).items():
        cells[f"{name}, ms"] = f"{1e3 * each['median']:.3g}"
        if name in row.get("errors", {}):
            cells[f"{name}, error"] = f"{row['errors'][name]:.0e}"
    for name, ratio in row.get("speedup", {}).items():
        if name != "imix-aug":
            cells[f"times {name}"] = f"{ratio:.2f}"
    for name, ratio in row.get("ratios", {}).items():
        cells[f"{name}, ratio"] = f"{ratio:.2f}"
    for name, megabytes in row.get("megabytes", {}).items():
        cells[f"{name}, MB"] = f"{megabytes:.0f}"
    for name, speed in row.get("gigabytes_per_second", {}).items():
        cells[f"{name}, GB/s"] = f"{speed:.1f}"
    for field, shown in (
        ("floors", "{:.2f}"),
        ("gflops", "{:.0f}"),
        ("overhead", "{:+.1%}"),
        ("logits_megabytes", "{:.0f}"),
    ):
        if field in row:
            cells[field.replace("_", " ")] = shown.format(row[field])
    return cells


def plot(subcommand: str, path: Path, machine: dict[str, object], rows: list[Row]) -> None:
    """Draw what the table says: who takes how many times as long as imix-aug, or what grows with what."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = _alike(rows) if subcommand in COMPARISONS else {"": rows}
    figure, panels = pyplot.subplots(len(groups), figsize=(7, 1 + 3 * len(groups)), squeeze=False, layout="constrained")
    for (name, group), axes in zip(groups.items(), panels[:, 0], strict=True):
        if subcommand in COMPARISONS:
            _draw_bars(axes, name, group)
            axes.legend(fontsize=8, ncols=5, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
        else:
            _draw_lines(axes, subcommand, group)
            axes.legend(fontsize=8)
    figure.suptitle(f"{machine['device']}, {machine['threads']} threads", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


COMPARISONS = ("loss", "simclr")
ALWAYS = ("formula", "formula compiled", "matrix products")
RATIOS = {"cost": "time, times the plain loss's", "directions": "time, times one direction's"}


def _alike(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each dtype, and what follows the size (unmixed) apart."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        _, comma, kind = row["size"].partition(",")
        groups.setdefault(f"{row['dtype']}{comma}{kind}", []).append(row)
    return dict(sorted(groups.items(), key=lambda group: (group[0].partition(",")[0], -len(group[0])), reverse=True))


def _draw_bars(axes: Any, kind: str, rows: list[Row]) -> None:
    from matplotlib.ticker import LogLocator

    rows = sorted(rows, key=lambda row: row["times"]["imix-aug"]["median"])
    found = dict.fromkeys(name for row in rows for name in row["times"] if name != "imix-aug")
    # Those that each panel has come first, so that a colour is the same contestant's in all of them.
    names = sorted(found, key=lambda name: name not in ALWAYS)
    for i, name in enumerate(names):
        places = [j + 0.8 * (i + 0.5) / len(names) - 0.4 for j in range(len(rows))]
        times = [row["times"].get(name, {}).get("median", math.nan) for row in rows]
        heights = [time / row["times"]["imix-aug"]["median"] for time, row in zip(times, rows, strict=True)]
        axes.bar(places, heights, 0.75 / len(names), label=name)
    axes.axhline(1, color="black", linewidth=1, label="imix-aug")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_xticks(range(len(rows)), [row["size"].partition(",")[0] for row in rows], rotation=15, fontsize=8)
    axes.set(xlabel=f"queries (+ negatives) x D, {kind}", ylabel="time, times imix-aug's")


def _draw_lines(axes: Any, subcommand: str, rows: list[Row]) -> None:
    if subcommand in RATIOS:
        names = list(rows[0]["ratios"])
        for i, name in enumerate(names):
            places = [j + 0.8 * i / len(names) for j in range(len(rows))]
            axes.barh(places, [row["ratios"][name] for row in rows], 0.75 / len(names), label=name)
        axes.set_yticks(range(len(rows)), [row["size"] for row in rows], fontsize=7)
        axes.set(xlabel=RATIOS[subcommand])
        return
    if subcommand == "arguments":
        megabytes = [row["megabytes"]["imix-aug"] for row in rows]
        axes.barh([row["size"] for row in rows], megabytes, label=f"N = {rows[0]['rows']:,}")
        axes.set(xlabel="peak memory above N = 256, MB")
        return
    values, label = _series(subcommand, rows)
    for name, points in values.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xlabel=label[0], ylabel=label[1])
    if subcommand == "step":
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.tick_params(axis="x", rotation=15)
    else:
        axes.set(xscale="log", yscale="log")


def _series(subcommand: str, rows: list[Row]) -> tuple[dict[str, list[tuple[Any, float]]], tuple[str, str]]:
    values: dict[str, list[tuple[Any, float]]] = {}

    def add(name: str, x: Any, y: float) -> None:
        if not isinstance(y, float) or math.isfinite(y):
            values.setdefault(name, []).append((x, y))

    widths = Counter(row["size"].split("x")[1] for row in rows if subcommand == "growth")
    for row in rows:
        if subcommand == "memory":
            for name, megabytes in row["megabytes"].items():
                add(name, int(row["size"].split("x")[0]), max(megabytes, 0.1))
        elif subcommand == "mix":
            for name, speed in row["gigabytes_per_second"].items():
                add(name, row["bytes"] / 1e6, speed)
        elif subcommand == "step":
            add("mixed against unmixed", row["size"], 100 * row["overhead"])
        else:
            n, width = row["size"].split("x")
            along = f"D = {width}" if widths[width] > 2 else f"N = {n}"
            for name, each in row["times"].items():
                add(f"{name}, {along}", row["nmd"], 1e3 * each["median"])
    labels = {
        "memory": ("N", "peak memory above N = 256, MB"),
        "mix": ("batch, MB", "GB/s (two reads and a write; a copy: one and one)"),
        "step": ("network: batch x side", "overhead of mixing, %"),
        "growth": ("N M D", "milliseconds, loss and gradients"),
    }
    return values, labels[subcommand]
