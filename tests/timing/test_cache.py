"""Figures outlive the process, and a damaged file counts as empty."""

from pathlib import Path

import pytest

from fxfuse.timing.cache import Cache, cache_path


def test_what_is_put_is_there_for_another_process(tmp_path: Path):
    path = tmp_path / "new" / "timings.json"
    Cache(path).put("one", {"seconds": 1.0})
    Cache(path).put("two", {"seconds": 2.0})
    assert Cache(path).get("one") == {"seconds": 1.0}
    assert Cache(path).get("two") == {"seconds": 2.0}
    assert Cache(path).get("three") is None
    assert [each.name for each in path.parent.iterdir()] == ["timings.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "timings": {}}', '{"format": 2, "timings": 3}']
)
def test_a_damaged_file_is_empty_and_is_written_anew(tmp_path: Path, text: str):
    path = tmp_path / "timings.json"
    path.write_text(text)
    cache = Cache(path)
    assert cache.get("one") is None
    cache.put("one", {"seconds": 1.0})
    assert cache.get("one") == {"seconds": 1.0}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "timings.json")
    cache.put("one", {"seconds": 1.0})
    assert cache.get("one") is None


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FXFUSE_CACHE", str(tmp_path))
    assert cache_path() == tmp_path / "timings.json"
    monkeypatch.setenv("FXFUSE_CACHE", "")
    assert cache_path() is None
    Cache(cache_path()).put("one", {})
    monkeypatch.delenv("FXFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() is not None
