"""Tables for the eye, JSON for the record, plots for the page."""

import json
import math
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def merge(path: Path, machine: dict[str, object], rows: list[Row]) -> list[Row]:
    """Put rows into a file of results, in the place of former ones of the same size and dtype; return all of them."""
    former = json.loads(path.read_text())["rows"] if path.exists() else []
    by_key = {_key(row): row for row in [*former, *rows]}
    merged = sorted(by_key.values(), key=_order)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps({"machine": machine, "rows": merged}, indent=1) + "\n")
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
    """Draw what the table says, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values, label = _series(subcommand, rows)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for name, points in values.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axes.set(xlabel=label[0], ylabel=label[1], title=f"{machine['device']}, {machine['threads']} threads")
    axes.title.set_fontsize(8)
    if subcommand == "step":
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.tick_params(axis="x", rotation=15)
    else:
        axes.set(xscale="log", yscale="log")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _series(subcommand: str, rows: list[Row]) -> tuple[dict[str, list[tuple[Any, float]]], tuple[str, str]]:
    values: dict[str, list[tuple[Any, float]]] = {}

    def add(name: str, x: Any, y: float) -> None:
        if not isinstance(y, float) or math.isfinite(y):
            values.setdefault(name, []).append((x, y))

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
            dtype = row["dtype"]
            x = row.get("operations") or row.get("nmd") or int(row["size"].split("x")[0])
            for name, each in row["times"].items():
                add(f"{name} ({dtype})", x, 1e3 * each["median"])
    labels = {
        "memory": ("N", "peak memory above N = 256, MB"),
        "mix": ("batch, MB", "GB/s (two reads and a write; a copy: one and one)"),
        "step": ("network: batch x side", "overhead of mixing, %"),
        "growth": ("N M D", "milliseconds, loss and gradients"),
        "loss": ("operations (6 N M D; 4 where the keys are fixed)", "milliseconds, loss and gradients"),
        "simclr": ("N", "milliseconds, loss and gradients"),
    }
    return values, labels[subcommand]
