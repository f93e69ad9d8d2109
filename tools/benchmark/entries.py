"""Who takes part: contestants by name, and which of them make a ratio."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxfuse.timing.rounds import Ratio, Timing
from tools.benchmark.cases import LENGTH, Case, Settings, shape_of

__all__ = ["Entry", "Pair", "chosen_file", "entries", "pairs", "ratio_of"]


@dataclass(frozen=True)
class Entry:
    """A contestant.

    `form` is what is run: "plain", "fused", "chosen" (the form that fxfuse measured to be the fastest),
    "optimizer", "onnxscript" or "bound" (the FFNs removed). `mode` is how: "eager", "default", "autotune",
    "graphs", "replay" in torch; "" or "graph" in ONNX Runtime. `host` is the process that holds it.
    """

    name: str
    title: str
    runtime: str
    form: str
    mode: str = ""
    weights: str = "float"
    host: str = ""

    @property
    def process(self) -> str:
        """The name of the process; two ways to call one compiled model share it."""
        return self.host or self.name

    @property
    def file(self) -> str:
        """The ONNX file that is run."""
        return f"{self.form}.onnx" if self.weights == "float" else f"{self.form}-{self.weights}.onnx"

    @property
    def is_fused(self) -> bool:
        """Whether the answer is that of the parallel form."""
        return self.form in ("fused", "chosen", "kernel")


_WHERE = {
    "plain": "unfused",
    "optimizer": "after transformers.optimizer", "onnxscript": "after onnxscript's fusions",
    "fused": "fused", "chosen": "fused, form chosen by timing", "bound": "without the FFNs",
    "kernel": "fxfuse, own kernels",
}  # fmt: skip

_MODES = {
    "eager": "torch eager", "default": "torch.compile", "autotune": "torch.compile, max-autotune",
    "graphs": "torch.compile, reduce-overhead", "replay": "torch.compile, CUDA graph",
}  # fmt: skip

UNFUSED = ("plain", "optimizer", "onnxscript")
"""Forms that one runs without fxfuse; the best of them in each round is what fused is held against."""

LARGE = 500_000_000
"""Weights above which onnxscript's fusions are left out on CUDA: they change nothing in these graphs."""


def _torch(form: str, mode: str, host: str = "") -> Entry:
    stem = {"plain": "inductor", "fused": "fxfuse", "bound": "bound"}.get(form, f"fxfuse-{form}")
    name = stem if mode == "default" else f"{stem}-{mode}"
    name = "eager" if (form, mode) == ("plain", "eager") else name
    name = f"{host}-replay" if mode == "replay" else name
    where = {"plain": "inductor", "fused": "fxfuse"}.get(form, _WHERE[form])
    if mode == "eager":
        where = _WHERE[form]
    if mode == "replay" and host.endswith("autotune"):
        where += ", max-autotune"
    return Entry(name, f"{_MODES[mode]}, {where}", "torch", form, mode, host=host)


def _onnx(form: str, mode: str = "", weights: str = "float") -> Entry:
    stem = "onnx" if form == "plain" else f"onnx-{form}"
    stem += "" if weights == "float" else f"-{weights}"
    graph = "-graph" if mode else ""
    kind = "" if weights == "float" else f" {weights}"
    title = f"ONNX Runtime{kind}{', CUDA graph' if mode else ''}, {_WHERE[form]}"
    return Entry(stem + graph, title, "onnx", form, mode, weights, host=stem if mode else "")


def entries(case: Case, settings: Settings) -> list[Entry]:
    """The contestants of a case, the most important first."""
    found = _on_cuda(case, settings) if settings.device == "cuda" else _on_cpu(case, settings)
    found += [_torch("fused", "eager")] if settings.checks else []
    wanted = {entry.name for entry in found if re.search(settings.only, entry.name)}
    hosts = {entry.host for entry in found if entry.name in wanted}
    return [entry for entry in found if entry.name in wanted | hosts]


def _on_cpu(case: Case, settings: Settings) -> list[Entry]:
    """Chains of other lengths than 8 are run in the forms that matter most only: a run has to end."""
    shape = shape_of(case.model)
    full = shape is None or shape.blocks == LENGTH
    found = [_onnx("plain"), _onnx("fused"), _torch("plain", "default"), _torch("fused", "default")]
    if settings.chosen and full:
        found += [_onnx("chosen"), _torch("chosen", "default"), _onnx("chosen", weights="int4")]
    found += [_onnx("optimizer"), *([_onnx("onnxscript")] if full else [])]
    if shape is None:
        found += [_onnx("bound"), _torch("bound", "default")]
    elif full:
        kinds = ("int4", "int8")
        found += [_onnx(form, weights=k) for k in kinds for form in ("plain", "optimizer", "fused")]
    else:
        found += [_onnx(form, weights="int4") for form in ("plain", "fused")]
    return [*found, *([_torch("plain", "eager")] if full else [])]


