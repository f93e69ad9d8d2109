"""A folder is written whole or not at all, and what a killed run did is not done again."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fxfuse.checkpoints import copying, pieces, syncing
from fxfuse.checkpoints.records import Copy, OutputTensor, Part, Stacked
from fxfuse.checkpoints.shards import cut
from fxfuse.checkpoints.sidefiles import side_files
from fxfuse.checkpoints.tensors import Tensors
from fxfuse.checkpoints.writing import Content, write
from fxfuse.errors import FxfuseError, InputError, VerificationError
from tests.checkpoints.hand import contents, draw, folder_of

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = [{f"w{n}": draw(20, 16, seed=n) for n in (0, 1)}, {f"w{n}": draw(20, 16, seed=n) for n in (2, 3)}]


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces in a tensor, and the disk is asked after some of them."""
    monkeypatch.setattr(pieces, "_BAND", 512)
    monkeypatch.setattr(pieces, "_SPAN", 300)
    monkeypatch.setattr(syncing, "_STEP", 700)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = folder_of(tmp_path / "source", *WEIGHTS)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer.json").chmod(0o440)
    return folder


def content_of(source: Path, **arguments: Any) -> Content:
    """Spans, folded bands and parts side by side, in three files."""
    tensors = Tensors(source)
    made = [
        OutputTensor("copied", "F32", (20, 16), Copy("w0")),
        OutputTensor("scaled", "F32", (20, 16), Copy("w1", factor=0.3)),
        OutputTensor("wide", "F32", (20, 32), Stacked(((Part("w2"), Part("w3")),), 1)),
    ]
    texts = {"config.json": "{}\n"}
    return Content(tensors, cut(made, 1), texts, side_files(source, tensors.files)[0], arguments)


class Stop(BaseException):
    """A kill that a test survives."""


def stop_after(count: int) -> Callable[[str], None]:
    steps = iter(range(count))

    def progress(_: str) -> None:
        if next(steps, None) is None:
            raise Stop

    return progress


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress tells every piece."""
    monkeypatch.setattr("fxfuse.progress._INTERVAL", 0.0)


def test_what_is_written(tmp_path: Path, source: Path) -> None:
    assert not write(content_of(source), tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "config.json", *(f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    found = Tensors(tmp_path / "out")
    weights = WEIGHTS[0] | WEIGHTS[1]
    assert torch.equal(found.read("copied"), weights["w0"])
    assert torch.equal(found.read("scaled"), (weights["w1"].double() * 0.3).float())
    assert torch.equal(found.read("wide"), torch.cat([weights["w2"], weights["w3"]], 1))
    assert set(load_file(tmp_path / "out" / "model-00003-of-00003.safetensors")) == {"wide"}
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]
    assert os.stat(tmp_path / "out" / "tokenizer.json").st_mode & 0o777 == 0o640


def test_without_copies_in_the_system(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other file systems, sandboxes and machines have no copy_file_range."""
    write(content_of(source), tmp_path / "one")

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    write(content_of(source), tmp_path / "two")
    monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    write(content_of(source), tmp_path / "three")
    monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(copying, "_STEP", 100)
    write(content_of(source), tmp_path / "four")
    written = [contents(tmp_path / name) for name in ("one", "two", "three", "four")]
    assert all(each == written[0] for each in written)


@pytest.mark.usefixtures("eager")
def test_stopped_at_every_step_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, source: Path) -> None:
    write(content_of(source), tmp_path / "undisturbed")
    expected, out, count, resumed = contents(tmp_path / "undisturbed"), tmp_path / "out", 1, 0
    while True:
        try:
            resumed += write(content_of(source), out, progress=stop_after(count))
        except Stop:
            assert not out.exists()
            count += 1
            continue
        break
    assert resumed == 1
    assert contents(out) == expected
    assert sorted(os.listdir(tmp_path)) == ["out", "source", "undisturbed"]


@pytest.mark.usefixtures("eager")
def test_what_is_on_the_disk_is_not_written_again(tmp_path: Path, source: Path) -> None:
    told: list[Any] = []
    with pytest.raises(Stop):
        write(content_of(source), tmp_path / "out", progress=stop_after(12))
    write(content_of(source), tmp_path / "out", progress=told.append)
    total = told[0].total
    assert total / 3 < told[0].done < total
    assert str(told[0]) == f"writing: {told[0].done / 1000:.1f} kB of {total / 1000:.1f} kB"


