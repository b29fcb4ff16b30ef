"""Output folders that appear only when they are complete."""

import pytest

from hf_gpt.folders import new_folder, partial_of, resumable_folder, state_of


def test_a_new_folder_appears_after_the_block(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("text")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["file"]
    assert not list(out.parent.glob("*.partial"))


def test_an_empty_folder_can_be_written(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty" / "file").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_exists_does_not_change(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out / "file" if kind == "folder" else out).write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"), new_folder(out):
        pass
    assert (out / "file" if kind == "folder" else out).read_text() == "mine"


def interrupt(out, **options):
    """Writes a file, is interrupted, and returns the partial folder."""
    with pytest.raises(KeyboardInterrupt), new_folder(out, **options) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert not out.exists()
    return folder


@pytest.mark.parametrize("resumable_entry", [None, "other half"])
def test_an_interrupted_run_leaves_nothing(tmp_path, resumable_entry):
    assert not interrupt(tmp_path / "out", resumable_entry=resumable_entry).exists()


def test_an_interrupted_run_leaves_what_can_be_resumed(tmp_path):
    out = tmp_path / "out"
    assert interrupt(out, resumable_entry="half").exists()
    with pytest.raises(FileExistsError, match="holds an unfinished run"), new_folder(out):
        pass
    with new_folder(out, resume=True) as folder:
        assert (folder / "half").exists()
    assert (out / "half").exists()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no unfinished run"), new_folder(tmp_path / "out", resume=True):
        pass
    assert not list(tmp_path.iterdir())


def interrupt_resumable(out, description, error):
    with pytest.raises(type(error)), resumable_folder(out, description) as folder:
        (folder / "half").touch()
        raise error


def test_a_run_of_the_same_description_resumes(tmp_path):
    out = tmp_path / "out"
    interrupt_resumable(out, {"seed": 1}, KeyboardInterrupt())
    with pytest.raises(FileExistsError, match="holds an unfinished run"), resumable_folder(out, {"seed": 2}):
        pass
    with resumable_folder(out, {"seed": 1}) as folder:
        assert (folder / "half").exists()
    assert [path.name for path in out.iterdir()] == ["half"]


def test_a_value_error_leaves_nothing_to_resume(tmp_path):
    interrupt_resumable(tmp_path / "out", {"seed": 1}, ValueError("bad input"))
    assert not list(tmp_path.iterdir())


def test_an_empty_partial_folder_is_no_unfinished_run(tmp_path):
    partial_of(tmp_path / "out").mkdir()
    with resumable_folder(tmp_path / "out", {}):
        pass
    assert (tmp_path / "out").is_dir()


def test_state_of_files(tmp_path):
    file = tmp_path / "file"
    file.write_text("one")
    before = state_of([file])
    assert state_of([file]) == before
    file.write_text("three")
    assert state_of([file]) != before