def _on_cuda(case: Case, settings: Settings) -> list[Entry]:
    found: list[Entry] = []
    for form, stem in (("plain", "inductor"), ("fused", "fxfuse")):
        found += [_torch(form, "default"), _torch(form, "replay", stem)]
    if case.tokens == 1 and case.dtype != "float32":
        found += [_torch("kernel", "default"), _torch("kernel", "replay", "fxfuse-kernel")]
    found += [_onnx(form, mode) for form in ("plain", "fused") for mode in ("", "graph")]
    found += [_torch("plain", "graphs"), _torch("fused", "graphs")]
    if case.tokens in settings.autotuned:
        for form, stem in (("plain", "inductor"), ("fused", "fxfuse")):
            found += [_torch(form, "autotune"), _torch(form, "replay", f"{stem}-autotune")]
    shape = shape_of(case.model)
    small = shape is not None and shape.weights < LARGE
    others = ("optimizer", "onnxscript") if small else ("optimizer",)
    found += [_onnx(form, mode) for form in others for mode in ("", "graph")]
    if shape is None:
        found += [_torch("bound", "default"), _torch("bound", "replay", "bound")]
        found += [_onnx("bound"), _onnx("bound", "graph")]
    if settings.chosen:
        found += [_onnx("chosen"), _onnx("chosen", "graph")]
    return [*found, _torch("plain", "eager")]


def chosen_file(tokens: int, kind: str) -> str:
    """The name of a chosen form's file; what it computes lies beside it as NAME.npz."""
    return f"chosen-{tokens}.onnx" if kind == "float" else f"chosen-{kind}-{tokens}.onnx"


@dataclass(frozen=True)
class Pair:
    """Contestants that differ in the fusion: the best of one side over the best of the other, by round."""

    title: str
    unfused: tuple[str, ...]
    fused: tuple[str, ...]


def pairs(found: Sequence[Entry]) -> list[Pair]:
    """All ratios that make sense among these contestants."""
    made: list[Pair] = []

    def add(title: str, unfused: list[Entry], fused: list[Entry]) -> None:
        if unfused and fused:
            made.append(Pair(title, tuple(e.name for e in unfused), tuple(e.name for e in fused)))

    def pick(runtime: str, forms: Sequence[str], modes: Sequence[str], weights: str = "float") -> list[Entry]:
        return [
            e for e in found
            if e.runtime == runtime and e.form in forms and e.mode in modes and e.weights == weights
        ]  # fmt: skip

    plain, fused = ("plain",), ("fused",)
    for modes, title in (
        (("default",), "torch.compile"),
        (("autotune",), "max-autotune"),
        (("graphs",), "reduce-overhead"),
        (("graphs", "replay"), "torch.compile, CUDA graphs"),
    ):
        add(title, pick("torch", plain, modes), pick("torch", fused, modes))
        kernel = pick("torch", ("kernel",), modes)
        add(f"{title}, own kernels", pick("torch", plain, modes), kernel)
        add(f"{title}: own kernels beside inductor's", pick("torch", fused, modes), kernel)
        chosen = pick("torch", ("chosen",), modes)
        add(f"{title}, chosen", pick("torch", plain, modes), chosen)
        bound = pick("torch", ("bound",), modes)
        add(f"{title}, bound: FFNs removed", pick("torch", plain, modes), bound)
    for mode, title in (("", "ONNX Runtime"), ("graph", "ONNX Runtime, CUDA graph")):
        unfused = pick("onnx", UNFUSED, (mode,))
        add(title, unfused, pick("onnx", fused, (mode,)))
        add(f"{title}, chosen", unfused, pick("onnx", ("chosen",), (mode,)))
        add(f"{title}, bound: FFNs removed", unfused, pick("onnx", ("bound",), (mode,)))
    for kind in ("int8", "int4"):
        quantised = pick("onnx", fused, ("",), kind)
        add(f"ONNX Runtime {kind}", pick("onnx", UNFUSED, ("",), kind), quantised)
        add(
            f"ONNX Runtime {kind}, chosen",
            pick("onnx", UNFUSED, ("",), kind),
            pick("onnx", ("chosen",), ("",), kind),
        )
        add(f"fp32 unfused / {kind} fused", pick("onnx", UNFUSED, ("",)), quantised)
    graphs = ("graphs", "replay")
    if any(e.mode in graphs for e in found):
        best = pick("torch", plain, graphs) + pick("onnx", UNFUSED, ("graph",))
        own = pick("torch", ("fused", "kernel"), graphs) + pick("onnx", fused, ("graph",))
        add("best with CUDA graphs", best, own)
    return made


def ratio_of(pair: Pair, timings: Mapping[str, Timing]) -> Ratio | None:
    """The ratio of both sides' best, by round; None where a side was not timed.

    The best of a side is the contestant with the least median: the least of several noisy times in every
    round would flatter the side that has more contestants.
    """
    one, other = (_best(side, timings) for side in (pair.unfused, pair.fused))
    return Ratio.of(one, other) if one is not None and other is not None else None


def _best(names: Sequence[str], timings: Mapping[str, Timing]) -> Timing | None:
    there = [timings[name] for name in names if name in timings]
    return min(there, key=lambda each: each.p50_us, default=None)
