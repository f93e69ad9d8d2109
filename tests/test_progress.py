"""Progress: what is told, how often, and how a terminal and a pipe show it."""

import re
import sys
from itertools import count

import pytest

from fxfuse import progress as module
from fxfuse.clock import Clock
from fxfuse.progress import Amount, Step, duration, silent, track
from fxfuse.screen import show_steps
from tests.test_cli import left_on, terminal


@pytest.fixture
def clock(monkeypatch):
    """Time that moves on when `clock(seconds)` says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_the_count_and_the_time_left_are_told(clock):
    told = []
    for _ in track(range(4), "measuring segments", told.append):
        clock(10)
    assert told == [
        "measuring segments: 0 of 4",
        "measuring segments: 1 of 4, 30 s left",
        "measuring segments: 2 of 4, 20 s left",
        "measuring segments: 3 of 4, 10 s left",
        "measuring segments: 4 of 4",
    ]


def test_no_more_than_four_texts_come_in_a_second(clock):
    told = []
    for _ in track(range(10_000), "x", told.append):
        clock(0.001)
    assert len(told) == 2 + 39
    assert told[-1] == "x: 10000 of 10000"


def test_an_amount_is_told_in_its_own_words_and_by_what_was_done_now(clock):
    told = []
    amount = Amount("writing", 100, told.append, done=40, word=lambda count: f"{count} kB")
    for _ in range(3):
        clock(10)
        amount.add(20)
    assert told == [
        "writing: 40 kB of 100 kB",
        "writing: 60 kB of 100 kB, 20 s left",
        "writing: 80 kB of 100 kB, 10 s left",
        "writing: 100 kB of 100 kB",
    ]


def test_small_amounts_are_not_all_told(clock):
    told = []
    amount = Amount("writing", 1000, told.append)
    for _ in range(1000):
        clock(0.001)
        amount.add(1)
    assert len(told) == 2 + 3
    assert told[-1] == "writing: 1000 of 1000"


def test_what_has_no_length_is_counted(clock):
    told = []
    for item in track(count(), "reading", told.append):
        clock(1)
        if item == 2:
            break
    assert told == ["reading: 0", "reading: 1", "reading: 2"]
    told.clear()
    assert list(track(iter("ab"), "reading", told.append, total=2)) == ["a", "b"]
    assert told == ["reading: 0 of 2", "reading: 2 of 2"]


def test_nothing_to_do_is_no_error():
    told = []
    assert list(track([], "x", told.append)) == []
    assert told == ["x: 0 of 0"]
    assert list(track("ab", "x")) == ["a", "b"]
    silent("nothing")


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0, "1 s"),
        (29.7, "30 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5940, "99 min"),
        (6000, "1 h 40 min"),
        (7200, "2 h"),
    ],
)
def test_durations_are_worded_as_people_say_them(seconds, words):
    assert duration(seconds) == words


def test_a_counted_step_is_one_phase_of_the_report():
    phases, told = {}, []
    clock = Clock(phases, told.append)
    for _ in track(range(3), "measuring", clock):
        pass
    clock("done")
    clock.stop()
    assert list(phases) == ["measuring", "done"]
    assert told == ["measuring: 0 of 3", "measuring: 3 of 3", "done"]
    assert isinstance(told[0], Step)


PROGRAM = """
import time
from fxfuse.progress import track
from fxfuse.screen import show_steps
with show_steps() as progress:
    progress("reading layers[0]")
    time.sleep(0.2)
    for _ in track(range(6), "measuring segments", progress):
        time.sleep(0.3)
print("done")
"""


def test_a_terminal_shows_a_bar_with_the_time_left_and_keeps_nothing_of_it(tmp_path):
    code, shown = terminal([sys.executable, "-c", PROGRAM], tmp_path, 100)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "reading layers[0]" in plain
    assert re.search(r"measuring segments [━╺╸]+ 3 of 6, 1 s left", plain)
    assert [line for line in left_on(shown) if line.strip()] == ["done"]


def test_a_narrow_terminal_shows_the_words_alone(tmp_path):
    code, shown = terminal([sys.executable, "-c", PROGRAM], tmp_path, 40)
    assert code == 0
    assert "━" not in shown
    assert re.search(r"measuring segments: 3 of 6, 1 s left", shown)


def test_a_pipe_shows_nothing(capfd):
    with show_steps() as progress:
        for _ in track(range(3), "measuring", progress):
            pass
    assert capfd.readouterr() == ("", "")
