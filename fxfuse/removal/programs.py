"""Remove attention from torch models that are named on a command line, into .pt2 files of torch.export."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path

from torch import nn
from torch.export import ExportedProgram

from fxfuse.errors import InputError
from fxfuse.frontends.opening import load_torch
from fxfuse.frontends.programs import save_program
from fxfuse.frontends.torch_model import export_module
from fxfuse.passes.attention import find_attention
from fxfuse.passes.chains import find_chains
from fxfuse.pipeline import Progress
from fxfuse.removal.graphs import front_of, without_attention
from fxfuse.removal.records import Choice, Removal
from fxfuse.removal.which import Which, select

__all__ = ["program_of", "remove_attention_program"]


def program_of(text: str) -> ExportedProgram:
    """The program in a .pt2 file, or that of the model which "module:function" returns, on its inputs.

    Raises:
        InputError: There is no such file or function, or its model cannot be exported.
    """
    from fxfuse.frontends.callables import call_maker

    if text.endswith(".pt2") or ":" not in text:
        loaded = load_torch(text)
        assert isinstance(loaded, ExportedProgram)
        return loaded
    module, _, function = text.rpartition(":")
    model, args, kwargs = call_maker(module, function)
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{text} must return an nn.Module or an ExportedProgram, not {type(model).__name__}."
        )
    names = list(inspect.signature(model.forward).parameters)
    if not kwargs:  # then the program takes its inputs by position too
        names = [str(place) for place in range(len(args))]
    return export_module(model.eval(), dict(zip(names, args, strict=False)) | kwargs)


def remove_attention_program(
    program: ExportedProgram,
    out_path: str | os.PathLike[str],
    which: Which,
    *,
    name: str = "",
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Removal:
    """Write a program without some of its attentions to a .pt2 file.

    Args:
        program: It stays as it is.
        out_path: Where to write.
        which: As for `remove_attention`.
        name: What to call the model in the record; where that is a file, it is not overwritten.
        force: Overwrite the output.
        progress: Called with a short text at every step.

    Raises:
        InputError: Such an attention is not there or cannot go, or the output's place cannot be used.
    """
    started = time.perf_counter()
    view = front_of(program).view
    found, misses = find_attention(view)
    chosen = select(which, found, misses)
    progress("taking the attentions out")
    made = without_attention(program, {each.name for each in chosen})
    assert isinstance(made, ExportedProgram)
    gone = {each.name for each in chosen}
    report = Removal(
        name,
        os.fspath(out_path),
        tuple(each.name for each in chosen),
        tuple(each.name for each in found if each.name not in gone),
        [(miss.where, miss.reason) for miss in misses],
        _chains(program),
        _chains(made),
        _left_out(program.graph_signature.user_inputs, made.graph_signature.user_inputs),
        tuple(str(value) for each in chosen for value in each.cache),
        bytes_before=_bytes(program),
        bytes_after=_bytes(made),
        choice=which if isinstance(which, Choice) else None,
    )
    progress("writing the program")
    save_program(made, out_path, inputs=[name] if name and Path(name).is_file() else [], force=force)
    report.seconds = round(time.perf_counter() - started, 3)
    return report


def _chains(program: ExportedProgram) -> list[tuple[str, ...]]:
    found = find_chains(front_of(program).view)
    return [tuple(block.name for block in chain.blocks) for chain in found.chains]


def _left_out(before: tuple[object, ...], after: tuple[object, ...]) -> tuple[str, ...]:
    return tuple(str(each) for each in before if each not in after)


def _bytes(program: ExportedProgram) -> int:
    held = {id(each): each for each in (*program.state_dict.values(), *program.constants.values())}
    return sum(int(getattr(each, "nbytes", 0)) for each in held.values())
