"""Every row of ``docs/your-data.md``: what a user has, and what a user sees."""

import os
import re
import subprocess
import sys

import image
import numpy as np
import pandas as pd
import pytest
import soundfile
import speech
import tabular
import torch
from conftest import EXAMPLES
from PIL import Image
from runner.data import image_folder
from runner.errors import Refused
from runner.state.files import write_tensors
from runner.state.place import hold
from test_faults import CHECKPOINT, DAMAGES, files_no_larger_than

PAGE = EXAMPLES.parent / "docs" / "your-data.md"
ROWS = dict(re.findall(r"^\| (?!-|what )(.+?) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M))
TINY = ("--no-controls", "--epochs", 1, "--seeds", 1, "--mix", "mixup", "--width", 1)
CASES = {}


def case(name):
    """Make what the row of this name says, and return all that is printed."""

    def note(function):
        CASES[name] = function
        return function

    return note


@pytest.fixture
def see(tmp_path, capsys, monkeypatch):
    """Run a command and return what it prints; by default it stops where the training would begin."""

    def call(script, *options, train=False):
        if not train:
            monkeypatch.setattr("runner.run.pretrain", lambda *_: sys.exit("it would train now"))
        options = [*map(str, (*TINY, *options)), "--device", "cpu"]
        if "--out" not in options:
            options += ["--out", str(tmp_path / "out")]
        try:
            script.main(options)
            end = "it has trained"
        except SystemExit as error:
            end = str(error.code)
        return capsys.readouterr().err + end

    return call


def plants():
    draw = np.random.default_rng(0)
    kind = np.repeat(["fern", "moss"], 40)
    return pd.DataFrame({"height": draw.normal(0, 1, 80).round(2), "kind": kind})


def of_table(name, change, file="plants.csv", **options):
    """A row whose table is made by ``change`` and saved by pandas."""

    def run(see, tmp_path, **_):
        change(plants()).to_csv(tmp_path / file, **{"index": False, **options})
        return see(tabular, "--data", tmp_path / file, "--label", "kind")

    CASES[name] = run


SOILS = np.tile(["clay", "sand", "loam", "clay"], 20)
of_table("columns of text", lambda p: p.assign(soil=SOILS))
of_table("missing values: empty, `NA`, `?`", lambda p: p.assign(height=["?", np.nan, *p["height"].astype(str)[2:]]))
of_table("an empty column", lambda p: p.assign(nothing=np.nan))
of_table("semicolons and decimal commas", lambda p: p, sep=";", decimal=",")
of_table("tabs, a byte order mark, UTF-16", lambda p: p, sep="\t", encoding="utf-16")
of_table("Latin-1", lambda p: p.assign(soil=np.where(p.index % 2, "Löß", "clay")), encoding="latin-1")
of_table("an index, as pandas and R write it", lambda p: p, index=True)
of_table("a column of dates or times", lambda p: p.assign(when=pd.date_range("2020-01-01", periods=80).astype(str)))
of_table("identifiers or free text", lambda p: p.assign(name=[f"plant {i}" for i in range(80)]))
of_table("numbers that identify", lambda p: p.assign(plant_id=range(100, 180)))
of_table("numbers with a word among them", lambda p: p.assign(height=["tall", *p["height"][1:]]))
of_table("two columns of one name, or several lines of names", lambda p: p.assign(a=1, b=2).set_axis([*"a", "kind", *"ba"], axis=1))  # fmt: skip  # noqa: E501
of_table("a row without a class", lambda p: p.assign(kind=p["kind"].where(p.index != 3)))
of_table("a class of one row", lambda p: p.assign(kind=p["kind"].where(p.index != 3, "tree")))


@case("a workbook")
def _(see, tmp_path, **_):
    (tmp_path / "plants.csv").write_bytes(b"PK\x03\x04 and so on")
    return see(tabular, "--data", tmp_path / "plants.csv", "--label", "kind")


@case("a file that is torn off")
def _(see, tmp_path, **_):
    path = tmp_path / "plants.csv.gz"
    plants().to_csv(path, index=False)
    path.write_bytes(path.read_bytes()[:-50])
    return see(tabular, "--data", path, "--label", "kind")


def save_photos(folder):
    draw = np.random.default_rng(0)
    for name in ("sea", "wood"):
        (folder / name).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(draw.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / name / f"{i}.png")


def of_photos(name, change):
    """A row whose folder of images is spoiled by ``change``."""

    def run(see, tmp_path, monkeypatch, **_):
        save_photos(tmp_path / "photos")
        change(tmp_path / "photos", monkeypatch)
        return see(image, "--data", tmp_path / "photos", "--data-root", tmp_path / "root")

    CASES[name] = run


def hidden(folder, _):
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "sea" / "._0.png").write_bytes(b"no picture")


def deep(folder, _):
    for name in ("sea", "wood"):
        for path in (folder / name).iterdir():
            Image.fromarray(np.linspace(100, 4000, 64).reshape(8, 8).astype(np.uint16)).save(path)


def turned(folder, _):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(folder / "sea" / "0.png").save(folder / "sea" / "0.png", exif=exif)


of_photos("one folder per class, not divided", lambda *_: None)
of_photos("`.ipynb_checkpoints`, `._0.png`, `__MACOSX`", hidden)
of_photos("images of 16 or 32 bits, or of floats", deep)
of_photos("floats that are none", lambda f, _: Image.fromarray(np.full((8, 8), np.nan, "f")).save(f / "sea" / "a.tif"))
of_photos("photographs that lie on their side", turned)
of_photos("a decompression bomb", lambda _, m: m.setattr(Image, "MAX_IMAGE_PIXELS", 50))
of_photos("a file that is no image, or is torn off", lambda f, _: (f / "sea" / "0.png").write_bytes(b"\x89PNG\r\n"))
of_photos("one class", lambda f, _: (f / "wood").rename(f / ".wood"))
of_photos("more images than memory", lambda _, m: m.setattr(image_folder, "fits", lambda *_: False))


def of_words(name, spoil=lambda _: None, suffix="wav"):
    def run(see, tmp_path, **_):
        for word in ("go", "stop"):
            (tmp_path / "words" / word).mkdir(parents=True)
            for i in range(5):
                sound = np.random.default_rng(i).uniform(-0.5, 0.5, (4410, 2))
                soundfile.write(tmp_path / "words" / word / f"{i}.{suffix}", sound, 44_100)
        spoil(tmp_path / "words" / "go" / f"0.{suffix}")
        return see(speech, "--data", tmp_path / "words")

    CASES[name] = run


of_words("WAV, FLAC, OGG or MP3, of any rate and depth, stereo", suffix="mp3")
of_words("no `testing_list.txt`")
of_words("a file that is no sound", lambda path: path.write_bytes(b"RIFF"))
of_words("a file without a sample", lambda path: soundfile.write(path, np.zeros(0), 16_000))


@case("`--out` is a file")
def _(see, tmp_path, **_):
    (tmp_path / "out").touch()
    return see(tabular)


@case("`--out` cannot be written, or its disk is full")
def _(see, **_):
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("no way to ask for room")
    with files_no_larger_than(1000):
        return see(tabular, train=True)


@case("the disk fills up while a checkpoint is written")
def _(tmp_path, **_):
    write_tensors(tmp_path / "checkpoint.pt", {})
    with files_no_larger_than(5000), pytest.raises(Refused) as refused:
        write_tensors(tmp_path / "checkpoint.pt", {"weights": torch.zeros(100_000)})
    return str(refused.value)


@case("another process writes to the same `--out`")
def _(see, tmp_path, **_):
    if sys.platform == "win32":
        pytest.skip("no lock on a folder")
    with hold(tmp_path / "out"):
        return see(tabular)


@case("Ctrl-C, or SIGTERM from a scheduler")
def _(see, monkeypatch, tmp_path, **_):
    import signal

    from runner.steps import Steps

    record = Steps.record

    def stop(steps, loss):
        record(steps, loss)
        if steps.step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Steps, "record", stop)
    seen = see(tabular, train=True)
    assert torch.load(tmp_path / "out" / CHECKPOINT, weights_only=True)["progress"]["step"] == 3
    return seen


