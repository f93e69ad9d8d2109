"""Family x form: every chain that is there is found, fused and right, or the reason is the one we know.

By default each form runs with one family or two, and each family that test_fused_onnx has not in one form;
`--matrix` runs all cells, of which `make coverage` writes docs/coverage.md.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

import fxfuse
from tests.exporters import onnx_torchscript
from tests.families import FAMILIES, FUSED, build, example
from tests.forms import FORMS, GRAPHS
from tests.matrix.cells import chains_there, run_cell
from tests.matrix.shortfalls import SHORTFALLS, shortfall
from tools import coverage_table

ALL = [(family, form) for family in FAMILIES for form in (*GRAPHS, *FORMS)]
QUICK = [
    *((family, "older") for family in FAMILIES if family not in FUSED),
    ("llama", "older"),
    *(("llama", form) for form in (*GRAPHS, *FORMS) if form != "older"),
    *(("gpt2", form) for form in ("symbolic", "opset20", "session", "optimizer", "nbits")),
    *(("t5", form) for form in ("aot", "fp16", "optimizer")),
    ("olmo", "genai int4"),
]
PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"

STOCK = {
    "qwen3_moe": "a router chooses experts",
    "deepseek_v3": "a router chooses experts|experts",
    "mixtral": "a router chooses experts",
    "phi": "attention and FFN stand in parallel",
    "gpt_neox_parallel": "attention and FFN stand in parallel",
    "gemma2": "sandwich form",
    "bert": "post-norm form",
}
"""What may be said of a model that is left whole, next to "the block stands alone"."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "form" in metafunc.fixturenames:
        chosen = ALL if metafunc.config.getoption("--matrix") else QUICK
        # With --dist loadgroup one worker makes all forms of a family, so that it exports each file once.
        cells = [pytest.param(*each, marks=pytest.mark.xdist_group(each[0])) for each in chosen]
        metafunc.parametrize("family, form", cells)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forms")


def test_cell(family: str, form: str, folder: Path, record_property: Callable[[str, object], None]) -> None:
    if form.startswith("genai"):
        pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai-cuda has no wheel for this Python")
    cell = run_cell(family, form, folder)
    record_property("cell", json.dumps(asdict(cell)))
    known = shortfall(family, form)
    if known is None:
        assert cell.made, cell.reason
        assert cell.found == cell.fused == cell.there, cell.reason
    else:
        assert cell.made == known.made
        assert cell.found == cell.fused == ()
        assert known.reason in cell.reason
    if cell.after is not None and cell.before is not None:
        quantised, half = (form in FORMS and getattr(FORMS[form], each) for each in ("quantised", "half"))
        # Of OLMo, onnxruntime-genai writes another model: RMSNorm in the place of LayerNorm.
        if family != "olmo" or not form.startswith("genai"):
            assert cell.before < (0.3 if quantised else 5e-3 if half else 2e-4)
        assert cell.after <= (2 if quantised else 3) * cell.before + 1e-6


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FAMILIES]
)
def test_a_model_left_whole_has_ffn_blocks_but_no_chain(
    family: str, folder: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = onnx_torchscript(build(family, removed=()), (example(family),), folder / f"{family}.whole.onnx")
    name = fxfuse.session(path, "cpu").get_inputs()[0].name
    given = [{name: example(family).numpy()}]
    report = fxfuse.fuse_onnx(path, tmp_path / "out.onnx", inputs=given, provider="cpu", dry_run=True)
    record_property("whole", json.dumps({"family": family, "blocks": report.ffn_blocks}))
    assert report.chains == []
    assert report.ffn_blocks == FAMILIES[family].blocks
    said = {miss.reason for miss in report.misses if "stands alone" not in miss.reason}
    assert bool(said) == (family in STOCK)
    assert all(re.search(STOCK[family], each) for each in said)


def test_the_page_has_a_row_and_a_column_for_each() -> None:
    assert set(coverage_table.read(PAGE.read_text())) == set(ALL)


def test_the_page_says_what_is_known() -> None:
    page = coverage_table.read(PAGE.read_text())
    for cell in ALL:
        known, there = shortfall(*cell), len(chains_there(*cell))
        assert page[cell] == ("-" if known and not known.made else f"{0 if known else there}/{there}"), cell


def test_every_known_shortfall_is_one_of_some_cell() -> None:
    used = {id(shortfall(*each)) for each in ALL}
    assert all(id(each) in used for each in SHORTFALLS)
