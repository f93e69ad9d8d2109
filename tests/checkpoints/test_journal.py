"""The journal says what is on the disk, whatever moment a kill chose."""

from pathlib import Path

import pytest

from fxfuse.checkpoints.journal import Journal
from fxfuse.errors import InputError

KEY = {"fxfuse": "1", "source": {"a": [1, 2]}, "arguments": {"groups": [[1, 2]]}, "written": "x"}


def positions(path: Path, **more: object) -> tuple[bool, int, int, bool]:
    journal = Journal(path, KEY, **more)  # type: ignore[arg-type]
    try:
        return journal.resumed, journal.position("a"), journal.position("b"), journal.ended
    finally:
        journal.close()


def test_positions_are_read_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", KEY)
    assert not journal.resumed
    for file, position in (("a", 5), ("a", 9), ("b", 3)):
        journal.note(file, position)
    journal.close()
    assert positions(tmp_path / "journal") == (True, 9, 3, False)


def test_a_journal_cut_anywhere_tells_what_was_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, KEY)
    for position in (5, 9):
        journal.note("a", position)
    journal.end()
    journal.close()
    whole = path.read_bytes()
    told = []
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        told.append(positions(path))
        assert positions(path) in ((True, *told[-1][1:]), told[-1])
        journal = Journal(path, KEY)
        journal.note("b", 7)  # what is written after a torn line is read
        journal.close()
        assert positions(path)[2] == 7
    assert [each[1] for each in told] == sorted(each[1] for each in told)
    assert told[0] == (False, 0, 0, False)
    assert told[-1] == (True, 9, 0, True)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"source": {}}, "the source's files differ"),
        ({"arguments": {}}, "the arguments differ"),
        ({"fxfuse": "2"}, "the version of fxfuse differ"),
        ({"written": "y"}, "what it writes differ"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    Journal(tmp_path / "journal", KEY | changed).close()
    with pytest.raises(InputError, match=f"is what another run left, and {words}"):
        Journal(tmp_path / "journal", KEY)


def test_restart_throws_it_away(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", KEY)
    journal.note("a", 5)
    journal.close()
    assert positions(tmp_path / "journal", restart=True) == (False, 0, 0, False)
    assert positions(tmp_path / "journal") == (True, 0, 0, False)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", KEY)
    with pytest.raises(InputError, match="Another run is at it .*: wait for its end"):
        Journal(tmp_path / "journal", KEY)
    journal.close()
    assert positions(tmp_path / "journal")[0]


@pytest.mark.parametrize("text", ["[]\n", "no\n", '{"fxfuse": "1"}\n[1]\n', '{"fxfuse": "1"}\n["a", "b"]\n'])
def test_what_is_no_journal_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal").write_text(text)
    assert positions(tmp_path / "journal") == (False, 0, 0, False)
