"""Programs that read decoders whose layers differ, as they are called in commands and reports."""

from __future__ import annotations

__all__ = ["FXFUSE", "LLAMA_CPP", "MLX", "OPTIMIZER", "READERS", "TRANSFORMERS", "TRT", "VLLM"]

FXFUSE, TRANSFORMERS, MLX, VLLM = "fxfuse", "transformers", "mlx-lm", "vLLM"
LLAMA_CPP, TRT, OPTIMIZER = "llama.cpp", "TensorRT-LLM", "Model-Optimizer"

READERS = (FXFUSE, TRANSFORMERS, MLX, VLLM, LLAMA_CPP, TRT, OPTIMIZER)
"""All readers whose rules are known."""
