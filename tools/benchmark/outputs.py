"""What a rewritten ONNX file is beside its original: python -m tools.benchmark.outputs MODEL OUT (JSON).

Both run in ONNX Runtime on the same tokens, without optimisations and with their weights left in the files
where they lie beside the model.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

_TOKENS, _VOCAB = 8, 64
_CLOSE = 0.05
"""The relative error up to which logits count as the same model's: fusing FFNs loses a little."""


def main(arguments: Sequence[str]) -> int:
    """Compare and print."""
    model, out = map(Path, arguments)
    before, after = _operators(model), _operators(out)
    found: dict[str, Any] = {
        "nodes": [before.total(), after.total()],
        "products": [before["MatMul"], after["MatMul"]],
        "new": {name: count for name, count in sorted(after.items()) if count > before[name]},
    }
    try:
        one, other = _run(model), _run(out)
        found["error"] = float(np.linalg.norm(other - one) / np.linalg.norm(one))
        if not found["error"] <= _CLOSE:
            found["problem"] = f"its logits are off by {found['error']:.2g}"
    except Exception as error:  # onnxruntime's errors share no narrower base
        found["problem"] = f"ONNX Runtime does not run it: {str(error).splitlines()[0]}"
    print(json.dumps(found))
    return 0


def _operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def _run(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(0, _VOCAB, (1, _TOKENS))
    (logits,) = session.run(None, {"input_ids": tokens})
    return logits.astype(np.float64)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
