"""Reproduce the paper's tables, its ablations, and transfer: what comes out beside what was published.

python examples/reproduce.py 1 --scale cpu --rows covtype-npair     # a row of Table 1
python examples/reproduce.py 3 --scale gpu --download               # all of Table 3
python examples/reproduce.py ablation --over width --scale cpu
python examples/reproduce.py transfer --rows cifar10-npair --to cifar100 --labels 0.01 0.1
python examples/reproduce.py tables --path DIR --seeds 3             # all tables of a folder, each against each
python examples/reproduce.py tables --path DIR --labels 0.01 0.1 0.25
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from runner import few_labels
from runner.data.dataset import Dataset
from runner.data.files import IMAGENETS
from runner.device import pick_device
from runner.domain import Domain, Task
from runner.encoders import SMALL
from runner.errors import Refused, one_line_errors
from runner.few_labels import FewLabels
from runner.many_tables import Bench, find_tables, judge_all, open_bench, write_page
from runner.paper import METHOD_NAMES, MIXES, SCALES, TABLES, Row, recipe
from runner.ranks import barrier, is_main
from runner.report.paired import gain_in_words
from runner.report.plots import draw_against, draw_beside
from runner.report.results import read_results
from runner.report.wins import WinReport
from runner.run import add_missing, parse, prepare
from runner.settings import Settings
from runner.state.files import write_text
from runner.state.saved import DOMAINS
from runner.transfer import SavedRuns
from sklearn.datasets import get_data_home

# Where each named data set lies, or may lie, once it has been downloaded; {root} is --data-root.
PLACES = {
    "covtype": ("{scikit}/covertype",),
    "higgs": ("{scikit}/openml",),
    "cifar10": ("{root}/cifar-10-batches-py",),
    "cifar100": ("{root}/cifar-100-python",),
    "imagenet": ("{root}/imagenet",),
    "imagenet100": ("{root}/imagenet", "{root}/imagenet100"),
    "speechcommands": ("{root}/speech_commands_v0.01.tar.gz",),
}


def _everywhere(*values: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(DOMAINS, values)


# What an ablation varies: the option, and its values in the domains that have it.
OVER: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "data": ("data-fraction", _everywhere("0.1", "0.25", "0.5", "1")),
    "rows": ("pretrain-rows", _everywhere("2500", "5000", "10000", "20000")),
    "classes": ("class-fraction", _everywhere("0.3", "0.6", "1")),
    "width": ("width", _everywhere("1", "2", "4", "8")),
    "depth": (
        "arch",
        {
            "image": ("resnet18", "resnet34", "resnet50", "resnet101"),
            "speech": ("resnet8", "resnet14", "resnet20"),
        },
    ),
    "epochs": ("epochs", _everywhere("25", "50", "100", "200")),
    "batch": ("batch-size", _everywhere("64", "128", "256", "512")),
    "queue": ("queue", _everywhere("512", "1024", "2048", "4096")),
    "alpha": ("alpha", _everywhere("0.25", "0.5", "1", "2", "4")),
    "lambda": ("lambda-per", _everywhere("row", "batch")),
    "mix": ("mix", dict.fromkeys(("image", "speech"), ("mixup", "cutmix"))),
    "inputmix": ("inputmix", _everywhere("0", "1", "2")),
    "temperature": ("temperature", _everywhere("0.05", "0.1", "0.2", "0.5")),
    "augment": ("augment", {name: domain.augmentations for name, domain in DOMAINS.items()}),
}
IMPLIED = {"alpha": "1", "lambda-per": "row", "inputmix": "0"}  # what a recipe means that does not say it
OF_IMIX = ("alpha", "lambda-per", "mix")  # options that plain training lacks: one run serves all values

# Options in which the cells of one data set differ, and none of which has to do with reading it.
NOT_OF_THE_DATA = {
    *(
        "method",
        "mix",
        "inputmix",
        "alpha",
        "lambda_per",
        "augment",
        "dropout",
        "dropout_columns",
        "temperature",
        "queue",
        "momentum",
    ),
    *("epochs", "batch_size", "arch", "width", "projection_bn", "prediction_bn", "pretrain_rows", "out"),
}


class CannotRun(Exception):
    """Why a cell stays empty."""


@dataclass
class Cell:
    """Half of a line: a row trained with one mix."""

    line: dict[str, Any]
    row: Row
    mix: str
    folder: Path
    options: list[str]
    prepared: tuple[Settings, Task] | None = None


def main(argv: list[str] | None = None) -> None:
    """Run what is not done yet, and report."""
    args = _parse(argv)
    with one_line_errors():
        if not all(0 < share <= 1 for share in args.labels or ()):
            raise Refused(f"--labels {args.labels}: wanted shares between 0 and 1")
        report = {"ablation": ablation, "transfer": transfer, "tables": many_tables}.get(args.table, table)
        report(args)


def table(args: argparse.Namespace) -> None:
    """Table 1, 2 or 3: every row without and with i-Mix."""
    folder, title = _table_folder(args, args.table), _title(args, f"Table {args.table}")
    cells: list[Cell] = []
    for row in _choose(TABLES[args.table], args.rows):
        line = {"row": row.name, "data": row.data, "method": METHOD_NAMES[row.method], "found": {}, "runs": {}}
        line["published"] = dict(zip(MIXES, row.published, strict=True))
        cells += [Cell(line, row, mix, folder / row.name / mix, recipe(row, mix, args.scale)) for mix in MIXES]
    lines = _measure(args, folder, title, cells)
    if args.controls:
        first = {cell.row.data: cell for cell in reversed(cells) if cell.mix == "none"}
        for cell in first.values():
            with contextlib.suppress(CannotRun):
                cell.line["controls"] = judge_controls(args, cell)
                _write(folder, title, lines)
    _finish(folder, title, lines)


def transfer(args: argparse.Namespace) -> None:
    """Pretrain on the data of a row of Table 1; probe on those of ``--to``, with the shares of ``--labels``."""
    shares = args.labels or [1.0]
    folder, title = args.out / f"transfer-{args.scale}", _title(args, "Transfer")
    lines: list[dict[str, Any]] = []
    judged: list[tuple[Row, str, SavedRuns, list[dict[str, Any]]]] = []
    read: dict[tuple[str, str], SavedRuns] = {}  # rows that are probed on the same data share them
    for row in _choose(TABLES["1"], args.rows or ["cifar10-npair"]):
        for target in args.to or [row.data]:
            kept = SavedRuns(row.domain, args.path.get(target, target), args.data_root, pick_device(args.device))
            saved = read.setdefault((row.domain, target), kept)
            of_target = [_transfer_line(row, target, share) for share in shares]
            lines += of_target
            judged.append((row, target, saved, of_target))
    for seed in range(args.seeds):
        for row, target, saved, of_target in judged:
            if "cannot" in of_target[0]:
                continue
            try:
                _require(args, target)
                _judge_elsewhere(args, row, saved, of_target, folder / row.name, seed)
            except CannotRun as why:
                for line in of_target:
                    line["cannot"] = str(why)
            _write(folder, title, lines)
    _finish(folder, title, lines)


def _transfer_line(row: Row, target: str, share: float) -> dict[str, Any]:
    name = f"{row.name} to {target}" + (f", {100 * share:g} % of the labels" if share < 1 else "")
    line: dict[str, Any] = {"row": name, "method": METHOD_NAMES[row.method], "data": f"{row.data} to {target}"}
    return line | {"labels": share, "published": dict.fromkeys(MIXES), "found": {}, "runs": {}, "controls": {}}


def _judge_elsewhere(
    args: argparse.Namespace, row: Row, saved: SavedRuns, lines: list[dict[str, Any]], folder: Path, seed: int
) -> None:
    """Train what is not trained yet with this seed, and add what it is worth to each of the lines."""
    shares = [line["labels"] for line in lines]
    probe = args.changes.get("probe", "sgd" if args.scale == "paper" else "logistic")
    for mix in MIXES:
        trained = run(args, Cell({}, row, mix, folder / mix, recipe(row, mix, args.scale)), seed + 1)[seed]
        name = f"{trained['method']}-{trained['mix']}-seed{seed}"
        checkpoint = folder / mix / "runs" / name / "checkpoint.pt"
        for line, one in zip(lines, saved.judge(checkpoint, shares, seed, probe), strict=True):
            line["runs"].setdefault(mix, []).append(one)
            line["found"].setdefault(mix, []).append(100 * one["metrics"]["probe_accuracy"])
    if args.controls:
        for line, one in zip(lines, saved.judge(checkpoint, shares, seed, probe, trained=False), strict=True):
            line["controls"].setdefault("untrained", []).append({"control": "untrained", **one})


def ablation(args: argparse.Namespace) -> None:
    """One quantity, several values: accuracy without and with i-Mix against it.

    Where a value is the recipe's own, the cell is that of Table 1, unless ``--change`` made another of it.
    """
    if not args.over:
        raise Refused(f"ablation: say over what with --over; known are {', '.join(OVER)}")
    option, values = OVER[args.over]
    default = "covtype-moco" if args.over == "queue" else "covtype-npair"
    row, *more = _choose(TABLES["1"], args.rows or [default])
    if more:
        raise Refused("ablation: wanted one of --rows")
    if row.domain not in values:
        raise Refused(f"--over {args.over}: {row.data} has no such thing; give --rows one of {' or '.join(values)}")
    if args.over == "queue" and row.method != "moco":
        raise Refused(f"--over queue: {METHOD_NAMES[row.method]} has none; give --rows one with moco")
    folder = args.out / f"ablation-{args.over}-{row.name}-{args.scale}"
    shared = folder / "own" if args.changes else _table_folder(args, "1") / row.name
    title = _title(args, f"{row.name} over {args.over}")
    cells: list[Cell] = []
    for value in args.values or values[row.domain]:
        line: dict[str, Any] = {"row": f"{args.over} {value}", "data": row.data, "method": METHOD_NAMES[row.method]}
        line |= {"over": args.over, "value": value, "published": dict.fromkeys(MIXES), "found": {}, "runs": {}}
        for mix in MIXES:
            own = recipe(row, mix, args.scale)
            known = own[own.index(f"--{option}") + 1] if f"--{option}" in own else IMPLIED.get(option)
            if value == known or (mix == "none" and option in OF_IMIX):
                cells.append(Cell(line, row, mix, shared / mix, own))
            else:
                cells.append(Cell(line, row, mix, folder / value / mix, _replace(own, option, value)))
    _finish(folder, title, _measure(args, folder, title, cells), partial(draw_against, args.over))


def many_tables(args: argparse.Namespace) -> None:
    """All tables of a folder: in which of the ways the features are ahead, and on how many."""
    method = args.changes.get("method", "npair")
    folder = args.out / f"tables-{method}"
    title = f"{METHOD_NAMES.get(method, method)} on tables"
    label = args.label or "class"
    recipe = {"method": method, "label": label, **args.changes}
    paths = _tables(args)

    def open_table(path: Path) -> Bench:
        options = [word for name, value in args.changes.items() for word in (f"--{name}", value)]
        return open_bench(path, label, folder / path.stem, [*options, "--device", args.device])

    if args.labels:
        few = folder / "few-labels"  # beside the networks, which both share
        report = WinReport(few, f"{title}, few labels", recipe={**recipe, "labels": args.labels})
        judge_all(
            paths,
            args.seeds,
            lambda path: FewLabels(*open_table(path).prepared["default"], args.labels),
            report,
            few_labels.arms_of,
        )
        folder, page = few, few_labels.write_page(few, report, args.labels)
    else:
        report = WinReport(folder, title, recipe=recipe)
        judge_all(paths, args.seeds, open_table, report)
        page = write_page(folder, report)
    print(f"\n{page}\n{', '.join(str(path) for path in sorted(folder.glob('*.*')))}")


def _tables(args: argparse.Namespace) -> list[Path]:
    """The tables of the folder, or those of them that were asked for."""
    paths = find_tables(Path(args.path["tables"]))
    if unknown := set(args.rows or ()) - {path.stem for path in paths}:
        raise Refused(f"--rows {min(unknown)}: no such table in {args.path['tables']}")
    return [path for path in paths if path.stem in (args.rows or path.stem)]


def _measure(args: argparse.Namespace, folder: Path, title: str, cells: list[Cell]) -> list[dict[str, Any]]:
    """Run all cells with one seed before the next, so that what is cut short compares all of them alike."""
    lines = list({id(cell.line): cell.line for cell in cells}.values())
    for seeds in range(1, args.seeds + 1):
        for cell in cells:
            if "cannot" in cell.line:
                continue
            try:
                runs = run(args, cell, seeds)
            except CannotRun as why:
                cell.line["cannot"] = str(why)
                continue
            cell.line["runs"][cell.mix] = runs
            cell.line["found"][cell.mix] = [100 * one["metrics"]["probe_accuracy"] for one in runs]
            _write(folder, title, lines)
    _write(folder, title, lines)
    return lines


def run(args: argparse.Namespace, cell: Cell, seeds: int) -> list[dict[str, Any]]:
    """Train one cell with its first seeds unless that is done, and return what is known of each."""
    options = _settle(args, cell)
    command = shlex.join([cell.row.domain, *options])
    found = _finished(cell.folder, command)
    if not set(range(seeds)) <= found.keys():
        _compare(args, cell, options, seeds)
        if is_main():
            write_text(cell.folder / "command.txt", command)
        barrier()
        found = _finished(cell.folder, command)
    return [found[seed] for seed in range(seeds)]


def judge_controls(args: argparse.Namespace, cell: Cell) -> dict[str, list[dict[str, Any]]]:
    """What the same probe finds in the raw input, and in the untrained network of each seed."""
    path, options = cell.folder / "results.json", _settle(args, cell)

    def known() -> dict[str, list[dict[str, Any]]]:
        controls = sorted(read_results(path)[1], key=lambda control: control["seed"])
        return {name: [one for one in controls if one["control"] == name] for name in ("raw", "untrained")}

    if len(known()["untrained"]) < args.seeds:
        _compare(args, cell, options, args.seeds, controls=True)
        barrier()
    return known()


def _settle(args: argparse.Namespace, cell: Cell) -> list[str]:
    """Return a cell's options, completed, unless it cannot run."""
    _require(args, cell.row.source)
    options = cell.options
    for option, value in args.changes.items():
        if cell.mix != "none" or option not in OF_IMIX:
            options = _replace(options, option, value)
    options = [*options, "--data", str(args.path.get(cell.row.source, cell.row.source)), "--out", str(cell.folder)]
    if args.data_root:
        options += ["--data-root", args.data_root]
    return options