@pytest.mark.usefixtures("eager")
def test_files_that_are_gone_or_short_are_written_again(tmp_path: Path, source: Path) -> None:
    write(content_of(source), tmp_path / "undisturbed")
    with pytest.raises(Stop):
        write(content_of(source), tmp_path / "out", progress=stop_after(12))
    partial = tmp_path / ".out.fxfuse-partial"
    os.truncate(partial / "model-00001-of-00003.safetensors", 10)
    (partial / "model-00002-of-00003.safetensors").unlink()
    assert write(content_of(source), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.usefixtures("eager")
def test_leftovers_of_another_run_are_not_mixed_in(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        write(content_of(source, groups="1-2"), out, progress=stop_after(12))
    with pytest.raises(InputError, match="the arguments differ: finish that one, or give resume=False"):
        write(content_of(source, groups="1-3"), out)
    os.utime(source / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="the source's files differ"):
        write(content_of(source, groups="1-2"), out)
    assert not write(content_of(source, groups="1-3"), out, resume=False)
    write(content_of(source), tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


KILLED = """
import itertools, os, shutil, signal, sys
from pathlib import Path
sys.path[0] = {root!r}
import torch
from fxfuse.checkpoints import pieces, syncing
from tests.checkpoints.test_writing import content_of, write
torch.set_num_threads(1)
pieces._BAND, pieces._SPAN, syncing._STEP = 2048, 1000, 3000

def run(source, out, force, kill_at):
    calls = itertools.count()
    def counted(call):
        def wrapped(*arguments, **more):
            if next(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)
        return wrapped
    os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
    for name in "pwrite copy_file_range write fsync ftruncate truncate rename rmdir unlink".split():
        setattr(os, name, counted(getattr(os, name)))
    write(content_of(source), out, force=force)

def child(*arguments):
    pid = os.fork()
    if not pid:
        try:
            run(*arguments)
            os._exit(0)
        except BaseException as error:
            os.dup2(1, 2)
            print(type(error), error, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

source, expected, work = map(Path, sys.argv[1:])
def files(folder):
    return {{each.relative_to(folder): each.read_bytes() for each in folder.rglob("*") if each.is_file()}}
assert child(source, expected, False, -1) == 0
for force in (False, True):
    for kill_at in itertools.count():
        work.mkdir()
        out = work / "out"
        if force:
            out.mkdir()
            (out / "config.json").touch()
        ended = child(source, out, force, kill_at)
        whole = out.exists() and files(out) == files(expected)
        old = out.exists() and os.listdir(out) == ["config.json"]
        aside = (work / ".out.fxfuse-replaced" / "config.json").exists()
        assert whole or (old or aside if force else not out.exists()), (kill_at, os.listdir(work))
        if ended:
            assert ended == -signal.SIGKILL, ended
            again = child(source, out, force, -1)
            assert again == 0, (kill_at, again)
        assert files(out) == files(expected), kill_at
        assert os.listdir(work) == ["out"], kill_at
        shutil.rmtree(work)
        if not ended:
            break
    print(kill_at)
"""


def test_killed_before_every_call_to_the_system(tmp_path: Path, source: Path) -> None:
    """SIGKILL before each write, sync and rename: what was is there, or what will be; then the same bytes."""
    words = [sys.executable, "-c", KILLED.format(root=str(ROOT)), source, tmp_path / "one", tmp_path / "work"]
    ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [int(count) > 30 for count in ran.stdout.split()] == [True, True], ran.stdout


def test_run_that_had_only_to_clean_up(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("fxfuse.checkpoints.destination.Destination.clean_up", stop_after(0))
        with pytest.raises(Stop):
            write(content_of(source), out)
    assert (tmp_path / ".out.fxfuse-journal").exists()
    assert write(content_of(source), out)
    assert sorted(os.listdir(tmp_path)) == ["out", "source"]
    with pytest.raises(InputError, match="is not empty"):
        write(content_of(source), out)


@pytest.fixture(params=["nothing", "old"])
def state(request: pytest.FixtureRequest, tmp_path: Path, source: Path) -> Iterator[Path]:
    """OUT, which must be as it was when the test is over."""
    out = tmp_path / "out"
    if request.param == "old":
        out.mkdir()
        (out / "config.json").touch()
    before = contents(tmp_path), sorted(os.listdir(tmp_path))
    yield out
    assert (contents(tmp_path), sorted(os.listdir(tmp_path))) == before


def test_full_disk_leaves_the_old_state(state: Path, source: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(
            FxfuseError, match="No space left for .* free some or choose an output on another"
        ):
            write(content_of(source), state, force=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_disk_that_fills_in_the_background(
    state: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file system finds out when it is to bring bytes to the disk."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(syncing, "os", SimpleNamespace(fsync=full))
    with pytest.raises(FxfuseError, match="No space left"):
        write(content_of(source), state, force=True)


def test_disk_that_is_too_small_is_told_first(
    state: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**6, free=3000))
    with pytest.raises(FxfuseError, match=r"about 5\.\d kB needed, 3\.0 kB free"):
        write(content_of(source), state, force=True)


def test_judge_that_refuses_leaves_the_old_state(state: Path, source: Path) -> None:
    def judge(folder: Path) -> None:
        assert (folder / "model.safetensors.index.json").exists()
        raise VerificationError("no")

    with pytest.raises(VerificationError, match="no"):
        write(content_of(source), state, force=True, judge=judge)


@pytest.mark.usefixtures("eager")
def test_source_that_changes_meanwhile(tmp_path: Path, source: Path) -> None:
    touched: list[str] = []

    def progress(text: str) -> None:
        if not touched:
            os.utime(source / "model-00001-of-00002.safetensors")
        touched.append(text)

    with pytest.raises(FxfuseError, match="source was changed while it was read: start again"):
        write(content_of(source), tmp_path / "out", progress=progress)
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("in_system", [True, False])
def test_source_that_is_cut_short_meanwhile(
    tmp_path: Path, source: Path, in_system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_system:
        monkeypatch.delattr(os, "copy_file_range")
    content = content_of(source)
    file = source / "model-00001-of-00002.safetensors"

    def progress(text: str) -> None:
        os.truncate(file, 500)

    with pytest.raises(InputError, match="cut short while it was read: copy the checkpoint anew"):
        write(content, tmp_path / "out", progress=progress)
    assert os.listdir(tmp_path) == ["source"]


def test_folder_that_cannot_be_written(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.open

    def refuse(path: Path, *words: Any) -> int:
        if path.name == ".out.fxfuse-journal":
            raise PermissionError(errno.EACCES, "Permission denied")
        return there(path, *words)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"The folder .* cannot be written \(permission denied\): choose"):
        write(content_of(source), tmp_path / "out")


def test_file_that_cannot_be_read_is_told_before_the_weights_are_written(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, told = content_of(source), []
    (source / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        write(content, tmp_path / "out", progress=told.append)
    assert told == []
    assert os.listdir(tmp_path) == ["source"]


def test_error_of_another_kind_is_passed_on_and_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fxfuse.checkpoints.filling.copy_bytes", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write(content_of(source), tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]
