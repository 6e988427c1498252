"""Mutation testing: change a file of the package in one place at a time, and see whether its tests notice.

    PYTHONPATH=src python tests/mutate.py src/imix_aug/_queue.py tests/test_queue.py
    PYTHONPATH=src python tests/mutate.py --every 5 src/imix_aug/_cross_entropy/blocked.py tests/test_cross_entropy.py

Tests are collected once. Each change is made in a process that is forked off then, by giving functions their changed
code, and ranks are forked off from that one. Text, annotations and what modules do when they are imported stay.
Quick tests come first, and what noticed the last change before its like; tests of several ranks come last. With
``--every K`` a sample is taken: the first change, and every K-th from there.
"""

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time
import types

import pytest
import torch.multiprocessing

SECONDS = 600
SWAPPED = [
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.LShift, ast.RShift), (ast.BitOr, ast.BitAnd), (ast.And, ast.Or)),
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
]
OTHER = {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult}
OTHER |= {one: other for pair in SWAPPED for one, other in (pair, pair[::-1])}


def changes(node):
    """Return what a node may be changed into: what is done, and a function that does it to a copy."""
    found = []
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in OTHER:
        found.append(("another operator", lambda one: _with(one, op=OTHER[type(one.op)]())))
    if isinstance(node, ast.Compare):
        found.append(("another comparison", lambda one: _with(one, ops=[OTHER[type(one.ops[0])](), *one.ops[1:]])))
    if isinstance(node, ast.UnaryOp):
        found.append(("no sign", lambda one: one.operand))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        found.append(("the other truth", lambda one: ast.Constant(not one.value)))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        found.append(("one more", lambda one: ast.Constant(one.value + 1)))
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
        found.append(("= None", lambda one: _with(one, value=ast.Constant(None))))
    if isinstance(node, ast.AugAssign):
        found.append(("plain =", lambda one: ast.Assign([one.target], one.value)))
    if isinstance(node, (ast.If, ast.IfExp)):
        found += [(str(way), lambda one, way=way: _with(one, test=ast.Constant(way))) for way in (True, False)]
    if isinstance(node, ast.Return) and node.value is not None:
        found.append(("return None", lambda one: _with(one, value=ast.Constant(None))))
    if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        found.append(("left out", lambda one: ast.Pass()))
    if isinstance(node, ast.Call):
        for field in ("args", "keywords"):
            for place in range(len(getattr(node, field))):
                found.append((f"{field}[{place}] left out", lambda one, at=(field, place): _without(one, *at)))
    return found


def _with(node, **fields):
    for name, value in fields.items():
        setattr(node, name, value)
    return node


def _without(call, field, place):
    rest = [*getattr(call, field)]
    del rest[place]
    return _with(call, **{field: rest})


def changeable(tree):
    """Yield the nodes inside of functions that say what is computed."""

    def inside(node):
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "exc", "msg"):
                continue
            for each in value if isinstance(value, list) else [value]:
                skipped = isinstance(each, (ast.JoinedStr, ast.Assert, ast.arguments))
                if isinstance(each, ast.AST) and not skipped and getattr(getattr(each, "func", 0), "id", "") != "cast":
                    yield from inside(each)

    for scope in ast.walk(tree):
        if isinstance(scope, (ast.ClassDef, ast.Module)):
            for each in scope.body:
                if isinstance(each, ast.FunctionDef):
                    yield from inside(each)


def mutants(tree):
    """Yield line, description and changed tree for each change."""
    for number, node in enumerate(changeable(tree)):
        for which, (what, _) in enumerate(changes(node)):
            other = copy.deepcopy(tree)
            target = list(changeable(other))[number]
            replacement = _beside(target, changes(target)[which][1](copy.copy(target)))
            ast.copy_location(replacement, target)
            other = ast.fix_missing_locations(_Replace(target, replacement).visit(other))
            with contextlib.suppress(SyntaxError):
                compile(other, "", "exec")
                yield node.lineno, f"{what}: {ast.unparse(node).splitlines()[0][:100]}", other


def _beside(original, replacement):
    """Keep the original where it never runs: without a name that it closes over a function would not take the code."""
    if isinstance(original, ast.expr):
        return ast.IfExp(ast.Constant(True), replacement, original)
    return ast.If(ast.Constant(False), [original], [replacement])


class _Replace(ast.NodeTransformer):
    def __init__(self, target, replacement):
        self.target, self.replacement = target, replacement

    def visit(self, node):
        return self.replacement if node is self.target else self.generic_visit(node)