def _compare(args: argparse.Namespace, cell: Cell, options: list[str], seeds: int, *, controls: bool = False) -> None:
    domain = DOMAINS[cell.row.domain]
    barrier()
    if is_main():
        print(f"\npython examples/{domain.name}.py {shlex.join(options)} --seeds {seeds}", flush=True)
    try:
        if cell.prepared is None:
            given = parse(domain, [*options, "--device", args.device, "--no-controls"])
            cell.prepared = prepare(domain, given, partial(args.loaded.load, domain))
        settings, task = cell.prepared
        add_missing(replace(settings, seeds=seeds, controls=controls), task)
    except Refused as why:
        raise CannotRun(str(why)) from why


class Loaded:
    """Data sets that were read before: the cells of a table share them."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def load(self, domain: Domain, given: Mapping[str, Any]) -> Dataset:
        """Read what the command line names, once."""
        key = repr([domain.name, *sorted((name, str(given[name])) for name in given.keys() - NOT_OF_THE_DATA)])
        if key not in self._kept:
            self._kept[key] = domain.load(given)
        return self._kept[key]


def _finished(folder: Path, command: str) -> dict[int, dict[str, Any]]:
    kept, path = folder / "command.txt", folder / "results.json"
    if not (kept.exists() and kept.read_bytes() == command.encode() and path.exists()):
        return {}
    return {one["seed"]: one for one in read_results(path)[0]}


def _replace(options: list[str], option: str, value: str) -> list[str]:
    """Set one option, and leave out those that go with another choice of it."""
    dropped = {f"--{option}"}
    if option == "arch" and value not in SMALL:
        dropped.add("--width")
    if option == "augment" and value != "default":
        dropped |= {"--dropout", "--dropout-columns"}
    if option == "epochs":
        dropped.add("--milestones")
    kept: list[str] = []
    keep = True
    for word in options:
        if word.startswith("--"):
            keep = word not in dropped
        if keep:
            kept.append(word)
    return [*kept, f"--{option}", value]


def _require(args: argparse.Namespace, data: str) -> None:
    """Refuse a data set that would have to be downloaded, unless that was asked for."""
    if data in args.path or args.download or data not in PLACES:
        return
    root = args.data_root or "data"
    places = [Path(place.format(root=root, scikit=get_data_home(args.data_root))) for place in PLACES[data]]
    if not any(place.exists() for place in places):
        wanted = "put it there" if data in IMAGENETS else "give --download"
        raise CannotRun(f"{data} is not in {places[0]}; {wanted}, or say where it is with --path {data}=PATH")


def _table_folder(args: argparse.Namespace, table: str) -> Path:
    return args.out / f"table{table}-{args.scale}"


def _choose(rows: list[Row], names: Iterable[str] | None) -> list[Row]:
    known = {row.name: row for row in rows}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise Refused(f"--rows {unknown[0]}: no such row; known are {', '.join(known)}")
    return [known[name] for name in names] if names else rows


def _title(args: argparse.Namespace, subject: str) -> str:
    changed = "".join(f", {change}" for change in args.change)
    return f"{subject} at scale {args.scale}{changed}"


def _write(folder: Path, title: str, lines: list[dict[str, Any]]) -> None:
    if not is_main():
        return
    write_text(folder / "report.json", json.dumps({"title": title, "rows": lines}, indent=2) + "\n")
    page = f"# {title}\n\nLinear probe, test accuracy in percent.\n\n{_markdown(lines)}\n"
    write_text(folder / "report.md", page)


def _finish(folder: Path, title: str, lines: list[dict[str, Any]], draw: Callable[..., None] = draw_beside) -> None:
    if not is_main():
        return
    print(f"\n{_markdown(lines)}")
    done = [line for line in lines if "cannot" not in line]
    if done:
        draw(folder / "report.png", title, done)
    print("\n" + ", ".join(str(path) for path in sorted(folder.glob("report.*"))))


def _markdown(lines: list[dict[str, Any]]) -> str:
    rows = ["| row | without | with i-Mix | gain | published without | with | seeds |", "| --- " * 7 + "|"]
    for line in lines:
        published = [f"{line['published'][mix]:.1f}" if line["published"][mix] else "-" for mix in MIXES]
        if "cannot" in line:
            rows.append(f"| {line['row']} | not run: {line['cannot']} | | | {published[0]} | {published[1]} | |")
            continue
        found = [line["found"].get(mix, []) for mix in MIXES]
        cells = [f"{mean(one):.2f}" + (f" +- {stdev(one):.2f}" if len(one) > 1 else "") if one else "" for one in found]
        rows.append(f"| {' | '.join([line['row'], *cells, gain_in_words(*found), *published, str(len(found[1]))])} |")
    return "\n".join(rows)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reproduce.py", description="The paper's tables, ablations and transfer.")
    option = parser.add_argument
    option(
        "table",
        choices=(*TABLES, "ablation", "transfer", "tables"),
        metavar="TABLE",
        help="1, 2, 3, ablation, transfer, or tables: all of a folder",
    )
    option(
        "--rows", nargs="+", metavar="ROW", help="DATA-METHOD, such as covtype-npair; of tables, names (default: all)"
    )
    option("--scale", choices=SCALES, default="cpu", help="as published, for one large GPU, for one core (default)")
    option("--seeds", type=int, default=1, metavar="S", help="train with the seeds 0 .. S-1 (default: 1)")
    option("--over", choices=tuple(OVER), help="ablation: what to vary")
    option("--values", nargs="+", metavar="V", help="ablation: its values")
    option("--controls", action="store_true", help="also judge the untrained network and, of a table, the raw input")
    option("--to", nargs="+", metavar="DATA", help="transfer: the data to probe (default: the row's own)")
    option("--labels", nargs="+", type=float, metavar="SHARE", help="transfer, tables: of the labels (default: all)")
    option(
        "--change",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="of the recipes, such as epochs=60; alpha, lambda-per and mix of the runs with i-Mix alone",
    )
    option("--path", action="append", default=[], metavar="DATA=PATH", help="where a data set lies; of tables, DIR")
    option("--label", metavar="COLUMN", help="tables: the column that holds the class (default: class)")
    option("--data-root", metavar="DIR", help="where downloads are kept")
    option("--download", action="store_true", help="fetch what is missing")
    option("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    option("--out", type=Path, default=Path("runs") / "reproduce", metavar="DIR", help="(default: runs/reproduce)")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: wanted one or more")
    only = {"over": ("ablation",), "values": ("ablation",), "label": ("tables",), "to": ("transfer",)}
    for name, kinds in {**only, "labels": ("transfer", "tables")}.items():
        if getattr(args, name) and args.table not in kinds:
            parser.error(f"--{name}: only for {' and '.join(kinds)}")
    if args.table == "tables":
        if len(args.path) != 1:
            parser.error("--path: wanted the folder of the tables")
        args.path = [f"tables={args.path[0]}"]
    for name, form in (("path", "DATA=PATH"), ("change", "OPTION=VALUE")):
        bad = [word for word in getattr(args, name) if "=" not in word]
        if bad:
            parser.error(f"--{name} {bad[0]}: wanted {form}")
    args.loaded = Loaded()
    args.changes = dict(word.split("=", 1) for word in args.change)
    args.path = {name: os.path.expanduser(path) for name, path in (place.split("=", 1) for place in args.path)}
    return args


if __name__ == "__main__":
    main()
