"""A checkpoint of a chosen size with random weights, written without holding it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from fxfuse.checkpoints.records import OutputTensor, Same
from fxfuse.checkpoints.shards import cut, index_of
from fxfuse.checkpoints.tensors import DTYPES, INDEX, bytes_of

__all__ = ["Stack", "write_checkpoint"]

_BAND = 1 << 24


@dataclass(frozen=True)
class Stack:
    """A Llama; `removed` layers in the middle are without attention, so one more FFNs are a run."""

    layers: int
    removed: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int = 16000
    dtype: str = "BF16"
    same_gains: bool = False

    @property
    def without(self) -> range:
        """The layers without attention."""
        first = (self.layers - self.removed) // 2
        return range(first, first + self.removed)

    @property
    def largest_group(self) -> int:
        """Bytes of the FFNs that become one."""
        size = DTYPES[self.dtype].itemsize
        return (self.removed + 1) * 3 * self.hidden_size * self.intermediate_size * size

    def config(self) -> dict[str, Any]:
        """The config.json."""
        return {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size, "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden_size // 64, "num_key_value_heads": self.hidden_size // 256,
            "vocab_size": self.vocab_size, "tie_word_embeddings": False, "rms_norm_eps": 1e-5,
            "per_layer_config": {str(layer): {"skip": ["attention"]} for layer in self.without},
        }  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors."""
        hidden, wide, keys = self.hidden_size, self.intermediate_size, self.hidden_size // 4
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, hidden)}
        for layer in range(self.layers):
            own: dict[str, tuple[int, ...]] = {}
            if layer not in self.without:
                own = {"input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden)}
                own |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (keys, hidden))
                own["self_attn.o_proj"] = (hidden, hidden)
            own |= {"post_attention_layernorm": (hidden,), "mlp.gate_proj": (wide, hidden)}
            own |= {"mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide)}
            found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
        return found | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab_size, hidden)}


def write_checkpoint(stack: Stack, folder: Path, shard_size: int) -> int:
    """Write a checkpoint of random weights without holding it; returns the bytes of its tensors."""
    folder.mkdir(parents=True)
    made = [OutputTensor(name, stack.dtype, shape, Same(0.0)) for name, shape in stack.shapes().items()]
    shards = cut(made, shard_size)
    for shard in shards:
        with (folder / shard.file).open("wb") as file:
            file.write(shard.header)
            for each in shard.tensors:
                _write_random(each, stack, file.write)
    (folder / "config.json").write_text(json.dumps(stack.config(), indent=2))
    (folder / "tokenizer.json").write_text("{}")
    if (index := index_of(shards)) is not None:
        (folder / INDEX).write_text(index)
    return sum(shard.weights for shard in shards)


def _write_random(made: OutputTensor, stack: Stack, write: Callable[[memoryview], object]) -> None:
    """Gains about 1, weights small; the same for the same name."""
    gain = made.name.endswith("norm.weight")
    seed = "norm" if gain and stack.same_gains else made.name
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:6], "big"))
    dtype, left = DTYPES[made.dtype], prod(made.shape)
    while left:
        count = min(left, _BAND // dtype.itemsize)
        write(bytes_of((torch.randn(count, generator=draw) * (0.1 if gain else 0.02) + gain).to(dtype)))
        left -= count