def put_in(tree, path):
    """Give all functions that were made from the file the code of the changed tree."""
    codes, queue = {}, [compile(tree, path, "exec")]
    while queue:
        code = queue.pop()
        nested = [each for each in code.co_consts if isinstance(each, types.CodeType)]
        codes |= {(each.co_qualname, each.co_firstlineno): each for each in nested}
        queue += nested
    for each in gc.get_objects():
        if isinstance(each, types.FunctionType) and each.__code__.co_filename == path:
            each.__code__ = codes.get((each.__code__.co_qualname, each.__code__.co_firstlineno), each.__code__)


class Mutation:
    """Runs the collected tests once for each change of the file."""

    def __init__(self, path, every=1):
        self.path, self.every = str(path), every
        self.log, self.started = (
            pathlib.Path(tempfile.gettempdir(), f"mutation-{os.getpid()}.{kind}") for kind in ("log", "started")
        )

    def pytest_runtestloop(self, session):
        tree = ast.parse(pathlib.Path(self.path).read_text(encoding="utf-8"))
        importlib.import_module(
            self.path.rpartition("/src/")[2].removesuffix(".py").replace("/", ".")
        )  # now, if not yet
        if session.testsfailed or self.run(session, tree):
            raise SystemExit(f"the tests fail without a change: {self.log.read_text(encoding='utf-8')[-3000:]}")
        ends = [float(line.split()[1]) for line in self.started.read_text(encoding="utf-8").splitlines()]
        seconds = {
            item: end - start for item, (start, end) in zip(session.items, itertools.pairwise(ends), strict=True)
        }
        session.items.sort(key=lambda item: ("worlds" in item.fixturenames, seconds[item]))
        left, total, start = [], 0, time.monotonic()
        for line, what, changed in itertools.islice(mutants(tree), None, None, self.every):
            total += 1
            failed = self.run(session, changed)
            if failed:
                self.put_first(session.items)
            if not failed or "hangs in" in self.log.read_text(encoding="utf-8"):
                print(f"{'LEFT' if failed is False else 'hangs'} {line} {what}", file=sys.stderr, flush=True)
            if failed is False:
                left.append(f"{line} {what}")
        seconds = round(time.monotonic() - start)
        summary = {
            "file": self.path,
            "every": self.every,
            "mutants": total,
            "killed": total - len(left),
            "seconds": seconds,
        }
        print(json.dumps(summary), file=sys.stderr, flush=True)
        return True

    def put_first(self, items):
        """Let the test that noticed a change be the first of its kind: the next change is likely to be its like."""
        started = self.started.read_text(encoding="utf-8").splitlines()
        if not started:
            raise SystemExit(f"a change cannot be put in: {self.log.read_text(encoding='utf-8')}")
        items.insert(0, items.pop(int(started[-1].split()[0])))
        items.sort(key=lambda item: "worlds" in item.fixturenames)

    def run(self, session, tree):
        """Tell whether a test fails with the changed file; None where the tests do not end."""
        child = os.fork()
        if child == 0:
            self.run_here(session, tree)
        deadline = time.monotonic() + SECONDS
        ended = status = 0
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)
        return status != 0 if ended else None

    def run_here(self, session, tree):
        os.setsid()
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        fork = multiprocessing.get_context("fork")
        torch.multiprocessing.get_context = lambda _: fork
        sys.modules["ranks"].World.run.__kwdefaults__["timeout"] = 60
        failed = False
        try:
            items = session.items
            with self.started.open("w", encoding="utf-8") as started:
                put_in(tree, self.path)
                for number, (item, following) in enumerate(zip(items, [*items[1:], None], strict=True)):
                    print(number, time.monotonic(), file=started, flush=True)
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if session.testsfailed:
                        break
                else:
                    print(len(items), time.monotonic(), file=started, flush=True)
            failed = bool(session.testsfailed)
        except BaseException as error:
            print(error)
            failed = True
        finally:
            sys.stdout.flush()
            os._exit(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    import ranks  # noqa: F401

    os.environ.setdefault("HYPOTHESIS_PROFILE", "unshrunk")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, metavar="K", help="take every K-th change alone")
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("tests", nargs=argparse.REMAINDER, help="what pytest takes")
    given = parser.parse_args()
    options = ["-x", "-q", "-s", "-p", "no:cacheprovider", "-W", "ignore", "-m", "slow or not slow"]
    pytest.main([*options, *given.tests], plugins=[Mutation(given.file.resolve(), given.every)])
