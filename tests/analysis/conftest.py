"""The tiny decoder as an ONNX file, written once."""

from pathlib import Path

import pytest
import torch

from tests.analysis.hand import tiny, windows
from tests.exporters import silenced


@pytest.fixture(scope="session")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hand.tiny()` with open batch and sequence: a file to read, not to write."""
    path = tmp_path_factory.mktemp("analysis") / "tiny.onnx"
    dim = torch.export.Dim
    axes = {0: dim("batch", max=64), 1: dim("sequence", max=64)}
    names = {"input_names": ["input_ids"], "output_names": ["logits"]}
    with silenced(), torch.no_grad():
        torch.onnx.export(
            tiny(), (windows(4),), path, dynamo=True, dynamic_shapes=(axes,), external_data=False,
            verbose=False, **names,
        )  # fmt: skip
    return path
