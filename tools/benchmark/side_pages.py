"""Parts of docs/performance.md that other scripts measure: corners, backend, tools, checkpoints, ranks."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.benchmark.checkpoint_page import CHECKPOINT, checkpoint_page
from tools.benchmark.parallel_page import PARALLEL, parallel_page
from tools.benchmark.tables import busy, table

__all__ = ["side_pages"]

Record = Mapping[str, Any]

_CORNERS = """## Fused or not, quantised or not

Written by `tools/bench_corners.py`: one process a file, in turn. "Faster" is the time of the unfused fp32
export over that of the form. Loss is against the unfused fp32 model: of the demo model the KL of the logits
on held-out text, of a chain (random weights, on which fusing loses more than on learned ones) the relative
error of its output; "of it quantising" is the same against the float file of the same form.
"""

_BACKEND = """## What the torch.compile backend costs

Written by `tools/bench_backend.py`: a fresh process and an empty compiler cache for each, in turn.
"""

_TOOLS = """## The tool beside others

Written by `tools/bench_tools.py`: each tool on the same file, in a process of its own, in turn. fxfuse
measures and verifies in this time, and waits until its output is on the disk. Memory is what the system
cannot drop (RssAnon, RssShmem); "with files" counts mapped weights, too.
"""


def side_pages(found: Sequence[Record]) -> list[str]:
    """A part for each kind there is, in a fixed order; what is of no known kind is left out."""
    parts = []
    for wanted, title, draw in (
        ("corners", _CORNERS, _corners),
        ("backend", _BACKEND, _backend),
        ("tools", _TOOLS, _tools),
        ("checkpoint", CHECKPOINT, checkpoint_page),
        ("parallel", PARALLEL, parallel_page),
    ):
        same = [each for each in found if _kind(each) == wanted]
        for each in same:
            title_of = title if each is same[0] else ""
            parts.append("\n".join([title_of, _machine(each), *draw(each)]))
    return parts


def _kind(found: Record) -> str | None:
    if {"compile", "call", "memory"} <= found.keys():
        return "backend"
    kind = found.get("kind")
    return kind if kind in ("corners", "tools", "checkpoint", "parallel") else None


def _machine(found: Record) -> str:
    machine = found["machine"]
    name = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    versions = ", ".join(f"{each} {version}" for each, version in found["versions"].items())
    return f"{name}; {versions}.{busy(machine)}\n"


def _corners(found: Record) -> Iterator[str]:
    for model in found["models"]:
        tokens = [point["tokens"] for point in model["points"]]
        rows = []
        for form in found["forms"]:
            about = model["forms"].get(form)
            if about is None:
                continue
            times = [f"{_ratio(point['ratios'].get(form))}" for point in model["points"]]
            loss, step = _loss(about["loss"])
            rows.append((form, f"{about['file_bytes'] / 1e6:,.1f} MB", *times, loss, step))
        heading = (
            "form",
            "file",
            *(f"faster, {count} tokens" for count in tokens),
            "loss",
            "of it quantising",
        )
        yield f"### {model['model']} (loss on {model['loss_on']})\n"
        yield table([each.replace("1 tokens", "1 token") for each in heading], rows)


def _ratio(ratio: Record | None) -> str:
    return (
        "1" if ratio is None else f"{ratio['median']:.2f} [{ratio['least']:.2f} to {ratio['greatest']:.2f}]"
    )


def _loss(loss: Record) -> tuple[str, str]:
    if "kl" in loss:
        error = loss.get("kl_standard_error")
        return (
            f"KL {loss['kl']:.4f}" + (f" ± {error:.4f}" if error is not None else ""),
            f"KL {loss['kl_to_float']:.4f}",
        )
    return f"{loss['relative_error']:.3f}", f"{loss['relative_error_to_float']:.3f}"


def _backend(found: Record) -> Iterator[str]:
    compiled, call, memory = found["compile"], found["call"], found["memory"]
    shape = compiled["shape"]
    seconds = {
        name: statistics.median(each["seconds"] for each in rounds)
        for name, rounds in compiled["rounds"].items()
    }
    own = statistics.median(each["fxfuse"] for each in compiled["rounds"]["fxfuse"])
    least, most = min(compiled["ratios"]), max(compiled["ratios"])
    model = f"{shape['layers']}-layer decoder with a run of 12 FFNs, hidden {shape['hidden_size']}"
    rows = [
        (f"first call, {model}, {shape['tokens']} tokens: inductor", f"{seconds['inductor']:.1f} s", ""),
        ("the same through fxfuse", f"{seconds['fxfuse']:.1f} s, {own:.2f} s of it measuring and fusing", ""),
        ("ratio [rounds]", f"{compiled['ratio']:.3f} [{least:.3f} to {most:.3f}]", "at most 1.10"),
        ("check for stale weights at every call of the demo model", f"{call['check_us']:.1f} µs", ""),
        (
            "share of its step of one token",
            f"{call['share']:.2%} of {call['step_us']:,.0f} µs",
            "at most 1 %",
        ),
    ]
    for name, each in memory["copies"].items():
        rows.append(
            (f"memory that the first call adds, {name}", f"{each['added'] / 1e6:+,.1f} MB of tensors", "")
        )
    yield table(("what", "measured", "bar"), rows)


def _tools(found: Record) -> Iterator[str]:
    model = found["model"]
    rows = []
    for each in found["results"]:
        middle = sorted(each["runs"], key=lambda run: run["seconds"])[len(each["runs"]) // 2]
        products = " to ".join(map(str, each["found"].get("products", ["-"])))
        what = each["problem"] or f"products {products}"
        sizes = [f"{each[name] / 1e9:.2f} GB" for name in ("peak", "rss")]
        rows.append((each["name"], f"{each['seconds']:.1f}", f"{middle['cpu']:.1f}", *sizes, what))
    size, runs = f"{model['weights'] / 1e9:.2f} GB in {model['dtype']}", len(found["results"][0]["runs"])
    yield f"{model['layers']} layers, hidden {model['hidden']}, {size}; the median of {runs} runs.\n"
    yield table(("tool", "seconds", "CPU seconds", "memory", "with files", "result"), rows)
    bounds = [(told, "yes" if held else "no") for told, held in found["bounds"].items()]
    yield table(("bar", "reached"), bounds)
