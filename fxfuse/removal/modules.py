"""Torch modules without some of their attentions, held against the exported graph without them."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fxfuse.errors import InputError, VerificationError
from fxfuse.frontends.outputs import choose_output
from fxfuse.frontends.protocol import Batch
from fxfuse.frontends.torch_graph import TorchGraph
from fxfuse.frontends.torch_model import read_torch
from fxfuse.passes.attention import Attention, find_attention
from fxfuse.removal.layers import take_out
from fxfuse.removal.running import run_without
from fxfuse.removal.which import Which, select

__all__ = ["remove_from_module"]

_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOKENS = 8


def remove_from_module(
    model: nn.Module, which: Which, batch: Batch | None, *, inplace: bool, cache: bool
) -> nn.Module:
    """See `fxfuse.remove_attention`."""
    was = model.training
    batch = batch if batch is not None else _drawn(model)
    model.eval()
    try:
        front = read_torch(model, batch)
        attentions = select(which, *find_attention(front.view))
        made = model if inplace else copy.deepcopy(model)
        places = [_place(made, front, each) for each in attentions]
        with _undone([made.get_submodule(path) for path, _, _ in places]):
            for path, child, name in places:
                take_out(made.get_submodule(path), child, name)
            _verify(made, front, attentions, batch)
            if cache:
                _verify_cache(made, attentions, batch)
    finally:
        model.train(was)
    return made.train(was)


@contextlib.contextmanager
def _undone(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Put layers back as they were where something fails inside."""
    tables = ("_modules", "_parameters", "_buffers")
    owners = dict.fromkeys(module for layer in layers for module in layer.modules())
    held = [(owner, type(owner), {name: dict(getattr(owner, name)) for name in tables}) for owner in owners]
    try:
        yield
    except BaseException:
        for owner, kind, before in held:
            owner.__class__ = kind
            for name, table in before.items():
                getattr(owner, name).update(table)
        raise


def _drawn(model: nn.Module) -> Batch:
    """A few token ids, which every language model knows."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise InputError(
            "The model takes no input_ids, so give batch=: an example of what it takes, by name."
        )
    device = next((each.device for each in model.parameters()), torch.device("cpu"))
    return {"input_ids": torch.arange(2 * _TOKENS, device=device).reshape(2, _TOKENS)}


def _place(model: nn.Module, front: TorchGraph, attention: Attention) -> tuple[str, str, str]:
    """The module that adds the attention to the stream, and which of its children the attention is."""
    owner, name = front.view.scope(attention.out), attention.name
    prefix = f"{owner}." if owner else ""
    path = name.partition("#")[0]
    found: Any = None
    if path.startswith(prefix) and path != owner:
        child = path.removeprefix(prefix).partition(".")[0]
        found = model.get_submodule(owner)._modules.get(child)
    if found is None or "#" in name:
        raise InputError(
            f"{name} is no module of its own that is called once: export the model and remove attention from "
            "the program."
        )
    return owner, child, name


def _verify(model: nn.Module, front: TorchGraph, attentions: Sequence[Attention], batch: Batch) -> None:
    """Hold the model against the exported graph of the old one, whose streams pass the attentions by."""
    expected, value = (
        _result(run_without(each, batch, _outputs(each), gone))
        for each, gone in ((front, attentions), (read_torch(model, batch), ()))
    )
    scale = float(expected.double().norm()) or 1.0
    error = float((value.double() - expected.double()).norm()) / scale
    if not error <= _TOLERANCE.get(value.dtype, 1e-4):
        raise VerificationError(
            f"What the model gives without attention differs by {error:.2g} from its graph without "
            "attention, so it was not made: remove attention from an exported program."
        )


def _outputs(front: TorchGraph) -> list[Any]:
    return list(next(iter(reversed(front.module.graph.nodes))).all_input_nodes)


def _result(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """The output to compare: logits, or the first that holds real numbers."""
    chosen = choose_output([""] * len(values), values, 0)
    if chosen is None:
        raise InputError(
            "The model gives nothing that could be compared: let it return logits or hidden states."
        )
    return values[chosen[0]]


def _verify_cache(model: Any, attentions: Sequence[Attention], batch: Batch) -> None:
    """Whether a model of transformers that generates gives the same with its cache as without."""
    config = getattr(model, "config", None)
    named = {"use_cache", "past_key_values"} <= inspect.signature(model.forward).parameters.keys()
    if not (named and getattr(config, "use_cache", False) and set(batch) == {"input_ids"}):
        return
    ids = batch["input_ids"]
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
        try:
            first = model(input_ids=ids[:, :-1], use_cache=True)
            step = model(input_ids=ids[:, -1:], past_key_values=first.past_key_values, use_cache=True)
            error = float((step.logits[:, -1] - whole).double().norm() / whole.double().norm())
        except (RuntimeError, ValueError, IndexError, AttributeError, TypeError):
            error = float("inf")
    if not error <= _TOLERANCE.get(whole.dtype, 1e-3):
        raise InputError(
            f"Without {attentions[0].name} the model's cache goes wrong, since it takes its length from the "
            "first attention of each kind: keep that one, or pass cache=False and run without a cache."
        )