@case("a checkpoint that is damaged, of another version, or malicious")
def _(see, tmp_path, **_):
    see(tabular, train=True)
    DAMAGES["code"](tmp_path / "out" / CHECKPOINT)
    return see(tabular, train=True)


@case("a `results.json` that is damaged")
def _(see, tmp_path, **_):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text('{"runs": [', encoding="utf-8")
    return see(tabular)


@case("a checkpoint of other options")
def _(see, **_):
    see(tabular, train=True)
    return see(tabular, "--alpha", 2, train=True)


@case("data that changed under the same name")
def _(see, tmp_path, **_):
    for height in (0, 1):
        table = plants()
        table.loc[7, "height"] = height
        table.to_csv(tmp_path / "plants.csv", index=False)
        seen = see(tabular, "--data", tmp_path / "plants.csv", "--label", "kind", train=True)
    return seen


@case("a loss that becomes NaN or infinite")
def _(see, **_):
    return see(tabular, "--method", "byol", "--epochs", 30, "--lr", 1e30, train=True)


@case("a terminal without the characters of a name")
def _(tmp_path, **_):
    plants().to_csv(tmp_path / "größe.csv", index=False)
    options = (*TINY, "--data", tmp_path / "größe.csv", "--label", "kind", "--device", "cpu", "--out", tmp_path / "out")
    command = [sys.executable, str(EXAMPLES / "tabular.py"), *map(str, options)]
    end = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert end.returncode == 0
    return end.stdout


def test_the_page_has_thirty_rows_and_more_and_each_is_tested():
    assert len(ROWS) >= 30
    assert ROWS.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_user_sees_what_the_page_says(name, see, tmp_path, monkeypatch):
    seen = CASES[name](see=see, tmp_path=tmp_path, monkeypatch=monkeypatch)
    assert "Traceback" not in seen
    promised = re.findall(r"`([^`]+)`", ROWS[name])
    for words in promised:
        assert words in seen
    if not promised:  # "nothing": it goes on without a word
        notes = seen.removesuffix("it would train now").strip().splitlines()
        assert "it would train now" in seen
        assert [note for note in notes if "no train/ and test/" not in note and "testing_list" not in note] == []
