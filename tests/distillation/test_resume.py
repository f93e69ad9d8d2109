"""A distillation that is killed goes on from its checkpoint, to the same bits as one that never was."""

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxfuse import FxfuseError, InputError, distill
from fxfuse.distillation import Distilled, checkpoints
from fxfuse.signals import Terminated
from tests.distillation import tiny
from tests.distillation.killed import EVERY, RECIPE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(folder: Path | None = None, **given: object) -> Distilled:
    models = {"student": tiny.exported(), "teacher": tiny.teacher(), "data": tiny.data()}
    models = {name: given.pop(name, each) for name, each in models.items()}
    return distill(**models, folder=folder, **{"every": EVERY, **RECIPE, **given})


@functools.cache
def whole(threads: int) -> Distilled:
    """The run that nothing happened to."""
    assert torch.get_num_threads() == threads
    return run()


def weights(result: Distilled) -> dict[str, Tensor]:
    return result.model.state_dict


def assert_same(one: Distilled, other: Distilled) -> None:
    assert all(torch.equal(each, weights(other)[name]) for name, each in weights(one).items())
    assert (one.start, one.end, one.steps) == (other.start, other.end, other.steps)


def stop_at(step: int, number: int, times: int = 1):
    """A progress that sends this process a signal after a step."""

    def progress(text: str) -> None:
        if f": {step} of {RECIPE['steps']}" in text and "distilling" in text:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return progress


class Killed(BaseException):
    """Stands for a process that ends here."""


# -- killed ----------------------------------------------------------------------------------------


def test_kill_9_and_resume_is_bit_identical(tmp_path, one_thread):
    command = [sys.executable, "-m", "tests.distillation.killed", str(tmp_path / "run"), "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [each.name for each in (tmp_path / "run").iterdir()] == [checkpoints.NAME]
    resumed = run(tmp_path / "run", resume=True)
    assert resumed.resumed_at == 5
    assert resumed.notes == ()
    assert_same(resumed, whole(torch.get_num_threads()))


@pytest.mark.parametrize("moment", ["save", "sync", "replace"])
def test_killed_while_the_checkpoint_is_written(moment, tmp_path, monkeypatch, threads):
    """At the second checkpoint: what lies half-written beside the first is harmless."""
    owner, name = {
        "save": (torch, "save"), "sync": (checkpoints, "sync"), "replace": (os, "replace"),
    }[moment]  # fmt: skip
    real, calls = getattr(owner, name), []

    def killing(*args: object) -> None:
        calls.append(args)
        if len(calls) == (4 if moment == "sync" else 2):
            if moment == "save":
                Path(args[1]).write_bytes(b"half")
            if moment != "sync":
                raise Killed
        real(*args)
        if len(calls) == 3 and moment == "sync":
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, killing)
        run(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [checkpoints.NAME, f"{checkpoints.NAME}.part"]
    resumed = run(tmp_path, resume=True)
    assert resumed.resumed_at == 5
    assert_same(resumed, whole(torch.get_num_threads()))
    assert [each.name for each in tmp_path.iterdir()] == [checkpoints.NAME]


def test_killed_before_the_first_checkpoint(tmp_path):
    result = run(tmp_path, resume=True)
    assert result.resumed_at is None
    assert_same(result, whole(torch.get_num_threads()))


def test_a_finished_run_is_resumed_at_its_end(tmp_path):
    first = run(tmp_path)
    again = run(tmp_path, resume=True)
    assert again.resumed_at == RECIPE["steps"]
    assert_same(again, first)
    assert again.seconds >= 0


def test_the_best_state_on_the_way_survives(tmp_path, threads):
    worse = {"learning_rate": 0.1, "warmup": 0.9, "judge_every": 2, "optimizer": "adamw"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop_at(9, signal.SIGINT), **worse)
    resumed, at_once = run(tmp_path, resume=True, **worse), run(**worse)
    assert "The weights are those of step" in at_once.notes[0]
    assert resumed.notes == at_once.notes
    assert_same(resumed, at_once)


def test_low_precision_is_resumed_in_float32(tmp_path):
    student = tiny.student().bfloat16()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, student=student, progress=stop_at(7, signal.SIGINT))
    resumed, at_once = run(tmp_path, student=student, resume=True), run(student=student)
    assert resumed.resumed_at == 7
    for one, other in zip(resumed.model.parameters(), at_once.model.parameters(), strict=True):
        assert torch.equal(one, other)


