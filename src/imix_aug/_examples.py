"""The training loops of ``examples/loops``, for people who have the package and no clone."""

from pathlib import Path


def loops() -> list[Path]:
    """Return the loops: a built package holds them, and where it is run from a clone they lie beside it."""
    inside = Path(__file__).with_name("_loops")
    folder = inside if inside.is_dir() else Path(__file__).parents[2] / "examples" / "loops"
    return sorted(folder.glob("*.py"))


def copy(folder: Path) -> list[Path]:
    """Copy the loops into ``folder``, which is made, and return the copies.

    Raises:
        FileExistsError: one of the files is there already; then nothing is copied.
        OSError: the folder cannot be made or written to.
    """
    found = loops()
    if not found:
        raise FileNotFoundError("this installation holds no examples; they are in the source distribution")
    taken = [path.name for path in found if (folder / path.name).exists()]
    if taken:
        raise FileExistsError(f"{folder} holds {', '.join(taken)} already, and nothing is overwritten")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; wanted a folder")
    folder.mkdir(parents=True, exist_ok=True)
    copies = [folder / path.name for path in found]
    for path, target in zip(found, copies, strict=True):
        with target.open("xb") as file:
            file.write(path.read_bytes())
    return copies
