"""Remove attention from torch models."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import fx, nn
from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.protocol import Batch
from fxfuse.passes.attention import find_attention
from fxfuse.removal.graphs import front_of, without_attention
from fxfuse.removal.modules import remove_from_module
from fxfuse.removal.which import Which, select

__all__ = ["remove_attention"]

Model = TypeVar("Model", nn.Module, fx.GraphModule, ExportedProgram)


def remove_attention(
    model: Model, which: Which, *, batch: Batch | None = None, inplace: bool = False, cache: bool = True
) -> Model:
    """A torch model without some of its attentions, norms before them included.

    A module stays a module: a deep copy, whose layers have neither the attention's weights nor its norm's,
    and which trains, exports and generates as before; `state_dict` keeps the names of all that is left. It is
    held against its exported graph. Of a GraphModule or a program of torch.export a copy is given that shares
    the weights; past keys and values that only these attentions read leave its inputs, present ones its
    outputs.

    Args:
        model: A module in which a layer's attention is a child module; a GraphModule; an ExportedProgram.
        which: Layers ("5-10,12" or numbers), layer paths, a `Choice`, or the configuration of another tool
            (LLM-Drop, nemotron-nas, transformers) as a dict or a path.
        batch: For a module: inputs by name, to export and verify with; token ids are drawn by default.
        inplace: Change the module instead of a copy of it.
        cache: Whether a module of transformers is to be used with its cache, which is then verified too.

    Raises:
        InputError: Such an attention is not there or cannot go, or the model cannot be read.
        VerificationError: What was made does not compute what it should.
    """
    if isinstance(model, (ExportedProgram, fx.GraphModule)):
        if inplace:
            raise InputError("A graph is not changed in place: take the copy that remove_attention gives.")
        chosen = select(which, *find_attention(front_of(model).view))
        return cast(Model, without_attention(model, {each.name for each in chosen}))
    if not isinstance(model, nn.Module):
        raise InputError(
            f"remove_attention takes a module, GraphModule or ExportedProgram, not {type(model).__name__}."
        )
    return remove_from_module(model, which, batch, inplace=inplace, cache=cache)
