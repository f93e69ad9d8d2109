"""An empty name on the command line is not the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxfuse.cli import main
from tests.checkpoints import llama


@pytest.mark.parametrize(
    "words",
    [
        ["checkpoint", "IN", "", "--auto"],
        ["checkpoint", "", "out", "--auto"],
        ["verify", ""],
        ["split", ""],
        ["split", "IN", "-o", ""],
        ["remove", "IN", "--layers", "1", "-o", ""],
        ["genai", "IN", "-o", ""],
        ["genai", "", "-o", "out"],
    ],
)
def test_an_empty_name(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(llama.write(tmp_path / "in"))
    assert main([str(tmp_path / "in") if word == "IN" else word for word in words]) == 2
    assert ": the name is empty: name a file or folder (fxfuse " in capsys.readouterr().err
