"""The configuration class of nemotron-nas for transformers 4.48 and later, written beside such a checkpoint.

    config.block_configs[7].attention.no_op, config.block_configs[7].ffn.ffn_mult

vLLM and TensorRT-LLM build their own model from it and need the entries of block_configs as objects; both
take it from the checkpoint's folder where they are told to trust its code.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from transformers import LlamaConfig


class DeciLMConfig(LlamaConfig):
    """Llama's configuration with a `block_configs` entry for each layer."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.block_configs = [
            SimpleNamespace(
                attention=SimpleNamespace(**entry["attention"]), ffn=SimpleNamespace(**entry["ffn"])
            )
            for entry in block_configs or []
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as it stands in config.json."""
        found: dict[str, Any] = super().to_dict()
        found["block_configs"] = [
            {"attention": vars(each.attention), "ffn": vars(each.ffn)} for each in self.block_configs
        ]
        return found
