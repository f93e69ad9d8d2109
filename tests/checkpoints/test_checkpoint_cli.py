"""`fxfuse checkpoint`, and `fxfuse split` of a folder: exit codes, words, what is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fxfuse import cli
from fxfuse.checkpoints import api, split
from tests.checkpoints.drawn import drawn
from tests.checkpoints.hand import contents

ROOT = Path(__file__).resolve().parents[2]


def run(*words: object) -> int:
    return cli.main(list(map(str, words)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return drawn(tmp_path / "in", same_gains=True)


def test_fuses_and_splits(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("checkpoint", source, out, "--groups", "1-2,3-4", "--shard-size", "20kB") == 0
    told = capsys.readouterr().out
    assert "4 FFNs in 2 groups, 6 layers became 4, written as per_layer_config" in told
    assert "fusion loss: not measured (these groups come from no plan)\n" in told
    assert told.endswith(f"written to {out}\n")
    assert run("split", out, "-o", tmp_path / "back") == 0
    told = capsys.readouterr().out
    assert "4 layers became 6 as before fusing; " in told
    assert "tensors moved as they are, 0 back to rounding\n" in told
    assert "bit for bit" not in told
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_dry_run(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("checkpoint", source, "--auto", "--max-group", 2, "--dry-run") == 0
    assert capsys.readouterr().out.endswith("nothing was written\n")
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["--auto"], "Nothing says where to write: give OUT, the folder to make, or --dry-run."),
        (["OUT"], "one of the arguments --plan --groups --auto is required"),
        (["OUT", "--auto", "--groups", "1-2"], "not allowed with argument"),
        (["OUT", "--auto", "--shard-size", "big"], "'big' is no size: write one such as 500MB"),
        (["OUT", "--auto", "--shard-size", "0"], "--shard-size is 0: give a number of bytes, such as 5 GB."),
        (["OUT", "--groups", "1-2", "--max-group", "2"], "--max-group cuts the runs of auto"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, source: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    assert run("checkpoint", source, *given) == 2
    assert told in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in"]


def test_output_that_is_not_empty(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    assert run("checkpoint", source, tmp_path / "out", "--auto") == 2
    assert "is not empty: choose another folder or give --force." in capsys.readouterr().err
    assert run("checkpoint", source, tmp_path / "out", "--auto", "--force") == 2
    assert "out holds no config.json, so it is not replaced" in capsys.readouterr().err
    (tmp_path / "out" / "config.json").touch()
    assert run("checkpoint", source, tmp_path / "out", "--auto", "--force") == 0
    assert not (tmp_path / "out" / "old").exists()


def test_folder_has_no_parallel_form(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("split", source, "--parallel") == 2
    assert "no place for blocks side by side: split it without --parallel." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["checkpoint", "split"])
def test_interrupted(
    source: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "fuse_checkpoint", stop)
    monkeypatch.setattr(split, "split_checkpoint", stop)
    words = [source, "OUT", "--auto"] if command == "checkpoint" else [source]
    assert run(command, *words) == 130
    assert "interrupted: the same command goes on where it was" in capsys.readouterr().err


def test_restart_after_another_run(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "fxfuse.checkpoints.filling.copy_bytes", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
        )
        assert run("checkpoint", source, tmp_path / "out", "--auto") == 143
    assert sorted(os.listdir(tmp_path)) == [".out.fxfuse-journal", ".out.fxfuse-partial", "in"]
    assert run("checkpoint", source, tmp_path / "out", "--groups", "1-2") == 2
    assert "is what another run left, and the arguments differ" in capsys.readouterr().err
    assert run("checkpoint", source, tmp_path / "out", "--groups", "1-2", "--restart") == 0
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_killed_as_a_user_runs_it(tmp_path: Path) -> None:
    """SIGKILL while it writes: nothing at the place, then the bytes of an undisturbed run."""
    source = drawn(tmp_path / "in", hidden_size=512, intermediate_size=4096, vocab_size=4000)
    out, words = tmp_path / "out", [sys.executable, "-m", "fxfuse.cli", "checkpoint", source]
    process = subprocess.Popen([*words, out, "--auto"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / ".out.fxfuse-partial").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert run("checkpoint", source, out, "--auto") == 0
    assert run("checkpoint", source, tmp_path / "undisturbed", "--auto") == 0
    assert contents(out) == contents(tmp_path / "undisturbed")
