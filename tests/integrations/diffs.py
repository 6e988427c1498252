"""The documentation's diffs, and the loops in `loops/` that they are written for.

A page names the loop in a comment above the diff, `% loop: NAME`; several diffs of one loop follow one another, as the
files of a repository do. A removed line `...  # N lines: WHAT` stands for the loop's next N lines, whatever they say.
"""

import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType

LOOPS = Path(__file__).parent / "loops"
DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^% loop: (\w+)\n+```diff\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LEFT_OUT = re.compile(r"^\s*\.\.\.  # (\d+) lines: .+$")


def documented():
    """Return the diffs of each loop, joined in the order of the page that shows them."""
    diffs, pages = defaultdict(str), {}
    for page in sorted(DOCS.rglob("*.md")):
        if "_build" in page.parts:
            continue
        for name, diff in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert pages.setdefault(name, page) == page, f"{name} is changed on two pages: {pages[name]} and {page}"
            diffs[name] += diff
    return dict(diffs)


def changed(diff):
    """Count the lines that a diff adds and removes."""
    added = removed = 0
    for line in diff.splitlines():
        if line.startswith("+"):
            added += 1
        elif line.startswith("-"):
            several = LEFT_OUT.match(line[1:])
            removed += int(several[1]) if several else 1
    return added, removed


def apply(diff, source):
    """Return the source with the diff's lines removed and added; context has to be found, in order.

    What a hunk adds before its first line of context stands in front of that line.
    """
    lines, result, at, leading, waiting = source.splitlines(), [], 0, True, []
    for line in diff.splitlines():
        mark, text = line[:1], line[1:]
        if line.startswith("@@"):
            result, leading, waiting = result + waiting, True, []
        elif mark == "+":
            (waiting if leading else result).append(text)
        elif mark == "-" and (several := LEFT_OUT.match(text)):
            at += int(several[1])
        else:
            assert mark in " -", f"neither context, nor added, nor removed: {line!r}"
            assert text in lines[at:], f"not in the loop, or not after the lines above it: {text!r}"
            found = lines.index(text, at)
            result += lines[at:found] + waiting + [text] * (mark == " ")
            at, leading, waiting = found + 1, False, []
    return "\n".join(result + waiting + lines[at:]) + "\n"


def load(name, diff=""):
    """Run a loop's source, changed or as it is, as a module."""
    source = (LOOPS / f"{name}.py").read_text(encoding="utf-8")
    module = ModuleType(name)
    exec(compile(apply(diff, source), f"{name} as documented", "exec"), vars(module))
    return module
