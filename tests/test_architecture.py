"""The house as `docs/architecture.md` describes it, read out of the sources."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "src" / "imix_aug").rglob("*.py")}


def private(name):
    return name.startswith("_") and not name.startswith("__")


def defined(tree):
    """Private names that a file defines, attributes of objects included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def used(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("imix_aug."):
            yield from (alias.name for alias in node.names)


def module_of(path):
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(tree, modules):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("imix_aug"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules else node.module


def test_no_file_reaches_for_the_private_names_of_another():
    own = {path: set(filter(private, defined(tree))) for path, tree in SOURCES.items()}
    of_package = set().union(*own.values())
    reached = {
        path.name: sorted(set(used(tree)) & of_package - own[path])
        for path, tree in SOURCES.items()
        if set(used(tree)) & of_package - own[path]
    }
    assert reached == {}


def test_no_imports_run_in_a_circle():
    """Nor do those inside functions, nor those for annotations alone."""
    modules = {module_of(path) for path in SOURCES}
    rest = {module_of(path): set(imports(tree, modules)) for path, tree in SOURCES.items()}
    while ready := {name for name, needs in rest.items() if not needs & rest.keys()}:
        rest = {name: needs for name, needs in rest.items() if name not in ready}
    assert rest == {}
