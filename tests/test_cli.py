"""The command line: exit codes, files, report and screen, in process and as a user runs it."""

import errno
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from fxfuse import cli
from fxfuse.cli import entry
from fxfuse.errors import InputError
from fxfuse.frontends import onnx_file
from tests.small_onnx import save

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ", ".join(entry.COMMANDS)
SCRIPTS = {
    "tool": [sys.executable, str(ROOT / "tools" / "onnx_fuse.py")],
    "module": [sys.executable, "-m", "fxfuse.cli", "fuse"],
    "command": [shutil.which("fxfuse", path=str(Path(sys.executable).parent)) or "fxfuse", "fuse"],
}


@pytest.fixture(autouse=True)
def wide_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are not wrapped, however long the temporary folder's path is."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "m.onnx")


def run(*arguments: object) -> int:
    return cli.main(["fuse", *map(str, arguments), "--provider", "cpu"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def logits(path: Path) -> np.ndarray:
    opened = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return opened.run(["logits"], {"input_ids": np.arange(10).reshape(2, 5)})[0]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("external", [False, True])
def test_the_output_lies_beside_the_model(tmp_path, external):
    path = save(tmp_path / "m.onnx", external=external)
    assert run(path) == 0
    data = ["m.fused.onnx.data", "m.onnx.data"] if external else []
    assert names(tmp_path) == sorted(["m.fused.onnx", "m.onnx", *data])
    assert np.abs(logits(tmp_path / "m.fused.onnx") - logits(path)).max() < 0.5
    assert len(onnx.load(tmp_path / "m.fused.onnx").graph.node) < len(onnx.load(path).graph.node)


def test_the_output_goes_where_it_is_told(tmp_path, model):
    (tmp_path / "out").mkdir()
    assert run(model, "-o", tmp_path / "out" / "x.onnx") == 0
    assert names(tmp_path / "out") == ["x.onnx"]
    assert names(tmp_path) == ["m.onnx", "out"]


@pytest.mark.parametrize("external", [False, True])
def test_force_overwrites_the_input_itself(tmp_path, external):
    path = save(tmp_path / "m.onnx", external=external)
    before, files = logits(path), names(tmp_path)
    assert run(path, "-o", path, "--force") == 0
    assert names(tmp_path) == files
    assert 0 < np.abs(logits(path) - before).max() < 0.5
    assert run(path, "--dry-run") == 3


def test_force_overwrites_an_older_output(tmp_path, model):
    (tmp_path / "m.fused.onnx").write_text("old")
    assert run(model) == 2
    assert run(model, "--force") == 0
    assert onnx.load(tmp_path / "m.fused.onnx").graph.node


def test_a_dry_run_writes_nothing_but_the_report(tmp_path, model, capsys):
    assert run(model, "--dry-run", "--report", tmp_path / "r.json") == 0
    assert names(tmp_path) == ["m.onnx", "r.json"]
    assert "m.fused.onnx was not written" in capsys.readouterr().out
    assert read(tmp_path / "r.json")["groups"]


def test_nothing_to_fuse(tmp_path, capsys):
    path = save(tmp_path / "m.onnx", layers=1)
    assert run(path, "--report", tmp_path / "r.json") == 3
    assert names(tmp_path) == ["m.onnx", "r.json"]
    report = read(tmp_path / "r.json")
    assert (report["chains"], report["groups"], report["output"]) == ([], [], None)
    assert [each["where"] for each in report["misses"]] == ["model.layers.0.mlp"]
    assert "no chain of FFN blocks found" in capsys.readouterr().out


def test_nothing_within_budget(tmp_path, model, capsys):
    assert run(model, "--min-sqnr", 90, "--report", tmp_path / "r.json") == 3
    assert names(tmp_path) == ["m.onnx", "r.json"]
    report = read(tmp_path / "r.json")
    assert [each["length"] for each in report["chains"]] == [3]
    assert report["groups"] == []
    assert "under the budget of 90 dB" in report["misses"][0]["reason"]
    assert "found a chain of 3 FFN blocks; fused none" in capsys.readouterr().out


# -- the report ------------------------------------------------------------------------------------


def test_the_report_holds_what_the_contract_names(tmp_path, model):
    assert run(model, "--report", tmp_path / "r.json", "--max-group", 2) == 0
    report = read(tmp_path / "r.json")
    assert report["model"] == str(model)
    assert report["output"] == str(tmp_path / "m.fused.onnx")
    assert report["inputs"] == "random"
    assert report["error"] is None
    assert report["chains"][0]["length"] == 3
    assert report["chains"][0]["blocks"][2] == {
        "name": "model.layers.2.mlp",
        "norm": "RMSNorm",
        "activation": "silu",
        "gated": True,
        "hidden_size": 16,
        "intermediate_size": 24,
    }
    (group,) = report["groups"]
    assert len(group["blocks"]) == 2
    assert group["intermediate_size"] == 48
    assert 0 <= group["rewrite_error"] < 1e-5
    assert group["sqnr_db"] > 12
    assert 0.9 < group["cosine"] <= 1
    assert {"where", "reason"} == set(report["misses"][0])
    assert report["end_to_end"]["output"] == "logits"
    assert {"onnx", "torch"} <= set(report["versions"])
    assert report["seconds"] > 0


def test_given_inputs_are_measured_on(tmp_path, model, capsys):
    for index in range(2):
        np.savez(tmp_path / f"{index}.npz", input_ids=np.arange(6 + index, dtype=np.int32)[None])
    samples = [word for index in range(2) for word in ("--inputs", tmp_path / f"{index}.npz")]
    assert run(model, *samples, "--report", tmp_path / "r.json") == 0
    report = read(tmp_path / "r.json")
    assert report["inputs"] == "given"
    assert report["end_to_end"]["tokens"] == 13
    assert "random" not in capsys.readouterr().out


def test_the_seed_decides_the_drawn_inputs(tmp_path, model):
    found = []
    for seed in (0, 0, 1):
        assert run(model, "--seed", seed, "--dry-run", "--report", tmp_path / "r.json") == 0
        found.append(read(tmp_path / "r.json")["groups"][0]["sqnr_db"])
    assert found[0] == found[1] != found[2]


def test_include_and_exclude_choose_blocks(tmp_path, model):
    assert run(model, "--include", "layers", "--exclude", r"\.0\.", "--report", tmp_path / "r.json") == 0
    report = read(tmp_path / "r.json")
    assert [each["blocks"] for each in report["groups"]] == [["model.layers.1.mlp", "model.layers.2.mlp"]]
    assert report["misses"][0]["where"] == "model.layers.0.mlp"


def test_the_report_tells_an_error_too(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert run(tmp_path / "m.onnx", "--report", tmp_path / "r.json") == 2
    report = read(tmp_path / "r.json")
    assert "is not an ONNX model" in report["error"]
    assert (report["chains"], report["groups"], report["output"]) == ([], [], None)


# -- what fails on the way -------------------------------------------------------------------------


def wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    written = onnx_file.written

    def wrong(*arguments: Any, **more: Any) -> Any:
        stored = written(*arguments, **more)
        stored.tensors["down"].mul_(1.01)
        return stored

    monkeypatch.setattr(onnx_file, "written", wrong)


def test_a_wrong_fold_is_caught_and_not_written(tmp_path, model, monkeypatch, capsys):
    wrong_fold(monkeypatch)
    assert run(model, "--no-budget", "--report", tmp_path / "r.json") == 1
    assert names(tmp_path) == ["m.onnx", "r.json"]
    report = read(tmp_path / "r.json")
    assert "differs from the parallel sum" in report["error"]
    assert (report["groups"], report["output"], report["end_to_end"]) == ([], None, {})
    assert [each["length"] for each in report["chains"]] == [3]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fxfuse: error: The wide FFN of model.layers.0-2.mlp differs")
    assert err.count("\n") == 1


def test_a_rewritten_model_that_does_not_load_is_not_written(tmp_path, model, monkeypatch, capsys):
    splice = onnx_file.splice

    def broken(*arguments: Any) -> onnx.ModelProto:
        made = splice(*arguments)
        made.graph.node[-1].op_type = "Gizmo"
        return made

    monkeypatch.setattr(onnx_file, "splice", broken)
    assert run(model) == 1
    assert names(tmp_path) == ["m.onnx"]
    assert "The rewritten model does not run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("max_kl must be a number or None.", "--max-kl must be a number."),
        ("include='[' is no pattern.", "--include='[' is no pattern."),
        ("Nothing fits: lower min_sqnr.", "Nothing fits: lower --min-sqnr."),
        ("max_group_bytes must be at least 1 or None.", "--max-group-memory must be at least 1."),
        ("There is no file a/max_kl.json to include.", "There is no file a/max_kl.json to include."),
        (
            "It exists: choose another output or force it.",
            "It exists: choose another output or give --force.",
        ),
        ("Finish it, or give resume=False to go on.", "Finish it, or give --restart to go on."),
        ("Give out, or dry_run=True.", "Give out, or --dry-run."),
        ("There is no input a/dry_run=True.", "There is no input a/dry_run=True."),
        ("The model has no input 'max_kl'.", "The model has no input 'max_kl'."),
    ],
)
def test_options_are_told_as_they_are_typed(sentence, told):
    assert entry.explain(InputError(sentence)) == (2, told)


@pytest.mark.parametrize(
    ("stop", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted: nothing was written"),
        (MemoryError(), 1, "There is not enough memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "No space left for"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), 1, "Input/output error"),
        (RuntimeError("boom\nmore"), 1, "internal error (RuntimeError: boom): run with --debug"),
        (RuntimeError(), 1, "internal error (RuntimeError): run with --debug"),
    ],
)
def test_a_stop_in_the_middle_leaves_nothing(tmp_path, monkeypatch, capsys, stop, code, message):
    path = save(tmp_path / "m.onnx", external=True)
    write = onnx_file.write_model

    def stopped(*arguments: Any) -> None:
        write(*arguments)
        raise stop

    monkeypatch.setattr(onnx_file, "write_model", stopped)
    assert run(path, "--report", tmp_path / "r.json") == code
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "r.json"]
    report = read(tmp_path / "r.json")
    assert message in report["error"]
    assert (report["groups"], report["output"]) == ([], None)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fxfuse: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_debug_shows_the_traceback_and_keeps_the_exit_code(tmp_path, capsys):
    assert run(tmp_path / "gone.onnx", "--debug") == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("fxfuse: error: There is no model file")


def test_the_signal_handlers_are_put_back(model):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    assert run(model, "--dry-run") == 0
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before


def test_bad_arguments_return_their_code_and_help_prints(capsys):
    assert cli.main(["fuse"]) == 2
    assert cli.main(["fuse", "--help"]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("fxfuse: error: the following arguments are required: MODEL (fxfuse fuse")
    assert err.count("\n") == 1
    assert "exit codes: 0 written" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], f"give a command: {COMMANDS}"),
        (["m.onnx"], "give a command first, as in: fxfuse fuse m.onnx"),
        (["--force", "my model.onnx"], "give a command first, as in: fxfuse fuse --force 'my model.onnx'"),
        (["inspekt", "m.onnx"], "there is no command 'inspekt': did you mean inspect?"),
        (["melt"], f"there is no command 'melt': choose from {COMMANDS}"),
    ],
)
def test_a_command_is_asked_for(words, sentence, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"fxfuse: error: {sentence} (fxfuse --help lists the arguments)\n"


@pytest.mark.parametrize("command", COMMANDS.split(", "))
def test_every_command_has_help(command, capsys):
    assert cli.main(["--help"]) == 0
    assert command in capsys.readouterr().out
    assert cli.main([command, "--help"]) == 0
    assert f"usage: fxfuse {command}" in capsys.readouterr().out


def test_split_undoes_fuse(tmp_path, model, capsys):
    assert run(model) == 0
    assert cli.main(["split", str(tmp_path / "m.fused.onnx"), "-o", str(tmp_path / "back.onnx")]) == 0
    assert np.abs(logits(tmp_path / "back.onnx") - logits(model)).max() < 1e-4
    out = capsys.readouterr().out
    assert "; their sum differs by" in out
    assert f"written to {tmp_path / 'back.onnx'}" in out
    assert cli.main(["split", str(model)]) == 3
    assert "nothing was written" in capsys.readouterr().out


def test_names_of_any_kind(tmp_path, capsys):
    path = save(tmp_path / "mödel [bold] 1.onnx")
    assert run(path, "--report", tmp_path / "r.json") == 0
    assert "mödel [bold] 1.fused.onnx" in names(tmp_path)
    assert str(tmp_path / "mödel [bold] 1.onnx") in capsys.readouterr().out.replace("\n", "")


# -- as a user runs it -----------------------------------------------------------------------------


def shell(
    words: list[str], folder: Path, columns: int | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment
    settings.pop("COLUMNS", None)
    if columns is not None:
        settings["COLUMNS"] = str(columns)
    return subprocess.run(words, cwd=folder, env=settings, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_way_to_start_it(tmp_path, model, name):
    if name == "command" and not Path(SCRIPTS[name][0]).is_file():
        pytest.skip("the package is not installed")
    done = shell([*SCRIPTS[name], "m.onnx", "--provider", "cpu"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "m.onnx: found a chain of 3 FFN blocks; fused 3 into 1 wide FFN"
    assert re.fullmatch(r"output: m\.fused\.onnx \(\d+\.\d s\)", lines[-1])
    assert names(tmp_path) == ["m.fused.onnx", "m.onnx"]


def test_an_error_in_a_shell(tmp_path):
    done = shell([*SCRIPTS["tool"], "gone.onnx"], tmp_path)
    expected = "fxfuse: error: There is no model file gone.onnx: check the path.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


@pytest.mark.parametrize("columns", [60, 160])
def test_the_width_is_that_of_columns(tmp_path, model, columns):
    done = shell([*SCRIPTS["tool"], "m.onnx", "--provider", "cpu", "--dry-run"], tmp_path, columns)
    assert max(map(len, done.stdout.splitlines())) <= columns
    ends = [line for line in done.stdout.splitlines() if line.startswith("end to end")]
    assert ends[0].endswith("nats/token,") == (columns == 60)
    assert not any(line != line.rstrip() for line in done.stdout.splitlines())


def test_auto_says_in_one_line_that_it_runs_on_the_cpu(tmp_path, model):
    done = shell([*SCRIPTS["tool"], "m.onnx", "--dry-run"], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    assert re.fullmatch(
        r"fxfuse: CUDA execution provider is not available \(.+\); running on CPU\n", done.stderr
    )


def test_a_name_that_the_screen_cannot_show_is_no_error(tmp_path):
    save(tmp_path / "mödel.onnx")
    words = [*SCRIPTS["tool"], "mödel.onnx", "--provider", "cpu", "--dry-run"]
    done = shell(words, tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"m\xf6del.onnx: found")


def test_a_reader_that_leaves_is_no_error(tmp_path, model):
    words = [*SCRIPTS["tool"], "m.onnx", "--provider", "cpu"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        words, cwd=tmp_path, env=settings, stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["m.fused.onnx", "m.onnx"]


def test_a_disk_that_fills_up(tmp_path):
    """The limit on a file's size fails a write as a full disk does."""
    path = save(tmp_path / "m.onnx", external=True)
    limit = (tmp_path / "m.onnx.data").stat().st_size // 2

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [*SCRIPTS["tool"], path, "--provider", "cpu", "--report", "r.json"]
    done = subprocess.run(
        words, cwd=tmp_path, env=settings, preexec_fn=limited, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"fxfuse: error: No space left for .+\n", done.stderr)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "r.json"]
    assert "No space left" in read(tmp_path / "r.json")["error"]


SLOW = """
import sys, time
from fxfuse import cli
from fxfuse.frontends import onnx_file
write = onnx_file.write_model
def slow(*arguments):
    result = write(*arguments)
    print("writing", flush=True)
    time.sleep(60)
    return result
onnx_file.write_model = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("sent", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_leaves_nothing(tmp_path, model, sent, code, word):
    words = [sys.executable, "-c", SLOW, "fuse", "m.onnx", "--provider", "cpu", "--report", "r.json"]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        words, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "writing\n"
    assert any("partial" in name for name in names(tmp_path))
    started.send_signal(sent)
    _, err = started.communicate(timeout=30)
    assert (started.returncode, err) == (code, f"fxfuse: error: {word}: nothing was written\n")
    assert names(tmp_path) == ["m.onnx", "r.json"]
    assert read(tmp_path / "r.json")["error"] == f"{word}: nothing was written"


def terminal(words: list[str], folder: Path, columns: int) -> tuple[int, str]:
    """Run on a pseudo-terminal; gives the exit code and all that was sent to the screen."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(folder)
        settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": str(columns)}
        os.execve(words[0], words, os.environ | settings)
    shown, until = b"", time.monotonic() + 60
    while time.monotonic() < until and select.select([screen], [], [], 60)[0]:
        try:
            piece = os.read(screen, 1 << 16)
        except OSError:  # Linux says so at the end
            break
        if not piece:
            break
        shown += piece
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def left_on(screen: str) -> list[str]:
    """The lines that are left when every escape sequence is obeyed."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|.", screen, flags=re.DOTALL):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A") and token.startswith("\x1b"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token.endswith("2K"):
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + 1 :]
            column += 1
    return lines


def test_a_terminal_shows_the_steps_and_keeps_the_table(tmp_path, model):
    code, shown = terminal([*SCRIPTS["tool"], "m.onnx", "--provider", "cpu"], tmp_path, 100)
    assert code == 0
    assert "starting" in shown
    left = [line.rstrip() for line in left_on(shown)]
    assert left[0] == "m.onnx: found a chain of 3 FFN blocks; fused 3 into 1 wide FFN"
    assert left[-2].startswith("output: m.fused.onnx (")
    assert not any("starting" in line or "verifying" in line for line in left)


def test_a_terminal_shows_an_error_alone(tmp_path):
    code, shown = terminal([*SCRIPTS["tool"], "gone.onnx"], tmp_path, 100)
    assert code == 2
    left = [line.rstrip() for line in left_on(shown) if line.strip()]
    assert left == ["fxfuse: error: There is no model file gone.onnx: check the path."]


def test_help_and_version_do_not_wait_for_torch(tmp_path):
    code = "import sys; from fxfuse import cli; cli.main(['--version']); print('torch' in sys.modules)"
    done = shell([sys.executable, "-c", code], tmp_path)
    assert done.stdout.splitlines()[-1] == "False"
