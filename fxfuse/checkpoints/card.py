"""The model card of a fused checkpoint: what was done, what is known of its loss, how to load and to undo it.

Nothing in it depends on when or where it was written: a run that was killed ends with the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fxfuse._version import __version__
from fxfuse.checkpoints.card_removal import removal_lines
from fxfuse.checkpoints.corrections import corrected_layers, told_corrected
from fxfuse.checkpoints.plans import plan_notes
from fxfuse.checkpoints.records import Checkpoint, Group, Layout, OutputLayer
from fxfuse.planning.records import Plan, PlannedGroup

__all__ = ["card_of"]

_LICENCE = re.compile(r"^(license|license_name|license_link):[ \t]+\S.*$", re.MULTILINE)

_PYTHON = """\
```python
import fxfuse

model = fxfuse.load_pretrained("DIR")
```
"""

_METHOD = """\
Blocks of norm, FFN and residual add that followed one another with no attention between run side by side on
one input now ([FFN Fusion](https://arxiv.org/abs/2503.18908)), which is one wide FFN: gate and up are stacked
by rows, down by columns. The wide FFN is exactly the sum of its blocks; that they no longer see one another's
output is what fusing may cost.
"""


def card_of(
    checkpoint: Checkpoint,
    layout: Layout,
    plan: Plan | None = None,
    recovery: Mapping[str, Any] | None = None,
) -> str:
    """README.md for the folder of a fused checkpoint.

    Args:
        checkpoint: The source.
        layout: What became of its layers.
        plan: Where the groups come from one, with the figures that it brings.
        recovery: Figures of corrected weights, where there are some.
    """
    if not layout.groups:
        return _removed_card(checkpoint, layout)
    name = checkpoint.folder.resolve().name
    corrected = corrected_layers(recovery, checkpoint.family)
    parts = [
        _head(checkpoint),
        f"# {name}, FFNs fused\n",
        _summary(checkpoint, layout, name),
        *removal_lines(checkpoint, fused=True),
        _METHOD,
        _table(checkpoint, layout, corrected),
        "## What it costs\n",
        _loss(plan) if recovery is None else _recovered(recovery),
        *([_planned(plan, checkpoint)] if plan is not None and plan.groups else []),
        "## Loading and undoing\n",
        _loading(len(corrected)),
        f"Written by fxfuse {__version__}; `fxfuse.json` is its record.\n",
    ]
    return "\n".join(parts)


def _loading(corrected: int) -> str:
    """How it is loaded and split; corrected: how many blocks have other weights than they had."""
    back = "as they were"
    if corrected:
        back = f"again: {told_corrected(corrected)}; all else comes back as it was"
    return (
        f"{_PYTHON}\n`fxfuse verify DIR` tells which other programs load it, and `fxfuse split DIR -o OUT` "
        f"gives the blocks back {back}, bit for bit where the gain was kept, to rounding where it went into "
        "the weights.\n"
    )


def _removed_card(checkpoint: Checkpoint, layout: Layout) -> str:
    """That of a checkpoint whose attention was left out, and nothing else."""
    name = checkpoint.folder.resolve().name
    before, after = len(checkpoint.layers), len(layout.layers)
    told = f"{before} layers" if before == after else f"{before} layers became {after}, as empty ones went"
    dialect = f"The config is in the `{layout.dialect}` dialect."
    parts = [
        _head(checkpoint, "attention-removal"),
        f"# {name}, attention removed\n",
        f"{name} ({checkpoint.family.architecture}), {told}. {dialect}\n",
        *removal_lines(checkpoint),
        "## Loading\n",
        _PYTHON,
        "`fxfuse verify DIR` tells which other programs load it.\n",
        f"Written by fxfuse {__version__}; `fxfuse.json` is its record.\n",
    ]
    return "\n".join(parts)


def _head(checkpoint: Checkpoint, tag: str = "ffn-fusion") -> str:
    """Metadata as model hubs read it; the licence is the source's, where its own card names one."""
    path = checkpoint.folder / "README.md"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    metadata = text[3:].partition("\n---")[0] if text.startswith("---\n") else ""
    licence = [match[0].rstrip() for match in _LICENCE.finditer(metadata)]
    return "\n".join(["---", *licence, "tags:", f"- {tag}", "- fxfuse", "---", ""])


def _summary(checkpoint: Checkpoint, layout: Layout, name: str) -> str:
    before, after = len(checkpoint.layers), len(layout.layers)
    ffns = sum(map(len, layout.groups))
    groups = f"{len(layout.groups)} wide one{'s' * (len(layout.groups) != 1)}"
    return (
        f"{name} ({checkpoint.family.architecture}) with {ffns} of its FFNs fused into {groups}: {before} "
        f"layers became {after}. The config is in the `{layout.dialect}` dialect.\n"
    )


def _table(checkpoint: Checkpoint, layout: Layout, corrected: Sequence[int]) -> str:
    lines = ["| layers before | layer now | widths | norm |", "| --- | --- | --- | --- |"]
    lines += [
        _row(checkpoint, layer, layer.sources[0] in corrected) for layer in layout.layers if layer.fused
    ]
    padded = [layer for layer in layout.layers if layer.padding and not layer.fused]
    if padded:
        numbers = ", ".join(str(layer.number) for layer in padded)
        lines += ["", f"Also padded with channels of zeros, which change nothing: layers {numbers}."]
    return "\n".join([*lines, ""])


def _row(checkpoint: Checkpoint, layer: OutputLayer, corrected: bool) -> str:
    widths = [checkpoint.layers[number].intermediate_size for number in layer.sources]
    told = f"{len(widths)} x {widths[0]}" if len(set(widths)) == 1 else " + ".join(map(str, widths))
    padding = f" + {layer.padding} of zeros" if layer.padding else ""
    norm = "as it was" if layer.keeps_gain else "gains folded into gate and up"
    norm = "ones: the gains are in the corrected weights" if corrected else norm
    return (
        f"| {_span(layer.sources)} | {layer.number} | {told}{padding} = {layer.intermediate_size} | {norm} |"
    )


def _span(group: Group) -> str:
    return f"{group[0]} to {group[-1]}"


def _loss(plan: Plan | None) -> str:
    """What is known of the loss, or that it was not measured."""
    if plan is None:
        return (
            "The loss of fusing was **not measured**: these groups come from no plan. Measure it on your "
            "data before use (`fxfuse analyze`, `fxfuse plan`).\n"
        )
    if plan.kl is not None:
        error = f" ± {plan.kl_error:.2g}" if plan.kl_error is not None else ""
        return (
            f"KL divergence of the logits from the unfused model: {plan.kl:.3g}{error} nats per token, "
            "measured with all groups fused on the data of the plan.\n"
        )
    if plan.predicted_kl is not None:
        return (
            f"KL divergence of the logits from the unfused model: {plan.predicted_kl:.3g} nats per token, "
            "**predicted** by the plan and not measured with all groups fused.\n"
        )
    return "The loss of fusing was **not measured**: the plan brings no figures of it.\n"


def _recovered(recovery: Mapping[str, Any]) -> str:
    """What correcting the weights did."""
    groups = recovery["groups"]
    won = sum(group["kept"] != "naive" for group in groups)
    notes = [f"\nNote: {note}" for note in recovery["notes"]]
    lines = [
        f"KL divergence of the logits from the unfused model: {recovery['kl_after']:.3g} nats per token, "
        f"measured with all groups fused on {groups[0]['held_out_tokens']:,} tokens held out.",
        f"The weights of {won} of {len(groups)} groups were corrected on {groups[0]['tokens']:,} other "
        f"tokens; without, it was {recovery['kl_before']:.3g}.",
        *notes,
        "",
    ]
    return "\n".join(lines)


def _planned(plan: Plan, checkpoint: Checkpoint) -> str:
    lines = ["| plan's group | KL (nats per token) | SQNR (dB) |", "| --- | --- | --- |"]
    lines += [_figures(group) for group in plan.groups]
    budget = ", ".join(f"{name} {value}" for name, value in plan.budget.items() if value is not None)
    if budget:
        lines += ["", f"Chosen under: {budget}."]
    lines += [f"\nNote: {note}" for note in (*plan.notes, *plan_notes(plan, checkpoint.folder))]
    return "\n".join([*lines, ""])


def _figures(group: PlannedGroup) -> str:
    kl = "" if group.kl is None else f"{group.kl:.3g}{'' if group.measured else ' (predicted)'}"
    sqnr = "" if group.sqnr_db is None else f"{group.sqnr_db:.1f}"
    return f"| {group.blocks[0]} to {group.blocks[-1]} | {kl} | {sqnr} |"
