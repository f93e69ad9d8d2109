"""Share a decoder out over the ranks of torch.distributed, one all-reduce for each FFN and attention.

Every rank computes the residual stream, norms and embeddings; FFNs go by channels of their width, attentions
by heads. A wide FFN that stands for k costs one all-reduce where the k in a row cost k: on 8 GPUs that is
most of what fusing saves (arXiv 2503.18908).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from fxfuse.errors import InputError
from fxfuse.parallel.graphs import name_products
from fxfuse.parallel.places import Place, Whole, find_attentions, find_ffns, find_heads
from fxfuse.parallel.ranks import check_same_weights, mesh_of
from fxfuse.parallel.split import Split
from fxfuse.parallel.styles import Columns, Rows

__all__ = ["parallelize"]

log = logging.getLogger("fxfuse")

Model = TypeVar("Model", bound=nn.Module)


def parallelize(
    model: Model, mesh: DeviceMesh | None = None, *, pad: bool = False, head: bool = True
) -> Model:
    """Share `model` out over the ranks of `mesh`, in place; every rank calls it with the same weights.

    What a rank needs no more is freed, what it keeps moves to the mesh's kind of device. The model is called,
    generates and trains as before, on every rank with the same arguments, and where it samples with the same
    random state. Weights become DTensors; `fxfuse.parallel.state.whole_state` gives them back as they were.
    A model that fits into no rank's memory is loaded by `load_parallel` instead.

    Args:
        model: A decoder of transformers or `load_pretrained`, or another whose FFNs and attentions name their
            products so; with weights, or on the meta device. Or a GraphModule, such as `program.module()` of
            what `fxfuse.fuse` returns: its FFNs are shared, its attentions stay whole.
        mesh: One axis of ranks; all there are by default.
        pad: Fill widths that do not divide by the ranks with channels of zeros, which change no result.
        head: Share lm_head too, where its weight is its own: its logits then take an all-gather.

    Raises:
        InputError: There is nothing to share, a width does not divide, ranks hold different weights, or
            torch.distributed is not set up.
    """
    mesh = mesh_of(mesh)
    _check_model(model)
    check_same_weights(model, mesh)
    ranks = mesh.size()
    places, whole = _sorted(model, ranks)
    if not pad:
        _check_widths(places, ranks)
    if ranks > 1:
        plan = _plan(model, places, ranks, head)
        parallelize_module(model, mesh, plan, src_data_rank=None)
        for place in places:
            _count_heads(model.get_submodule(place.path), place, ranks)
    if mesh.get_local_rank() == 0:
        _tell(places, whole, ranks)
    return model if any(each.is_meta for each in model.parameters()) else model.to(mesh.device_type)


def _tell(places: Sequence[Place], whole: Sequence[Whole], ranks: int) -> None:
    log.info("%d FFNs and attentions are shared by %d ranks", len(places), ranks)
    for reason in dict.fromkeys(each.reason for each in whole):
        paths = [each.path for each in whole if each.reason == reason]
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        log.warning("%s%s: whole on every rank, because %s", paths[0], more, reason)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"parallelize takes a module, not {type(model).__name__}: load a checkpoint with "
            "fxfuse.load_pretrained, or call module() of an exported program."
        )
    if any(isinstance(each, DTensor) for each in model.parameters()):
        raise InputError("The model is shared out already (it holds DTensors): call parallelize once.")
    if isinstance(model, fx.GraphModule):
        name_products(model)


def _sorted(model: nn.Module, ranks: int) -> tuple[list[Place], list[Whole]]:
    """What is shared, and what stays whole."""
    ffns = find_ffns(model)
    found = [*ffns, *find_attentions(model, ranks)]
    whole = [each for each in found if isinstance(each, Whole)]
    if not any(isinstance(each, Place) for each in ffns):
        why = f" ({whole[0].path}: {whole[0].reason})" if whole else ""
        raise InputError(
            f"{type(model).__name__} has no FFN that ranks could share{why}: its products must be nn.Linear, "
            "named gate_proj, up_proj and down_proj, gate_up_proj and down_proj, or w1, w3 and w2."
        )
    return [each for each in found if isinstance(each, Place)], whole


def _check_widths(places: Sequence[Place], ranks: int) -> None:
    for place in places:
        if place.width % ranks:
            fitting = -(-place.width // ranks) * ranks
            raise InputError(
                f"{place.path} is {place.width} wide, which does not divide by {ranks} ranks: pass pad=True, "
                f"which fills it to {fitting} with zeros and changes no result."
            )


def _plan(model: nn.Module, places: Sequence[Place], ranks: int, head: bool) -> dict[str, ParallelStyle]:
    """A style for each product, by its path."""
    plan: dict[str, ParallelStyle] = {}
    for place in places:
        for path, split, axis in place.splits(ranks):
            plan[path] = Columns(split) if axis == 0 else Rows(split)
    for path in find_heads(model) if head else ():
        size = model.get_submodule(path).out_features
        if isinstance(size, int) and size % ranks == 0:
            plan[path] = Columns(Split((size,), ranks), gather=True)
    return plan


def _count_heads(module: nn.Module, place: Place, ranks: int) -> None:
    """Let an attention know how many heads it has left, wherever it reads that."""
    for name, count in place.counts.items():
        setattr(module, name, count // ranks)
    config: Any = getattr(module, "config", None)
    packed = len(place.first) == 1 and len(next(iter(place.first.values()))) == 3
    if packed and isinstance(getattr(config, "num_attention_heads", None), int):
        # Phi-3 cuts its packed product by what the configuration says, which other modules read too.
        own = copy.copy(config)
        own.num_attention_heads //= ranks
        setattr(module, "config", own)  # noqa: B010 - nn.Module declares what it holds as tensors or modules
