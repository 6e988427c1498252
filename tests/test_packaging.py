"""What is built holds the loops, and ``python -m imix_aug examples DIR`` hands them out."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from imix_aug import __main__ as command

ROOT = Path(__file__).parents[1]
LOOPS = {path.name: path.read_bytes() for path in (ROOT / "examples" / "loops").glob("*.py")}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(folder):
    with pytest.raises(SystemExit) as end:
        command.main(["examples", str(folder)])
    assert end.value.code.startswith("error: ")
    assert "\n" not in end.value.code
    return end.value.code


def test_the_loops_are_copied_from_a_clone(tmp_path, capsys):
    command.main(["examples", str(tmp_path / "new" / "loops")])
    assert len(LOOPS) >= 7
    assert files(tmp_path / "new" / "loops") == LOOPS
    assert str(tmp_path / "new" / "loops" / "tabular.py") in capsys.readouterr().out.splitlines()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "moco.py").write_text("mine", encoding="utf-8")
    (tmp_path / "another.py").write_text("mine", encoding="utf-8")
    assert "holds moco.py already, and nothing is overwritten" in refusal(tmp_path)
    assert files(tmp_path) == {"moco.py": b"mine", "another.py": b"mine"}


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert f"{tmp_path / 'file'} is a file; wanted a folder" in refusal(tmp_path / "file")
    assert str(tmp_path / "file") in refusal(tmp_path / "file" / "below")
    assert files(tmp_path) == {"file": b"mine"}


def test_another_word_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["loops"])
    assert end.value.code == 2
    assert "invalid choice: 'loops'" in capsys.readouterr().err


def build(source, kind, target):
    """Call the build backend as an installer does: in a process of its own, at the source's root."""
    code = f"import hatchling.build as backend; print(backend.build_{kind}({str(target)!r}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return target / run.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The root of an unpacked source distribution."""
    pytest.importorskip("hatchling")
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("wants the sources")
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder)) as archive:
        archive.extractall(folder)
    (root,) = (path for path in folder.iterdir() if path.is_dir())
    return root


@pytest.mark.parametrize("source", ["clone", "sdist"])
def test_a_wheel_holds_the_loops_and_hands_them_out(sdist, tmp_path, source):
    with zipfile.ZipFile(build(ROOT if source == "clone" else sdist, "wheel", tmp_path)) as wheel:
        wheel.extractall(tmp_path / "installed")
    assert {path.name.split("-")[0] for path in (tmp_path / "installed").iterdir()} == {"imix_aug"}
    run = subprocess.run(
        [sys.executable, "-m", "imix_aug", "examples", str(tmp_path / "loops")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert files(tmp_path / "loops") == LOOPS
    assert len(run.stdout.splitlines()) == len(LOOPS) + 1


def test_an_editable_installation_copies_nothing_and_points_at_the_clone(sdist, tmp_path):
    with zipfile.ZipFile(build(sdist, "editable", tmp_path)) as wheel:
        (pointer,) = (name for name in wheel.namelist() if ".dist-info/" not in name)
        assert Path(wheel.read(pointer).decode().strip()) == sdist / "src"


def links(page):
    """Return the addresses of a page's links, and those of its pictures."""
    pictures = re.findall(r'(?:srcset|src)="([^"]+)"|!\[[^]]*\]\(([^)]+)\)', page)
    return re.findall(r"(?<!!)\[[^]]*\]\(([^)]+)\)", page), [either or other for either, other in pictures]


def metadata(source, target):
    with zipfile.ZipFile(build(source, "wheel", target)) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        return email.message_from_bytes(wheel.read(name))


def test_one_line_gives_every_link_its_whole_address(sdist, tmp_path):
    """What the package index shows has no relative link; each points at a file that the release holds."""
    source = shutil.copytree(sdist, tmp_path / "source")
    (source / "PKG-INFO").unlink()  # what a source distribution was told once it tells again
    settings = source / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    text, filled = re.subn('(?m)^repository = ".*"$', 'repository = "https://example.org/me"', text)
    assert filled == 1
    settings.write_text(text, encoding="utf-8")
    told = metadata(source, tmp_path)
    urls = dict(each.split(", ") for each in told.get_all("Project-URL"))
    assert urls.keys() == {"Paper", "Repository", "Documentation", "Changelog", "Issues"}
    assert urls["Issues"] == "https://example.org/me/issues"
    version = told["Version"]
    pages = [f"{told.get_payload(decode=True).decode()}", (ROOT / "README.md").read_text(encoding="utf-8")]
    for index, place in ((0, "blob"), (1, "raw")):
        whole, short = (links(page)[index] for page in pages)
        assert len(whole) == len(short) >= 3
        for address, relative in zip(whole, short, strict=True):
            if relative.startswith("https://"):
                assert address == relative
            else:
                assert address == f"https://example.org/me/{place}/v{version}/{relative}"
                assert (ROOT / relative.partition("#")[0]).exists()


def test_without_that_line_the_readme_is_as_it_stands(sdist, tmp_path):
    told = metadata(sdist, tmp_path)
    assert told.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2010.08887"]
    assert told.get_payload(decode=True).decode() == (ROOT / "README.md").read_text(encoding="utf-8")
