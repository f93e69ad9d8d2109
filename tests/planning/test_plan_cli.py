"""`fxfuse plan`: front, choice and groups on the screen, the plan in a file, every mistake told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxfuse import cli
from fxfuse.planning.choose import plan
from fxfuse.planning.files import read_plan
from fxfuse.planning.table import render_plan
from tests.planning.made import analysis, power, summed

TABLE = """\
made: 4 FFN blocks in 2 groups; KL 0.01131 nats/token, predicted

lengths    FFNs in a row  predicted KL
5                      1        0.1398  over budget
2+3                    2       0.02904  over budget
1+2+2                  3       0.01131  chosen
1+1+1+2                4      0.005657
1+1+1+1+1              5             0

group                 blocks  SQNR dB              KL alone
model.layers.1-2.mlp       2     35.0  0.005657 (predicted)
model.layers.3-4.mlp       2     35.0  0.005657 (predicted)

note: the KL is the sum of single groups': give the model and data to measure all groups together
"""


@pytest.fixture
def analysis_file(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(analysis(5).to_json())
    return tmp_path / "a.json"


def run(*words: object) -> int:
    return cli.main(["plan", *map(str, words)])


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_it_shows_the_front_and_writes_the_plan(
    analysis_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(analysis_file, "--max-kl", 0.02) == 0
    assert capsys.readouterr() == (TABLE, "")
    assert names(tmp_path) == ["a.json"]
    assert run(analysis_file, "--max-kl", 0.02, "-o", tmp_path / "p.json") == 0
    assert capsys.readouterr().out == f"{TABLE}\nplan: {tmp_path / 'p.json'}\n"
    written = read_plan(tmp_path / "p.json")
    assert [len(group.blocks) for group in written.groups] == [2, 2]
    assert written.command == f"fxfuse plan {analysis_file} --max-kl 0.02 -o {tmp_path / 'p.json'}"
    assert run(analysis_file, "--depth", 2, "-o", tmp_path / "p.json") == 0
    assert len(read_plan(tmp_path / "p.json").groups) == 2


def test_bounds_come_from_the_command_line(
    analysis_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "times.json").write_text(json.dumps({"1": 1.0, "2": 1.25, "3": 2.5}))
    assert run(analysis_file, "--latency", tmp_path / "times.json") == 0
    out = capsys.readouterr().out
    assert "1+2+2                  3         3.5       0.01131  chosen" in out
    assert "latency ms" in out
    for words, first in (
        (["--max-group", 2], "1+2+2"),
        (["--max-group-memory", "2kB"], "1+2+2"),
        (["--exclude", r"\.2\."], "2+1+2"),
        (["--include", r"\.[01]\."], "2+1+1+1"),
        (["--no-budget"], "5 "),
        (["--min-sqnr", 31], "1+2+2"),
    ):
        assert run(analysis_file, *words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "chosen" in line][0].startswith(first), words


def test_nothing_within_the_budget_is_exit_code_3(
    analysis_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(analysis_file, "--max-kl", 0) == 3
    out = capsys.readouterr().out
    assert out.startswith("made: no groups\n")
    assert "note: no group is within the budget" in out


def test_what_no_group_keeps_is_said_with_the_way_out(
    analysis_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(analysis_file, "--min-sqnr", 99) == 3
    told = "10 of 10 groups keep less than 99 dB: lower min_sqnr, or lift it, to fuse any"
    assert f"note: {told}" in capsys.readouterr().out


def test_a_narrow_terminal_shows_every_column(analysis_file: Path) -> None:
    lines = render_plan(plan(analysis_file), 40).splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[3:7] == [
        "            FFNs in a  predicted",
        "lengths           row         KL",
        "5                   1     0.1398  chosen",
        "2+3                 2    0.02904",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--depth", "9"], "No plan has depth 9 (FFNs left in a row): 1 to 5 can be had."),
        (["--max-kl", "-1"], "--max-kl must not be negative, but is -1."),
        (["--max-group", "1"], "--max-group must be a whole number of at least 2, not 1."),
        (["--latency", "gone.json"], "There is no latency file gone.json: check the path."),
        (
            ["--model", "m.onnx"],
            "--model and --data belong together: give both to measure the plan, or neither to predict it.",
        ),
        (
            ["--depth", "1", "--min-sqnr", "99"],
            "No plan of depth 1 keeps 99 dB in each group: ask for",
        ),
        (["--depth", "2", "--max-kl", "1"], "argument --max-kl: not allowed with argument --depth"),
        (["--max-group-memory", "lots"], "argument --max-group-memory: 'lots' is no size: write one such as"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_no_file(
    analysis_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert run(analysis_file, *words, "-o", tmp_path / "p.json") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fxfuse: error: {sentence}")
    assert err.count("\n") == 1
    assert names(tmp_path) == ["a.json"]


def test_a_plan_takes_no_other_place(
    analysis_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("mine")
    for place, sentence in (
        (analysis_file, f"The plan would overwrite {analysis_file}: choose another file."),
        (text, f"The plan would overwrite {text}, which is no plan: choose another file."),
        (tmp_path, f"The plan cannot be {tmp_path}, which is a folder: give the name of a file in it."),
        (tmp_path / "x" / "p.json", f"There is no folder {tmp_path / 'x'} for the plan: make it first."),
    ):
        assert run(analysis_file, "-o", place) == 2
        assert capsys.readouterr().err == f"fxfuse: error: {sentence}\n"
    assert run(tmp_path / "gone.json") == 2
    assert "There is no analysis" in capsys.readouterr().err
    assert text.read_text() == "mine"


# -- the table -------------------------------------------------------------------------------------


def test_the_table_of_a_measured_plan() -> None:
    found = plan(analysis(3, 2), max_kl=0.02, measure=summed(lambda names: 2 * power(names)))
    lines = str(found).splitlines()
    assert (
        lines[0]
        == "made: 2 FFN blocks in 1 group; KL 0.01131 ± 0.001 nats/token, measured on all groups together"
    )
    assert "lengths      FFNs in a row  predicted KL      measured KL" in lines
    assert "1+2 | 2                  3       0.01131  0.02263 ± 0.001  over budget" in lines
    assert not any("[" in line for line in lines)


def test_a_long_front_is_thinned_and_keeps_the_choice() -> None:
    found = plan(analysis(60), depth=37, min_sqnr=None, candidates=1)
    assert len(found.front) == 60
    lines = render_plan(found).splitlines()
    rows = lines[3 : lines.index("", 3)]
    assert len(rows) in (40, 41)
    assert (rows[0].split()[0], rows[-1].split()[0]) == ("60", "60x1")
    (chosen,) = [row for row in rows if "chosen" in row]
    assert chosen.startswith("14x1+23x2  ")


def test_an_unknown_kl_is_said_so() -> None:
    assert "; KL unknown" in render_plan(plan(analysis(4, known=False), depth=2))
