import pytest

from hf_gpt.folders import new_folder


def test_is_whole_or_not_there(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        (folder / "file").write_text("text")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["file"]
    assert not list(out.parent.glob("*.partial"))


def test_takes_an_empty_folder(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "file").touch()
    assert (tmp_path / "empty" / "file").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_leaves_what_is_there(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    (out / "file" if kind == "folder" else out).write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not an empty folder"), new_folder(out):
        pass
    assert (out / "file" if kind == "folder" else out).read_text() == "mine"


def fail_in(out, **options):
    """Write half, and be interrupted."""
    with pytest.raises(KeyboardInterrupt), new_folder(out, **options) as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert not out.exists()
    return folder


@pytest.mark.parametrize("worth_keeping", [None, "other half"])
def test_a_failure_leaves_nothing(tmp_path, worth_keeping):
    assert not fail_in(tmp_path / "out", worth_keeping=worth_keeping).exists()


def test_a_failure_leaves_what_can_be_resumed(tmp_path):
    out = tmp_path / "out"
    assert fail_in(out, worth_keeping="half").exists()
    with pytest.raises(FileExistsError, match="holds an unfinished run"), new_folder(out):
        pass
    with new_folder(out, resume=True) as folder:
        assert (folder / "half").exists()
    assert (out / "half").exists()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no unfinished run"), new_folder(tmp_path / "out", resume=True):
        pass
    assert not list(tmp_path.iterdir())
