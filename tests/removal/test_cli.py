"""fxfuse remove: from the command line, with a table of what each attention costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fxfuse import cli
from fxfuse.frontends.opening import load_torch
from fxfuse.removal.records import Candidate, Choice, Removal, Step
from fxfuse.removal.table import draw
from fxfuse.table import plain
from tests import families

SOURCE = """
from tests import families

def llama():
    return families.build("llama", removed=()), (families.ids(),)

def program():
    import torch
    return torch.export.export(*llama()), (families.ids(),)

def function():
    return len, (1,)
"""


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.npy"
    np.save(path, np.random.default_rng(0).integers(0, families.VOCAB, 600))
    return path


def run(*words: Any) -> int:
    return cli.main(["remove", *map(str, words)])


def test_by_a_budget(
    onnx_file: Callable[..., Path], ids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, report = (
        onnx_file("llama", dynamic=True, removed=()),
        tmp_path / "o.onnx",
        tmp_path / "r.json",
    )
    arguments = ["--data", ids, "--context", 12, "--provider", "cpu", "--report", report]
    assert run(source, "-o", out, "--max-kl", 0.06, *arguments) == 0
    told = capsys.readouterr().out
    lines = [line.split() for line in told.splitlines()]
    assert ["model.layers.0.self_attn", "kept"] in lines
    written = json.loads(report.read_text())
    assert written["removed"]
    assert written["choice"]["held_out_kl"] > 0
    rounds = len(written["choice"]["steps"])
    rows = {line[0]: line for line in lines if line and line[0].startswith("model.layers")}
    for name in written["removed"]:
        assert rows[name][1] == "removed"
        assert rows[name][-1] == "*"
    assert len(rows["model.layers.1.self_attn"]) >= 2 + rounds
    assert f"written to {out}" in told
    assert run(source, "-o", tmp_path / "none.onnx", "--max-kl", 1e-9, *arguments[:-2]) == 3
    told = capsys.readouterr().out
    assert "no attention was removed" in told
    assert "none is within budget" in told
    assert "went in that round" not in told
    assert not [line for line in told.splitlines() if line.startswith("attention")]
    assert not (tmp_path / "none.onnx").exists()


def test_by_a_list_and_by_decisions(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    source = onnx_file("llama", dynamic=True, removed=())
    assert run(source, "-o", tmp_path / "a.onnx", "--layers", "1,3-4") == 0
    (tmp_path / "config.json").write_text(json.dumps({"drop_attn_list": [1, 3, 4]}))
    assert run(source, "-o", tmp_path / "b.onnx", "--decisions", tmp_path / "config.json", "--renumber") == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("function", ["llama", "program"])
def test_a_torch_model(function: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "make.py").write_text(SOURCE)
    out = tmp_path / "less.pt2"
    assert run(f"{tmp_path / 'make.py'}:{function}", "-o", out, "--layers", "1,2,4") == 0
    assert "3 + 2" in capsys.readouterr().out
    program: Any = load_torch(str(out))
    expected = families.build("llama")(families.ids())
    torch.testing.assert_close(program.module()(families.ids()), expected)
    assert run(out, "-o", tmp_path / "less2.pt2", "--layers", "3") == 0


def test_by_number_on_a_torch_model(ids: Path, tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text(SOURCE)
    report = tmp_path / "r.json"
    arguments = ["--data", ids, "--context", 7, "--batch-size", 2, "--tokens", 140, "--report", report]
    place = f"{tmp_path / 'make.py'}:llama"
    assert run(place, "-o", tmp_path / "o.pt2", "--number", 1, "--among", "2,3", *arguments) == 0
    (removed,) = json.loads(report.read_text())["removed"]
    assert removed in ("model.layers.2.self_attn", "model.layers.3.self_attn")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (
            ["m.onnx", "--number", "2"],
            "--number and --max-kl are measured: give calibration data with --data.",
        ),
        (["m:f", "--layers", "2"], "Say with -o where the program goes: a .pt2 file."),
        (["m:f", "--layers", "2", "-o", "x.pt2", "--renumber"], "--renumber is for the cache of ONNX files"),
        (["m.onnx"], "one of the arguments --layers --number --max-kl --decisions is required"),
        (["m.onnx", "--layers", "x"], "'x' is no list of layers: write one such as 5-10,12."),
        (["m.onnx", "--layers", "2"], "There is no model file m.onnx: check the path."),
    ],
)
def test_bad_arguments(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    assert sentence in capsys.readouterr().err


def test_a_function_that_returns_no_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "make.py").write_text(SOURCE)
    out = tmp_path / "x.pt2"
    assert run(f"{tmp_path / 'make.py'}:function", "-o", out, "--layers", "1") == 2
    assert "must return an nn.Module or an ExportedProgram, not builtin" in capsys.readouterr().err


def test_the_table_says_what_cannot_go() -> None:
    removal = Removal(
        "m.onnx", None, ("layers.10.attn",), ("layers.2.attn",),
        [("layers.0.attn", "it is post-norm"), ("layers.1.attn", "it is post-norm")],
        inputs=("past.10.key",), outputs=("present.10.key",), notes=["a note"],
    )  # fmt: skip
    text = plain(draw(removal), 100)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("layers.")]
    assert rows[:4] == ["layers.0.attn", "layers.1.attn", "layers.2.attn", "layers.10.attn"]
    assert "layers.0-1.attn: it is post-norm" in text
    assert "1 inputs and 1 outputs fewer" in text
    assert "note: a note" in text
    assert "nothing was written" in text


@pytest.mark.parametrize(
    "width, shown, left", [(80, [1, 19, 20], "2 to 18"), (110, [1, 17, 18, 19, 20], "2 to 16")]
)
def test_the_table_of_many_rounds(width: int, shown: list[int], left: str) -> None:
    """As many as there is room for beside names that stay whole, and a line for the others."""
    text = plain(draw(_of_rounds(20)), width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    rows = [line.split() for line in lines if line.startswith("model.layers.")]
    assert [row[0] for row in rows] == [f"model.layers.{layer}.self_attn" for layer in range(24)]
    assert rows[0][2:4] == ["1.23e-05", "*"]
    (head,) = [line for line in lines if line.startswith("attention")]
    assert [int(word) for word in head.split() if word.isdecimal()] == shown
    assert f"rounds {left} are not shown: --report writes them all" in text


def test_the_table_of_as_many_rounds_as_there_is_room_for() -> None:
    assert "shown" not in plain(draw(_of_rounds(5)), 110)
    assert "round 2 is not shown: --report writes them all" in plain(draw(_of_rounds(6)), 110)


def _of_rounds(count: int) -> Removal:
    """A removal of the first `count` of 24 attentions, in that order."""
    names = [f"model.layers.{layer}.self_attn" for layer in range(24)]
    steps = [
        Step(
            names[first],
            1.234e-5,
            0.0,
            False,
            tuple(Candidate(each, 1.234e-5, 0.0) for each in names[first:]),
        )
        for first in range(count)
    ]
    choice = Choice(tuple(steps), tuple(range(count)), 1000, 100, stopped="enough went")
    return Removal("m", None, tuple(names[:count]), tuple(names[count:]), choice=choice)
