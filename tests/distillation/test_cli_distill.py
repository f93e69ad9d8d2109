"""`fxfuse distill`: files, exit codes, what it says, and going on after it was stopped."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fxfuse import cli
from fxfuse.distillation import run as running
from fxfuse.frontends.programs import load_program, save_program
from tests.distillation import tiny

TEACHER = "tests.distillation.tiny:teacher_maker"
STUDENT = "tests.distillation.tiny:maker"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data, and the student and the teacher as files."""
    ids = torch.cat([batch["input_ids"] for batch in tiny.data().batches])
    np.save(tmp_path / "ids.npy", ids.numpy())
    save_program(tiny.exported(), tmp_path / "student.pt2")
    return tmp_path


def distill(folder: Path, student: object = "student.pt2", *more: object, output: str = "out.pt2") -> int:
    if student == "student.pt2":
        student = folder / student
    recipe = ["--steps", 12, "--batch-size", 10, "--learning-rate", 5e-3, "--every", 5]
    given = [
        student,
        "--teacher",
        TEACHER,
        "--data",
        folder / "ids.npy",
        "-o",
        folder / output,
        *recipe,
        *more,
    ]
    return cli.main(["distill", *map(str, given)])


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("student", ["student.pt2", STUDENT])
def test_the_output_is_a_program_that_came_nearer(student, folder, capsys):
    assert distill(folder, student) == 0
    assert names(folder) == ["ids.npy", "out.pt2", "student.pt2"]
    said = capsys.readouterr().out
    before, after = (float(each) for each in re.findall(r"^(?:before|after) +(\S+) ± \S+ +\S+%$", said, re.M))
    assert 0 < after < before
    assert "12 steps in" in said
    assert f"written: {folder / 'out.pt2'}" in said
    program = load_program(folder / "out.pt2")
    assert program.module()(input_ids=torch.zeros(3, 7, dtype=torch.long)).shape == (3, 7, tiny.VOCABULARY)


def test_nothing_is_written_where_it_came_no_nearer(folder, capsys):
    assert distill(folder, "student.pt2", "--learning-rate", 5.0) == 3
    assert names(folder) == ["ids.npy", "student.pt2"]
    said = capsys.readouterr().out
    assert "given back as it was" in said
    assert "nothing was written" in said


@pytest.mark.parametrize(
    "number, code, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_stopped_and_resumed(number, code, word, folder, capsys, monkeypatch):
    tell = running.Run._tell

    def tell_and_stop(run: running.Run) -> None:
        tell(run)
        if run.step == 7:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(running.Run, "_tell", tell_and_stop)
        assert distill(folder) == code
    assert names(folder) == ["ids.npy", "out.pt2.checkpoint", "student.pt2"]
    said = capsys.readouterr().err
    place = folder / "out.pt2.checkpoint"
    assert f"{word}: step 7 of 12 is kept in {place}: go on with fxfuse distill {folder}/student.pt2" in said
    assert said.strip().endswith(" --resume")
    assert len(said.strip().splitlines()) == 1
    if number == signal.SIGTERM:
        _resume(folder, capsys)


def _resume(folder, capsys):
    assert distill(folder) == 2
    assert "has a distillation at step 7: resume it, or remove that folder." in capsys.readouterr().err
    assert distill(folder, "student.pt2", "--resume") == 0
    assert "resumed at step 7" in capsys.readouterr().out
    assert names(folder) == ["ids.npy", "out.pt2", "student.pt2"]
    assert distill(folder, output="whole.pt2") == 0
    one, other = load_program(folder / "out.pt2"), load_program(folder / "whole.pt2")
    assert all(torch.equal(each, other.state_dict[name]) for name, each in one.state_dict.items())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--steps", 0), "--steps must be a whole number above 0, not 0."),
        (("--optimizer", "sgd"), "--optimizer must be one of adamw, muon, not 'sgd'."),
        (("--trainable", "("), "--trainable is no regular expression"),
        (("--trainable", "nowhere"), "matches --trainable 'nowhere'"),
        (("--batch-size", 1000), "fewer than a --batch-size of 1000"),
        (("--teacher", "none.pt2"), "There is no model file none.pt2"),
        (("-o", "out.onnx"), "must end in .pt2"),
        (("-o", "nowhere/out.pt2"), "does not exist"),
    ],
)
def test_bad_arguments(arguments, sentence, folder, capsys):
    assert distill(folder, "student.pt2", *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert names(folder) == ["ids.npy", "student.pt2"]


def test_the_output_must_not_be_there(folder, capsys):
    before = (folder / "student.pt2").read_bytes()
    assert distill(folder, output="student.pt2") == 2
    assert "is the input" in capsys.readouterr().err
    assert (folder / "student.pt2").read_bytes() == before
    assert distill(folder, "student.pt2", "--force", output="student.pt2") == 0
    assert (folder / "student.pt2").read_bytes() != before


# -- programs as files -----------------------------------------------------------------------------


def test_no_program(tmp_path, capsys):
    (tmp_path / "m.pt2").write_bytes(b"nothing")
    np.save(tmp_path / "ids.npy", np.zeros((20, 8), np.int64))
    assert distill(tmp_path, tmp_path / "m.pt2") == 2
    assert "is no program of torch.export" in capsys.readouterr().err


def test_a_program_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def half(_: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_program(tiny.exported(), tmp_path / "m.pt2")
    assert not names(tmp_path)
