"""Writing that appears whole or not at all: the order of syncing and renaming, and what remains where it fails."""

import os
from pathlib import Path

import pytest

from triptych import files
from triptych.errors import TriptychError
from triptych.files import leftovers, new_folder, remove_folder, replacing


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and renamed, in order."""
    found: list[tuple[str, str]] = []
    sync, rename, replace = files._sync, os.rename, os.replace

    def note_sync(path: Path) -> None:
        sync(path)
        found.append(("sync", path.name))

    def note_rename(source: Path, target: Path) -> None:
        rename(source, target)
        found.append(("rename", Path(target).name))

    def note_replace(source: Path, target: Path) -> None:
        replace(source, target)
        found.append(("rename", Path(target).name))

    monkeypatch.setattr(files, "_sync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(os, "replace", note_replace)
    return found


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    with replacing(tmp_path / "a" / "x.json") as place:
        place.write_text("1")
        assert not (tmp_path / "a" / "x.json").exists() and place.suffix == ".json"
    assert calls == [("sync", place.name), ("rename", "x.json"), ("sync", "a")]
    assert (tmp_path / "a" / "x.json").read_text() == "1" and not leftovers(tmp_path / "a")


def test_all_of_a_folder_is_synced_before_it_has_its_name(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    with new_folder(tmp_path / "run") as place:
        (place / "inner").mkdir()
        (place / "inner" / "x").write_text("1")
        (place / "y").write_text("2")
        assert not (tmp_path / "run").exists()
    before, named, after = calls[:-2], calls[-2], calls[-1]
    assert {name for _, name in before} == {"inner", "x", "y", place.name}
    assert named == ("rename", "run") and after == ("sync", tmp_path.name)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("mine")])
def test_what_was_there_stays_where_writing_fails(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "x").write_text("old")
    told = TriptychError if isinstance(error, OSError) else type(error)
    with pytest.raises(told), replacing(tmp_path / "x") as place:
        place.write_text("half")
        raise error
    with pytest.raises(told), new_folder(tmp_path / "new") as place:
        (place / "y").write_text("half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (replacing, new_folder):
        with pytest.raises(TriptychError, match=r"file/x cannot be written: (Not a directory|File exists);"):
            with write(tmp_path / "file" / "x"):
                raise AssertionError("never reached")
    with pytest.raises(TriptychError, match="exists already"), new_folder(tmp_path):
        raise AssertionError("never reached")


def test_a_folder_is_whole_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old" / "inner").mkdir(parents=True)
    monkeypatch.setattr(files.shutil, "rmtree", lambda *arguments, **options: None)  # as if killed there
    remove_folder(tmp_path / "old")
    assert not (tmp_path / "old").exists() and len(leftovers(tmp_path)) == 1
