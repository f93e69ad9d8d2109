"""Where a checkpoint may go, and that it appears whole or not at all."""

import os
from pathlib import Path

import pytest

from fxfuse.checkpoints.destination import Destination
from fxfuse.errors import InputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def begun(out: Path, source: Path, force: bool = False) -> Destination:
    """A destination whose new content is the file `new`."""
    place = Destination(out, source, force=force)
    place.content.mkdir()
    place.journal.touch()
    (place.content / "new").touch()
    return place


def inside(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("name", ["source", "source/within", "."])
def test_source_is_never_the_place(tmp_path: Path, source: Path, name: str) -> None:
    with pytest.raises(InputError, match="is the source .*, holds it or lies in it: choose another folder"):
        Destination(tmp_path / name, source, force=True)


def test_folder_above_must_be_there(tmp_path: Path, source: Path) -> None:
    with pytest.raises(InputError, match="The folder .* does not exist: create it"):
        Destination(tmp_path / "no" / "out", source)


def test_what_it_lies_in_is_a_folder(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder: choose another output"):
        Destination(tmp_path / "file" / "out", source)


def test_file_is_no_folder(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="is no folder: choose another output"):
        Destination(tmp_path / "out", source, force=True)


def test_mount_point_cannot_be_renamed_to(source: Path) -> None:
    with pytest.raises(InputError, match="is where a disk is mounted: choose a folder in it"):
        Destination(Path("/proc"), source)


def test_what_is_there_is_kept_unless_forced(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    Destination(out, source).check_free()
    (out / "old").touch()
    with pytest.raises(InputError, match="is not empty: choose another folder or force it"):
        Destination(out, source).check_free()
    with pytest.raises(InputError, match=r"out holds no config.json, so it is not replaced: choose another"):
        Destination(out, source, force=True).check_free()
    (out / "config.json").touch()
    Destination(out, source, force=True).check_free()


def test_commit_into_nothing_and_into_an_empty_folder(tmp_path: Path, source: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("out", "empty"):
        begun(tmp_path / name, source).commit()
        assert inside(tmp_path / name) == ["new"]
    assert inside(tmp_path) == ["empty", "out", "source"]


def test_commit_through_a_link_fills_what_it_points_to(tmp_path: Path, source: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    begun(tmp_path / "out", source).commit()
    assert inside(tmp_path / "disk") == ["new"]
    assert (tmp_path / "out").is_symlink()


def test_commit_replaces_all_of_the_old(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    begun(tmp_path / "out", source, force=True).commit()
    assert inside(tmp_path / "out") == ["new"]
    assert inside(tmp_path) == ["out", "source"]


def test_old_folder_comes_back_when_the_new_one_cannot_come(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    place = begun(tmp_path / "out", source, force=True)
    rename = os.rename

    def refuse(old: Path, new: Path) -> None:
        if old == place.content:
            raise OSError("refused")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        place.commit()
    assert inside(tmp_path / "out") == ["old"]
    place.discard()
    assert inside(tmp_path) == ["out", "source"]


@pytest.mark.parametrize("step", ["clear", "discard"])
def test_old_folder_that_a_kill_left_aside_comes_back(tmp_path: Path, source: Path, step: str) -> None:
    place = begun(tmp_path / "out", source, force=True)
    (tmp_path / ".out.fxfuse-replaced").mkdir()
    (tmp_path / ".out.fxfuse-replaced" / "old").touch()
    getattr(place, step)()
    assert inside(tmp_path / "out") == ["old"]


def test_old_folder_that_a_kill_left_half_removed_is_no_obstacle(tmp_path: Path, source: Path) -> None:
    for name in ("out", ".out.fxfuse-replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    place = begun(tmp_path / "out", source, force=True)
    place.clear()
    assert inside(tmp_path / "out") == ["old"]
    begun(tmp_path / "out", source, force=True).commit()
    assert inside(tmp_path / "out") == ["new"]
    assert inside(tmp_path) == ["out", "source"]


def test_renamed_tells_a_run_that_had_only_to_clean_up(tmp_path: Path, source: Path) -> None:
    place = begun(tmp_path / "out", source)
    assert not place.renamed
    place.content.rename(tmp_path / "out")
    assert place.renamed