# -- stopped ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, kind", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_keeps_the_step_it_came_in(number, kind, tmp_path, threads):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path, progress=stop_at(7, number))
    assert stopped.type is kind
    assert str(stopped.value) == f"step 7 of 12 is kept in {tmp_path}: resume goes on from there"
    assert signal.getsignal(number) is before
    resumed = run(tmp_path, resume=True)
    assert resumed.resumed_at == 7
    assert_same(resumed, whole(torch.get_num_threads()))


def test_a_second_signal_does_not_wait(tmp_path):
    with pytest.raises(
        KeyboardInterrupt, match=f"stopped at step 7 of 12; what was kept before it is in {tmp_path}"
    ):
        run(tmp_path, progress=stop_at(7, signal.SIGINT, times=2))
    assert run(tmp_path, resume=True).resumed_at == 5


def test_without_a_folder_nothing_is_kept():
    with pytest.raises(KeyboardInterrupt, match="stopped at step 7 of 12; nothing was written"):
        run(progress=stop_at(7, signal.SIGINT))


def test_stopped_before_the_first_step(tmp_path):
    def progress(text: str) -> None:
        if text.startswith("judging"):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 0 of 12; nothing was written"):
        run(tmp_path, progress=progress)
    assert not list(tmp_path.iterdir())


def test_resumed_with_another_number_of_threads(tmp_path, one_thread):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, progress=stop_at(7, signal.SIGINT))
    torch.set_num_threads(2)
    assert "another number of threads" in run(tmp_path, resume=True).notes[0]


# -- refused ---------------------------------------------------------------------------------------


def refused(sentence: str, folder: Path, **given: object) -> None:
    before = (folder / checkpoints.NAME).read_bytes()
    with pytest.raises(InputError, match=re.escape(sentence)):
        run(folder, **given)
    assert (folder / checkpoints.NAME).read_bytes() == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def other_student():
    student = tiny.student()
    with torch.no_grad():
        student.norm.weight[0] += 1e-3
    return student


@pytest.mark.parametrize(
    "name, value, what",
    [
        ("student", other_student(), "of another student"),
        ("teacher", tiny.teacher(seed=1), "of another teacher"),
        ("data", tiny.data(seed=1), "of other data"),
        ("steps", 13, "with steps=12, not 13"),
        ("learning_rate", 1e-3, "with learning_rate=0.005, not 0.001"),
        ("optimizer", "adamw", "with optimizer='muon', not 'adamw'"),
        ("trainable", "mlp", "with trainable=None, not 'mlp'"),
    ],
)
def test_a_checkpoint_of_another_run(name, value, what, finished):
    sentence = (
        f"The distillation in {finished} was begun {what}: give the same as then, or choose another folder."
    )
    refused(sentence, finished, resume=True, **{name: value})


def test_a_checkpoint_in_the_way(finished):
    refused(f"{finished} has a distillation at step 12: resume it, or remove that folder.", finished)


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_no_checkpoint(content, tmp_path, finished):
    whole = (finished / checkpoints.NAME).read_bytes()
    (tmp_path / checkpoints.NAME).write_bytes(whole[: len(whole) // 2] if content is None else content)
    refused("distillation.pt is no checkpoint of this fxfuse", tmp_path, resume=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        run(tmp_path / "file" / "run")


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FxfuseError, match="No space left for"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())
