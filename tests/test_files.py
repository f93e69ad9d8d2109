"""Output appears whole or not at all, whatever happens while it is written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fxfuse import disks, files
from fxfuse.errors import FxfuseError, InputError
from fxfuse.files import stage


def write(target: Path, text: str = "new", **options) -> None:
    with stage(target, **options) as staging:
        staging.path(target.name).write_text(f"{text} model")
        staging.path(f"{target.name}.data").write_text(f"{text} data")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


OLD = {"m.onnx": "old model", "m.onnx.data": "old data"}
NEW = {"m.onnx": "new model", "m.onnx.data": "new data"}


# -- what appears ----------------------------------------------------------------------------------


def test_nothing_is_there_before_the_end_and_all_of_it_after(tmp_path):
    with stage(tmp_path / "m.onnx") as staging:
        staging.path("m.onnx").write_text("new model")
        (staging.folder / "m.onnx.data").write_text("new data")  # a writer that places its data itself
        assert [path for path in tmp_path.iterdir() if path != staging.folder] == []
    assert contents(tmp_path) == NEW


def test_the_model_is_renamed_last(tmp_path, monkeypatch):
    places = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (places.append(Path(b).name), replace(a, b)))
    write(tmp_path / "m.onnx")
    assert places == ["m.onnx.data", "m.onnx"]


def test_every_file_and_both_folders_are_synced(tmp_path, monkeypatch):
    synced = []
    sync = files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path.name), sync(path)))
    write(tmp_path / "m.onnx")
    assert synced[:2] == ["m.onnx.data", "m.onnx"]
    assert synced[2].startswith(".m.onnx.fxfuse-partial-")
    assert synced[3] == tmp_path.name


@pytest.mark.parametrize("stop", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_leaves_nothing_behind(tmp_path, stop):
    def broken() -> None:
        with stage(tmp_path / "m.onnx") as staging:
            staging.path("m.onnx").write_text("half")
            raise stop

    with pytest.raises(type(stop)):
        broken()
    assert contents(tmp_path) == {}


def test_a_model_that_was_never_written_is_an_error(tmp_path):
    with pytest.raises(FxfuseError, match=r"m\.onnx was not written"), stage(tmp_path / "m.onnx") as staging:
        staging.path("m.onnx.data").write_text("data")
    assert contents(tmp_path) == {}


def test_a_name_with_a_folder_in_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="plain file name"), stage(tmp_path / "m.onnx") as staging:
        staging.path("../m.onnx.data")


# -- what is there already -------------------------------------------------------------------------


@pytest.mark.parametrize("there", ["m.onnx", "m.onnx.data"])
def test_an_existing_file_is_not_replaced(tmp_path, there):
    (tmp_path / there).write_text("old")
    with pytest.raises(InputError, match=rf"{there} exists already: choose another output"):
        write(tmp_path / "m.onnx")
    assert contents(tmp_path) == {there: "old"}


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(InputError, match="exists already"), stage(tmp_path / "m.onnx") as staging:
        staging.path("m.onnx").write_text("new")
        (tmp_path / "m.onnx").write_text("theirs")
    assert contents(tmp_path) == {"m.onnx": "theirs"}


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_input_is_not_the_output(tmp_path, link):
    source = output = tmp_path / "m.onnx"
    source.write_text("old")
    if link is not None:
        output = tmp_path / "other.onnx"
        link(source, output)
    with pytest.raises(InputError, match=r"is the input .*m\.onnx: choose another output"):
        write(output, inputs=[source])
    assert source.read_text() == "old"


def test_the_data_of_the_input_are_not_replaced(tmp_path):
    data = tmp_path / "out.onnx.data"
    data.write_text("old")
    with pytest.raises(InputError, match=r"out\.onnx\.data is the input"):
        write(tmp_path / "out.onnx", inputs=[tmp_path / "in.onnx", data])
    assert data.read_text() == "old"


@pytest.mark.parametrize("old", [OLD, {"m.onnx": "old model"}, {"m.onnx.data": "old data"}])
def test_force_replaces_the_input_too(tmp_path, old):
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    write(tmp_path / "m.onnx", inputs=[tmp_path / "m.onnx"], force=True)
    assert contents(tmp_path) == NEW


@pytest.mark.parametrize("old", [OLD, {"m.onnx": "old model"}, {"m.onnx.data": "old data"}, {}])
@pytest.mark.parametrize("failing", range(4))
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("stop", [OSError(errno.EIO, "broken disk"), KeyboardInterrupt()])
def test_a_move_that_fails_puts_the_old_files_back(tmp_path, monkeypatch, old, failing, after, stop):
    """Interrupted before or after any of the renames, either all is old or all is new."""
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    calls = []
    replace = os.replace

    def fail(source, place):
        calls.append(place)
        stopping = len(calls) == failing + 1
        if not stopping or after:
            replace(source, place)
        if stopping:
            raise stop

    monkeypatch.setattr(os, "replace", fail)
    try:
        write(tmp_path / "m.onnx", force=True)
    except type(stop):
        last = after and Path(calls[failing]) == tmp_path / "m.onnx"
        assert contents(tmp_path) == (NEW if last else old)
    else:
        assert len(calls) <= failing
        assert contents(tmp_path) == NEW


def test_old_files_that_cannot_be_put_back_are_kept(tmp_path, monkeypatch):
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    calls = []
    replace = os.replace

    def fail(source, place):
        calls.append(place)
        if len(calls) > 2:
            raise OSError(errno.EIO, "broken disk")
        replace(source, place)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="broken disk"):
        write(tmp_path / "m.onnx", force=True)
    (partial,) = tmp_path.iterdir()
    assert contents(partial / ".replaced") == OLD


# -- what the disk refuses -------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_is_told_in_one_sentence(tmp_path, monkeypatch, code, call):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    told = r"No space left for .* mounted at /.*12 bytes needed, .* free"
    with pytest.raises(FxfuseError, match=told), stage(tmp_path / "m.onnx", needed=12) as staging:
        staging.path("m.onnx").write_text("new")
        if call == "write":
            fail()
        monkeypatch.setattr(os, call, fail)
    monkeypatch.undo()
    assert contents(tmp_path) == {}


def test_a_disk_that_is_mounted_where_it_is_written(monkeypatch):
    monkeypatch.setattr(disks.shutil, "disk_usage", lambda _: SimpleNamespace(total=10, free=3))
    with pytest.raises(FxfuseError, match=r"No space left for / on the disk mounted there \(about 7 bytes"):
        disks.check_space(Path("/"), 7)


def test_what_cannot_fit_is_not_begun(tmp_path):
    with pytest.raises(FxfuseError, match=r"about 1000000000\.0 GB needed"):
        write(tmp_path / "m.onnx", needed=10**18)
    assert contents(tmp_path) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_device_that_is_always_full(tmp_path):
    with pytest.raises(FxfuseError, match="No space left"), stage(tmp_path / "m.onnx") as staging:
        staging.path("m.onnx").symlink_to("/dev/full")
        staging.path("m.onnx").write_bytes(b"x" * 100)
    assert contents(tmp_path) == {}


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from fxfuse.errors import FxfuseError
from fxfuse.files import stage
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with stage(sys.argv[1]) as staging:
        staging.path("m.onnx").write_text("model")
        path = staging.path("m.onnx.data")
        data = np.zeros(1_000_000, np.uint8)
        data.tofile(path) if sys.argv[2] == "numpy" else path.write_bytes(data.tobytes())
except FxfuseError as error:
    sys.exit(f"told: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
@pytest.mark.parametrize("writer", ["numpy", "python"])
def test_a_write_cut_short_by_the_system(tmp_path, writer):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "m.onnx"), writer]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.startswith("told: No space left for")
    assert contents(tmp_path) == {}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist: create it"):
        write(tmp_path / "nowhere" / "m.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder: choose another output"):
        write(tmp_path / "file" / "m.onnx")


def test_a_folder_as_target_is_named(tmp_path):
    with pytest.raises(InputError, match="is a folder: give the name of a file"):
        write(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, code):
    def refuse(**_):
        raise OSError(code, os.strerror(code), str(tmp_path))

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    with pytest.raises(InputError, match=r"cannot be written \((permission denied|read-only file system)\)"):
        write(tmp_path / "m.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "m.onnx")
    tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_file_system_that_takes_no_files_is_named():
    with pytest.raises(InputError, match="The folder /proc cannot be written"):
        write(Path("/proc/m.onnx"))


def test_an_error_about_another_file_is_left_alone(tmp_path):
    with pytest.raises(PermissionError), stage(tmp_path / "m.onnx"):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / "input.onnx"))


def test_a_writer_that_tells_a_full_disk_in_words(tmp_path):
    with pytest.raises(FxfuseError, match="No space left for"), stage(tmp_path / "m.onnx"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (1500, "1.5 kB"), (2 * 10**9, "2.0 GB")])
def test_sizes_are_readable(count, text):
    assert disks.size_words(count) == text


# -- killed ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import fxfuse.files as files
replace, left = os.replace, [int(sys.argv[2])]
def kill(source, place):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    replace(source, place)
os.replace = kill
with files.stage(sys.argv[1], force=True) as staging:
    staging.path("m.onnx").write_text("new model")
    staging.path("m.onnx.data").write_text("new data")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("moves", range(4))
def test_a_killed_process_leaves_no_mixture(tmp_path, moves):
    """Old and new never stand beside each other; what is left over is clearly named."""
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "m.onnx"), str(moves)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"m.onnx", "m.onnx.data"} == {
        name for name in left if name.startswith(".m.onnx.fxfuse-partial-")
    }
    assert ("m.onnx" in left) == (moves == 0)


def test_an_error_without_a_number_is_left_alone(tmp_path):
    with pytest.raises(OSError, match="something else"), stage(tmp_path / "m.onnx") as staging:
        staging.path("m.onnx").write_text("new")
        raise OSError("something else")
