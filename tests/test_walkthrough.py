"""The code of docs/walkthrough.md runs as it stands, block after block."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "walkthrough.md"


@pytest.mark.slow
def test_the_walkthrough_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    assert (tmp_path / "fused.onnx").is_file()
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert names["report"].groups
    assert names["healed"].end.kl < names["healed"].start.kl
