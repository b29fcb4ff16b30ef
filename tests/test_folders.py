"""Output folders that appear only when they are complete: each state on disk, made by hand, and the way on from it."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from hf_gpt.folders import (
    JOURNAL,
    NEW_JOURNAL,
    PartialFolder,
    is_failed_write,
    move,
    output_folder,
    partial_of,
    state_of,
)
from hf_gpt.locks import LOCK


def write(out, depends_on=None, *, names=("file",), error=None, **options):
    """Writes files that are named after what they depend on; raises an error after them."""
    with output_folder(out, depends_on, **options) as folder:
        for name in names:
            with folder.writing() as unfinished:
                (unfinished / name).write_text(str(depends_on))
        if error is not None:
            raise error


def entries(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_folder_appears_after_the_block(tmp_path):
    out = tmp_path / "deep" / "out"
    with output_folder(out) as folder:
        with folder.writing() as unfinished:
            (unfinished / "sub").mkdir()
            (unfinished / "sub" / "file").write_text("text")
            assert not folder.is_valuable
        assert folder.is_valuable
        assert not out.exists()
    assert entries(out.parent) == ["out", "out/sub", "out/sub/file"]


def test_an_empty_folder_can_be_written(tmp_path):
    write(tmp_path / "new", names=())
    write(tmp_path / "new")
    assert entries(tmp_path) == ["new", "new/file"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("options", [{}, {"resume": False}, {"depends_on": {"seed": 1}}])
def test_what_exists_does_not_change(tmp_path, kind, options):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out / "file" if kind == "folder" else out).write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write(out, **options)
    assert (out / "file" if kind == "folder" else out).read_text() == "mine"
    assert not partial_of(out).exists()


@pytest.mark.parametrize("names", [("mine",), ("content/file",), ("checkpoints/checkpoint-1/file", LOCK)])
@pytest.mark.parametrize("journal", [None, "", "{", "[]", "{}", '{"command": "a", "depends_on": 1}'])
def test_a_folder_that_is_not_of_the_protocol_does_not_change(tmp_path, names, journal):
    out, root = tmp_path / "out", tmp_path / "out.partial"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    if journal is not None:
        (root / JOURNAL).write_text(journal)
    before = set(entries(root)) - {LOCK}
    for resume in (None, False, True):
        with pytest.raises(FileExistsError, match=r"journal\.json is missing or damaged: move or remove the folder"):
            write(out, {"seed": 1}, resume=resume)
    assert set(entries(root)) == before


RUN = {"seed": 1}


def make(out, files=(), *, depends_on=RUN, has_content=True, has_journal=True):
    """Makes a partial folder as a kill leaves it."""
    folder = PartialFolder(partial_of(out))
    folder.root.mkdir()
    (folder.root / LOCK).write_text("process 1")
    (folder.root / NEW_JOURNAL).write_text("{")
    if has_journal:
        folder.journal.write_text(json.dumps({"command": "hf-gpt convert a b", "depends_on": depends_on}))
    if has_content:
        folder.content.mkdir()
    for name in files:
        (folder.root / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.root / name).write_text(str(depends_on))


UNFINISHED = ("unfinished/tmp1/.tmpAbCdEf", "unfinished/content/half")
NOTHING_OF_VALUE = {
    "no journal": {"has_journal": False, "has_content": False},
    "no content": {"has_content": False},
    "no file": {},
    "unfinished files": {"files": UNFINISHED},
    "in a removal": {"has_content": False, "files": ("checkpoints/checkpoint-1/half", "unfinished/content/half")},
    "cannot resume": {"depends_on": None, "files": ("content/other", *UNFINISHED)},
}


@pytest.mark.parametrize("state", NOTHING_OF_VALUE.values(), ids=NOTHING_OF_VALUE)
@pytest.mark.parametrize("resume", [None, False, True])
@pytest.mark.parametrize("depends_on", [None, RUN, {"seed": 2}])
def test_a_state_of_no_value_is_removed(tmp_path, state, resume, depends_on):
    out = tmp_path / "out"
    make(out, **state)
    write(out, depends_on, resume=resume)
    assert entries(tmp_path) == ["out", "out/file"]
    assert (out / "file").read_text() == str(depends_on)


@pytest.mark.parametrize("files", [(), ("checkpoints/checkpoint-1/file",)])
def test_what_is_left_after_the_rename_is_removed(tmp_path, files):
    """The process was killed between the rename to OUT and the end."""
    out = tmp_path / "out"
    make(out, files, has_content=False)
    out.mkdir()
    (out / "file").touch()
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"):
        write(out, RUN)
    assert entries(tmp_path) == ["out", "out/file"]


VALUABLE = [("content/first", *UNFINISHED), ("checkpoints/checkpoint-1/file", *UNFINISHED)]


@pytest.mark.parametrize("files", VALUABLE)
@pytest.mark.parametrize("resume", [None, True])
def test_the_same_call_resumes(tmp_path, files, resume):
    out = tmp_path / "out"
    make(out, files)
    with output_folder(out, RUN, resume=resume) as folder:
        assert entries(folder.unfinished) == []
        assert (folder.root / files[0]).exists()
        with folder.writing() as unfinished:
            (unfinished / "second").touch()
    kept = ["out/first"] if files[0] == "content/first" else []
    assert entries(tmp_path) == ["out", *kept, "out/second"]


@pytest.mark.parametrize("files", VALUABLE)
@pytest.mark.parametrize(
    ("depends_on", "resume", "error", "message"),
    [
        (
            {"seed": 2},
            None,
            FileExistsError,
            "of `hf-gpt convert a b` with another seed: finish it by the same command",
        ),
        ({"seed": 1, "new": 1}, None, FileExistsError, "with another new: finish it"),
        (None, None, FileExistsError, "with another seed: finish it"),
        (RUN, False, FileExistsError, r"of `hf-gpt convert a b`: resume it \(--resume\), or remove the folder"),
        ({"seed": 2}, False, FileExistsError, r"holds an unfinished run of .*: resume it"),
        ({"seed": 2}, True, ValueError, "cannot resume: seed=2, but the run began with 1"),
    ],
)
def test_another_call_changes_nothing(tmp_path, files, depends_on, resume, error, message):
    out = tmp_path / "out"
    make(out, files)
    before = set(entries(tmp_path)) - {f"out.partial/{LOCK}"}
    with pytest.raises(error, match=message) as raised:
        write(out, depends_on, resume=resume)
    assert "\n" not in str(raised.value)
    assert set(entries(tmp_path)) == before


def test_a_mount_point_is_refused_at_the_beginning(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path / "out")
    with pytest.raises(FileExistsError, match="is a mount point, which cannot be replaced: choose a folder in it"):
        write(tmp_path / "out")
    assert entries(tmp_path) == ["out"]


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no unfinished run to resume"):
        write(tmp_path / "out", RUN, resume=True)
    assert not entries(tmp_path)


@pytest.mark.parametrize(
    ("depends_on", "names", "error", "is_left"),
    [
        (RUN, ("file",), KeyboardInterrupt(), True),
        (RUN, ("file",), OSError("disk"), True),
        (RUN, ("file",), ValueError("bad input"), False),
        (RUN, (), KeyboardInterrupt(), False),
        (None, ("file",), KeyboardInterrupt(), False),
    ],
)
def test_what_an_exception_leaves(tmp_path, depends_on, names, error, is_left):
    with pytest.raises(type(error)):
        write(tmp_path / "out", depends_on, names=names, error=error)
    assert bool(entries(tmp_path)) == is_left
    write(tmp_path / "out", depends_on)
    assert entries(tmp_path) == ["out", "out/file"]


def test_no_exception_removes_a_checkpoint(tmp_path):
    out = tmp_path / "out"
    for error in (ValueError("in a step"), KeyboardInterrupt()):
        with pytest.raises(type(error)), output_folder(out, RUN) as folder:
            folder.checkpoints.mkdir(exist_ok=True)
            (folder.checkpoints / "checkpoint-1").mkdir(exist_ok=True)
            raise error
        assert (partial_of(out) / "checkpoints" / "checkpoint-1").exists()


def test_files_of_an_interrupted_block_are_not_content(tmp_path):
    """Such as the temporary files of safetensors, which a killed process leaves."""
    with suppress(KeyboardInterrupt), output_folder(tmp_path / "out", RUN) as folder:
        with folder.writing() as unfinished:
            (unfinished / "first").touch()
        with folder.writing() as unfinished:
            (unfinished / ".tmpAbCdEf").touch()
            raise KeyboardInterrupt
    write(tmp_path / "out", RUN)
    assert entries(tmp_path / "out") == ["file", "first"]


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILED_WRITES = [
    FULL,
    Exception("No space left on device (os error 28)"),  # of tokenizers
    RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0"),
]


@pytest.mark.parametrize("error", FAILED_WRITES)
def test_a_full_disk_is_an_error_that_names_the_folder(tmp_path, error):
    with pytest.raises(OSError, match=r"out could not be written: .*"):
        write(tmp_path / "out", RUN, names=(), error=error)
    assert not entries(tmp_path)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), KeyboardInterrupt(), OSError(errno.EIO, "x")])
def test_other_errors_are_raised_as_they_are(tmp_path, error):
    assert not is_failed_write(error)
    with pytest.raises(type(error)) as raised:
        write(tmp_path / "out", RUN, error=error)
    assert raised.value is error


def test_files_are_on_the_disk_before_they_are_renamed(tmp_path, monkeypatch):
    """Each rename follows an fsync of the file, or of all files in the folder, and precedes one of its new folder."""
    operations = []

    def record(name):
        """Records the inode of the argument: a path or a descriptor."""
        original = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args: operations.append((name, os.stat(args[0]).st_ino)) or original(*args)
        )

    record("fsync")
    record("replace")
    folder, target = tmp_path / "new", tmp_path / "target"
    folder.mkdir()
    (folder / "file").write_text("text")
    move(folder, target / "out")
    inodes = [path.stat().st_ino for path in (target / "out", target / "out" / "file", target / "out", target)]
    assert operations == list(zip(["fsync", "fsync", "replace", "fsync"], inodes, strict=True))


def test_state_of_files(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    before = state_of([file])
    assert state_of([file]) == before
    file.write_text("three")
    assert state_of([file]) != before
