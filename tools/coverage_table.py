"""Write docs/coverage.md: family x form, chains found of chains there, from the results of the tests.

python -m tools.coverage_table [--workers N] [--results RESULTS.xml]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "coverage.md"

_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime-gpu", "onnxruntime-genai-cuda")

_TESTS = ["-m", "pytest", "tests/test_coverage.py", "-q", "--matrix", "-k", "test_cell or whole"]

_HEAD = """\
# What is found, and where

Made by `make coverage` from the results of `tests/test_coverage.py --matrix`; do not edit it by hand.

Each row is a family of models: five layers of hidden size 64, of its own code in transformers, with random
weights, and with the attention of layers 1, 2 and 4 removed. Each column is a form in which one comes.

| a cell | means |
| --- | --- |
| `2/2` | two chains are there; two were found, fused, written and run, and the output is right |
| `0/2 a` | two are there and none was fused, for reason a below |
| `0/0 b` | there is nothing to fuse in this family or form, for reason b |
| `- c` | the tool that writes the form does not write it of this family, for reason c |

Right means: the distance to the parallel model in float64, which the tests write by hand, is at most three
times what the same file, unfused, has to the sequential model; twice where weights are quantised. That says
little of onnxruntime-genai's files of OLMo, which compute RMSNorm in the place of LayerNorm. In all cells
fxfuse's own check holds as well: the wide FFN against the sum of the FFNs in float64.

What is there is told by hand in `tests/families/table.py`. Mostly it is two chains: one of three blocks (the
FFN of layer 0, which keeps its attention, and those of layers 1 and 2) and one of two (layers 3 and 4).
Elsewhere:

- t5, t5_gated in float16: the layers clamp the stream after each part, so nothing follows anything directly
"""

_WHOLE = """\
## Models left whole

With no attention removed there is nothing to fuse. These are the FFN blocks that fxfuse recognises, of five
layers; experts, FFNs beside the attention and other norms are not blocks.
"""


def main() -> int:
    """Run the tests, or read what they wrote, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", default="2", help="how many tests run at once")
    parser.add_argument(
        "--results", type=Path, help="a --junitxml file of the tests, instead of running them"
    )
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        results = options.results or Path(folder) / "results.xml"
        if options.results is None:
            command = [sys.executable, *_TESTS, f"--junitxml={results}", "-n", options.workers]
            command += ["--dist", "loadgroup", "-o", "junit_family=legacy"]
            failed = subprocess.run(command, cwd=ROOT, check=False).returncode
        cells, whole = load(results)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(cells, whole, versions()))
    print(f"wrote {PAGE.relative_to(ROOT)}: {len(cells)} cells")
    return failed


def versions() -> dict[str, str]:
    """The versions of the packages that write or run the files, of those that are installed."""
    installed = {each.name for each in metadata.distributions()}
    return {name: metadata.version(name) for name in _PACKAGES if name in installed}


def load(results: Path) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The cells, and the blocks of each whole model, from a junit file."""
    cells, whole = [], {}
    for each in ElementTree.parse(results).iter("property"):
        value = json.loads(each.attrib["value"])
        if each.attrib["name"] == "cell":
            cells.append(value)
        else:
            whole[value["family"]] = value["blocks"]
    return cells, whole


def render(cells: Sequence[Mapping[str, Any]], whole: Mapping[str, int], used: Mapping[str, str]) -> str:
    """The page."""
    from tests.families import FAMILIES
    from tests.forms import FORMS, GRAPHS

    found = {(each["family"], each["form"]): each for each in cells}
    notes: dict[str, str] = {}
    parts = [_HEAD + "".join(f"- {name}: {each.why}\n" for name, each in FAMILIES.items() if each.why)]
    for title, forms in _tables(list(GRAPHS), FORMS):
        parts.append(f"## {title}\n\n" + _table(list(FAMILIES), forms, found, notes))
        told = [f"- {form}: {FORMS[form].title}" for form in forms if form in FORMS]
        parts += ["\n".join(told) + "\n"] if told else [_GRAPHS]
    parts.append("## Reasons\n\n" + "".join(f"- {mark}: {reason}\n" for reason, mark in notes.items()))
    rows = "".join(f"| {name} | {whole[name]} |\n" for name in FAMILIES if name in whole)
    parts.append(f"{_WHOLE}\n| family | blocks |\n| --- | --- |\n{rows}")
    packages = ", ".join(f"{name} {version}" for name, version in used.items())
    parts.append(f"## Versions\n\nPython {platform.python_version()}, {packages}; on the CPU.\n")
    return "\n".join(parts)


_GRAPHS = """\
- dynamo: what a `torch.compile` backend is given
- aten, core aten: `torch.export`'s program, and after its `run_decompositions()`
- aot: what AOT autograd hands to a compiler
- symbolic: `torch.fx.symbolic_trace` of the layers alone, all without attention: one chain of five
"""


def _tables(graphs: list[str], forms: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    quantised = [name for name, form in forms.items() if form.quantised]
    return [
        ("torch graphs", graphs),
        ("ONNX files", [name for name in forms if name not in quantised]),
        ("Quantised ONNX files", quantised),
    ]


def _table(
    families: Sequence[str], forms: Sequence[str], found: Mapping[tuple[str, str], Any], notes: dict[str, str]
) -> str:
    lines = ["| family | " + " | ".join(forms) + " |", "| --- |" + " --- |" * len(forms)]
    for family in families:
        texts = [_text(found.get((family, form)), notes) for form in forms]
        lines.append(f"| {family} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def _text(cell: Mapping[str, Any] | None, notes: dict[str, str]) -> str:
    if cell is None:
        return "?"
    left = list(cell["there"])
    for length in cell["fused"]:
        if length in left:
            left.remove(length)
    there = len(cell["there"])
    text = f"{there - len(left)}/{there}" if cell["made"] else "-"
    if cell["made"] and there and not left:
        return text
    reason = _general(cell["reason"]) if cell["made"] else cell["reason"]
    return f"{text} {notes.setdefault(reason, _mark(len(notes)))}" if reason else text


def _general(reason: str) -> str:
    """A reason without the names and values of one model, so that it is told once."""
    reason = re.sub(r"(?<=up to )[\d.e+-]+(?=\W)", "...", reason)
    return re.sub(r"(?<!\S)\(?(?=[^\s,;:]*[_/.])(?=[^\s,;:]*\d)[^\s,;:]*[^\s,;:.]", "...", reason)


def _mark(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else _mark(index // 26 - 1) + _mark(index % 26)


def read(page: str) -> dict[tuple[str, str], str]:
    """The cells of a page, without their notes."""
    found: dict[tuple[str, str], str] = {}
    head: list[str] = []
    for line in page.splitlines():
        fields = [each.strip() for each in line.strip("|").split("|")] if line.startswith("|") else []
        if fields[:1] == ["family"]:
            head = fields[1:] if fields[1:] != ["blocks"] else []
        elif not fields:
            head = []
        elif head and not fields[0].startswith("---"):
            found |= {
                (fields[0], form): text.split(" ")[0] for form, text in zip(head, fields[1:], strict=True)
            }
    return found


if __name__ == "__main__":
    sys.exit(main())
