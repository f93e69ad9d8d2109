"""Session-wide caches: a family is exported in each form once, however many tests and workers read it."""

import copy
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from torch.export import ExportedProgram
from torch.fx import GraphModule

from tests import exporters, families
from tests.shared_files import once

hypothesis.settings.register_profile("fxfuse", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fxfuse")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--matrix` makes test_coverage run every family in every form."""
    parser.addoption("--matrix", action="store_true", help="run every cell of docs/coverage.md (minutes)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest tests first, so that at the end no worker waits for another."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def piped_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text into a pipe is as wide as without a terminal: xdist's workers are told of one."""
    monkeypatch.delenv("COLUMNS", raising=False)


# Dynamo's structured trace is a debug log of many megabytes, which pytest would otherwise keep.
logging.getLogger("torch.__trace").propagate = False

ONNX_FORMS: dict[str, Callable[..., Path]] = {
    "opset20": exporters.onnx_dynamo,
    "opset23": functools.partial(exporters.onnx_dynamo, opset=23),
    "older": exporters.onnx_torchscript,
}
"""Every way torch writes an ONNX file; opset20 is what the present exporter chooses by itself."""

ATEN_FORMS = ("aten", "core_aten")
"""torch.export's program as it comes, and after run_decompositions()."""


@pytest.fixture(scope="session")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """onnx_file(family, form="opset20", dynamic=False, **build_arguments): a file to read, not to write."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)

    @functools.cache
    def write(family: str, form: str = "opset20", dynamic: bool = False, **built: Any) -> Path:
        words = [family, form, "dynamic" if dynamic else "static", *(f"{k}-{v}" for k, v in built.items())]
        given = (families.example(family),)
        return once(
            folder / f"{'.'.join(words)}.onnx",
            lambda path: ONNX_FORMS[form](families.build(family, **built), given, path, dynamic=dynamic),
        )

    return write


@pytest.fixture(scope="session")
def dynamo_graph() -> Callable[..., tuple[GraphModule, list[Any]]]:
    """dynamo_graph(family, dynamic=False, **build_arguments): a graph of one's own and its example inputs."""

    @functools.cache
    def capture(family: str, dynamic: bool = False, **built: Any) -> tuple[GraphModule, list[Any]]:
        given = families.example(family)
        return exporters.dynamo_graph(families.build(family, **built), given, dynamic=dynamic)

    def fresh(family: str, dynamic: bool = False, **built: Any) -> tuple[GraphModule, list[Any]]:
        graph, example_inputs = capture(family, dynamic=dynamic, **built)
        return copy.deepcopy(graph), list(example_inputs)

    return fresh


@pytest.fixture(scope="session")
def exported_program() -> Callable[..., ExportedProgram]:
    """exported_program(family, form="aten", dynamic=False, **build_arguments): leave it as it is."""

    @functools.cache
    def export(family: str, form: str = "aten", dynamic: bool = False, **built: Any) -> ExportedProgram:
        if form == "core_aten":
            with exporters.silenced():
                return export(family, "aten", dynamic=dynamic, **built).run_decompositions()
        given = (families.example(family),)
        return exporters.exported(families.build(family, **built), given, dynamic=dynamic)

    return export
