"""How all figures look: no background, in a version for light pages and one for dark pages."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

STATIC = Path(__file__).parents[1] / "_static"
OWN, PARTNER, REST = "#2f7ed8", "#f28f2c", "#9aa0a6"
INKS = {"light": "#24292f", "dark": "#e6e6e6"}


@contextmanager
def inks() -> Iterator[None]:
    """The settings that both versions share."""
    settings = {
        "font.size": 10,
        "svg.fonttype": "path",
        "svg.hashsalt": "imix-aug",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "savefig.transparent": True,
        "savefig.bbox": "tight",
        "legend.frameon": False,
    }
    with mpl.rc_context(settings):
        yield


def save(name: str, draw: Callable[[str], plt.Figure]) -> None:
    """Draw a figure in both inks: NAME-light.svg and NAME-dark.svg."""
    STATIC.mkdir(exist_ok=True)
    for theme, ink in INKS.items():
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")
        with inks(), mpl.rc_context(dict.fromkeys(names, ink)):
            figure = draw(ink)
            path = STATIC / f"{name}-{theme}.svg"
            figure.savefig(path, metadata={"Date": None})
            plt.close(figure)
            print(path.relative_to(STATIC.parent), file=sys.stderr)  # what is printed otherwise goes into a page
