"""Copies of torch models that are made ready to be trained, and share what does not learn."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.export import ExportedProgram

from fxfuse.distillation.attention import attend
from fxfuse.errors import InputError
from fxfuse.passes.fx.calls import ASSERTIONS, name_of

__all__ = ["TorchModel", "as_module", "copy_module", "hidden_size", "prepare"]

TorchModel: TypeAlias = nn.Module | ExportedProgram
"""An nn.Module (a GraphModule too) or a program of torch.export."""


def as_module(model: TorchModel, role: str) -> nn.Module:
    """The model as a module; that of a program shares its weights.

    Raises:
        InputError: It is no torch model.
    """
    if isinstance(model, nn.Module):
        return model
    if not isinstance(model, ExportedProgram):
        raise InputError(
            f"The {role} must be an nn.Module, a GraphModule or an ExportedProgram, not "
            f"{type(model).__name__}."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.module(check_guards=False)


def copy_module(module: nn.Module, role: str, weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """A copy that has `weights` where they are named, and for the rest the tensors of `module` itself."""
    named = dict(module.named_parameters(remove_duplicate=False))
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*named.values(), *module.buffers())}
    memo |= {id(named[name]): tensor for name, tensor in weights.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a module holds that cannot be copied
        raise InputError(
            f"The {role} cannot be copied ({error}): give one that copy.deepcopy takes."
        ) from error


def prepare(module: nn.Module) -> None:
    """Make a copy ready to be trained: no dropout, no cache, no assertions, attention that trains fast."""
    config = getattr(module, "config", None)
    if getattr(config, "use_cache", None):
        config.use_cache = False  # type: ignore[union-attr]
    if not isinstance(module, fx.GraphModule):
        module.eval()
    for graph in [each for each in module.modules() if isinstance(each, fx.GraphModule)]:
        for node in list(graph.graph.nodes):
            if node.op == "call_function" and name_of(node) in ASSERTIONS and not node.users:
                graph.graph.erase_node(node)
            elif node.target in (
                F.scaled_dot_product_attention,
                torch.ops.aten.scaled_dot_product_attention.default,
            ):
                node.target = attend
        graph.recompile()


def hidden_size(module: nn.Module) -> int:
    """The width of the embedding, by which hidden states are told from logits; 0 where there is none."""
    for each in module.modules():
        if isinstance(each, nn.Embedding):
            return each.embedding_dim
    if isinstance(module, fx.GraphModule):
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
            weight = node.args[0]
            if isinstance(weight, fx.Node) and weight.op == "get_attr":
                return int(module.get_parameter(str(weight.target)).shape[-1])
    return 0
