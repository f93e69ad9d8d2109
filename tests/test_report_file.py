"""The report appears whole, and never in the place of something else."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from fxfuse.errors import FxfuseError, InputError
from fxfuse.report import Report
from fxfuse.report_file import check_report_place, write_report


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_report_is_written_and_read_back(tmp_path):
    write_report(tmp_path / "r.json", Report("m.onnx"))
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["model"] == "m.onnx"
    assert "torch" in told["versions"]
    assert names(tmp_path) == ["r.json"]


def test_the_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_report(tmp_path / "r.json", Report("m.onnx"))
    finally:
        os.umask(before)
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("old", ["", "{}", '{"model": "older"}'])
def test_an_older_report_is_replaced(tmp_path, old):
    path = tmp_path / "r.json"
    path.write_text(old)
    check_report_place(path, [])
    write_report(path, Report("m.onnx"))
    assert json.loads(path.read_text())["model"] == "m.onnx"


@pytest.mark.parametrize("content", [b"\x08\x0a", b"{not json", b"[1, 2]", b"# notes", b"{\xff\xfe}"])
def test_any_other_file_is_kept(tmp_path, content):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(InputError, match="which is no report"):
        check_report_place(path, [])
    assert path.read_bytes() == content


def test_a_link_to_a_taken_place_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"model")
    (tmp_path / "link.json").symlink_to("m.onnx")
    with pytest.raises(InputError, match=r"would overwrite .*link\.json"):
        check_report_place(tmp_path / "link.json", [tmp_path / "m.onnx"])


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "r.json").symlink_to("real/r.json")
    check_report_place(tmp_path / "r.json", [])
    write_report(tmp_path / "r.json", Report("m.onnx"))
    assert (tmp_path / "r.json").is_symlink()
    assert names(tmp_path / "real") == ["r.json"]


@pytest.mark.parametrize(
    ("place", "reason"),
    [(".", "which is a folder"), ("no/r.json", "There is no folder"), ("/proc/r.json", "cannot be written")],
)
def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path, place, reason):
    with pytest.raises(InputError, match=reason):
        check_report_place(tmp_path / place, [])
    assert names(tmp_path) == []


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_report_place(pipe, [])
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.append(pipe.read_text()))
    reader.start()
    write_report(pipe, Report("m.onnx"))
    reader.join()
    assert json.loads(told[0])["model"] == "m.onnx"
    assert pipe.is_fifo()


def test_a_full_disk_leaves_the_old_report_and_no_partial_file(tmp_path, monkeypatch):
    (tmp_path / "r.json").write_text("{}")

    def full(self, text, **_):
        self.write_bytes(text[:5].encode())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        FxfuseError, match=r"cannot be written \(No space left on device\); the model o was written"
    ):
        write_report(tmp_path / "r.json", Report("m.onnx", output="o"))
    assert (tmp_path / "r.json").read_bytes() == b"{}"
    assert names(tmp_path) == ["r.json"]
