"""FFN Fusion as a compiler tool: find runs of norm-FFN blocks, make each one wide FFN, prove it, export it.

    import fxfuse
    compiled = torch.compile(model, backend=fxfuse)          # or backend="fxfuse", or fxfuse.backend
    analysis = fxfuse.analyze(model, "ids.npy")              # also: fxfuse analyze model.onnx --data ids.npy
    plan = fxfuse.plan(analysis, max_kl=0.02)                # also: fxfuse plan analysis.json --max-kl 0.02
    print(fxfuse.inspect_model("model.onnx"))                # also: fxfuse inspect model.onnx
    report = fxfuse.fuse_onnx("model.onnx")                  # also: fxfuse fuse model.onnx
    report = fxfuse.export_onnx(model, (input_ids,), "model.onnx")
    graph, report = fxfuse.fuse(exported_program, (input_ids,))
    fxfuse.split_onnx("model.fused.onnx")                    # also: fxfuse split model.fused.onnx
    fxfuse.fuse_checkpoint("IN", "OUT", auto=True)           # also: fxfuse checkpoint IN OUT --auto

The rewrite is lossy: every report says what was found and why not more, and what it costs on your inputs.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fxfuse._version import __version__
from fxfuse.errors import FxfuseError, InputError, VerificationError

if TYPE_CHECKING:
    from fxfuse.analysis.api import analyze
    from fxfuse.analysis.records import Analysis
    from fxfuse.backend import backend, reports
    from fxfuse.budget import Budget
    from fxfuse.calibration import Calibration
    from fxfuse.checkpoints.api import fuse_checkpoint
    from fxfuse.checkpoints.remove import remove_attention_checkpoint
    from fxfuse.checkpoints.split import split_checkpoint
    from fxfuse.checkpoints.verifying import verify_checkpoint
    from fxfuse.compression.run import compress
    from fxfuse.distillation.api import distill
    from fxfuse.export import export_onnx, export_program
    from fxfuse.genai.api import export_genai
    from fxfuse.inspection.api import inspect_model
    from fxfuse.loading.api import load_pretrained
    from fxfuse.onnx_api import fuse_onnx
    from fxfuse.page.api import write_page
    from fxfuse.parallel.api import parallelize
    from fxfuse.parallel.loading import load_parallel
    from fxfuse.planning.choose import plan
    from fxfuse.planning.records import Plan
    from fxfuse.removal.api import remove_attention
    from fxfuse.removal.choosing import choose_attention
    from fxfuse.removal.onnx_api import remove_attention_onnx
    from fxfuse.report import Report
    from fxfuse.sessions import nodes_off_cuda, session
    from fxfuse.splitting import split_onnx
    from fxfuse.timing.groups import time_groups
    from fxfuse.timing.target import Target
    from fxfuse.torch_api import fuse

__all__ = [
    "Analysis",
    "Budget",
    "Calibration",
    "FxfuseError",
    "InputError",
    "Plan",
    "Report",
    "Target",
    "VerificationError",
    "__version__",
    "analyze",
    "backend",
    "choose_attention",
    "compress",
    "distill",
    "export_genai",
    "export_onnx",
    "export_program",
    "fuse",
    "fuse_checkpoint",
    "fuse_onnx",
    "inspect_model",
    "load_pretrained",
    "load_parallel",
    "nodes_off_cuda",
    "parallelize",
    "plan",
    "remove_attention",
    "remove_attention_checkpoint",
    "remove_attention_onnx",
    "reports",
    "session",
    "split_checkpoint",
    "split_onnx",
    "time_groups",
    "verify_checkpoint",
    "write_page",
]

# Where each public name lives; loaded on first use, so that `fxfuse --version` does not wait for torch.
_HOMES = {
    "analyze": "analysis.api",
    "Analysis": "analysis.records",
    "backend": "backend",
    "reports": "backend",
    "fuse": "torch_api",
    "fuse_checkpoint": "checkpoints.api",
    "fuse_onnx": "onnx_api",
    "export_genai": "genai.api",
    "export_onnx": "export",
    "export_program": "export",
    "compress": "compression.run",
    "distill": "distillation.api",
    "inspect_model": "inspection.api",
    "load_parallel": "parallel.loading",
    "parallelize": "parallel.api",
    "load_pretrained": "loading.api",
    "plan": "planning.choose",
    "Plan": "planning.records",
    "Budget": "budget",
    "Calibration": "calibration",
    "Report": "report",
    "session": "sessions",
    "split_checkpoint": "checkpoints.split",
    "split_onnx": "splitting",
    "remove_attention": "removal.api",
    "remove_attention_checkpoint": "checkpoints.remove",
    "remove_attention_onnx": "removal.onnx_api",
    "choose_attention": "removal.choosing",
    "nodes_off_cuda": "sessions",
    "time_groups": "timing.groups",
    "Target": "timing.target",
    "verify_checkpoint": "checkpoints.verifying",
    "write_page": "page.api",
}


class _Module(ModuleType):
    """This module as a torch.compile backend: calling it calls `fxfuse.backend`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__getattr__("backend")(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, (self.__name__,)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{self.__name__}.{_HOMES[name]}"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing fxfuse.backend binds the submodule to the name of the function: the function wins.
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name, value)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Module
