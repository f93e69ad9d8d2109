"""Drawings as PNG files."""

import builtins
import struct

import pytest

from fxfuse import write_page
from fxfuse.errors import InputError
from fxfuse.page import raster
from tests.page import sample

pytest.importorskip("resvg_py")


def size_of(path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture
def fonts(monkeypatch):
    """A machine may have none; then there is nothing to see but shapes."""
    monkeypatch.setattr(raster, "_has_fonts", lambda render: True)


def test_each_drawing_is_one_file(tmp_path, fonts):
    write_page(tmp_path / "p.html", **sample.demo(), png_folder=tmp_path / "png" / "new")
    found = {path.name: size_of(path) for path in (tmp_path / "png" / "new").iterdir()}
    assert set(found) == {"stream.png", "loss.png", "front.png", "dependency.png", "attention.png"}
    assert all(width == 2 * (880 + 40) and height > 500 for width, height in found.values())
    assert len((tmp_path / "png" / "new" / "dependency.png").read_bytes()) > 10_000


def test_files_are_replaced(tmp_path, fonts):
    for _ in range(2):
        write_page(tmp_path / "p.html", plan=sample.demo()["plan"], png_folder=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"p.html", "stream.png", "front.png"}


def test_a_page_without_drawings_makes_no_files(tmp_path, fonts):
    write_page(tmp_path / "p.html", stages=sample.stages(), png_folder=tmp_path / "png")
    assert not (tmp_path / "png").exists()


def test_without_the_library_nothing_is_written(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "resvg_py":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"PNG files need the library resvg-py: install it with pip install"):
        write_page(tmp_path / "p.html", **sample.demo(), png_folder=tmp_path / "png")
    assert list(tmp_path.iterdir()) == []


def test_without_fonts_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(raster, "_has_fonts", lambda render: False)
    with pytest.raises(InputError, match="This machine has no fonts, so PNG files would lack their text"):
        write_page(tmp_path / "p.html", **sample.demo(), png_folder=tmp_path / "png")
    assert list(tmp_path.iterdir()) == []


def test_a_letter_leaves_a_trace_or_not():
    assert raster._has_fonts.__wrapped__(lambda svg_string: svg_string.encode())
    assert not raster._has_fonts.__wrapped__(lambda svg_string: b"the same")


def test_a_folder_that_cannot_be_made(tmp_path, fonts):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="The folder .*taken for PNG files cannot be made"):
        write_page(tmp_path / "p.html", plan=sample.demo()["plan"], png_folder=tmp_path / "taken")
    assert not (tmp_path / "p.html").exists()
