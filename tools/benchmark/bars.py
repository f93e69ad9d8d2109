"""What a run has to reach, and what it reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["bars"]

Record = Mapping[str, Any]

NEVER_UNDER = 0.98


def bars(run: Record) -> list[tuple[str, str, str]]:
    """Each bar of the run's device, what was measured, and "yes", "no" or "not measured"."""
    cases = [case for case in run["cases"] if case["timings"]]
    return list(_on_cuda(run, cases) if run["device"] == "cuda" else _on_cpu(run, cases))


def _on_cpu(run: Record, cases: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    one = {case["model"]: case for case in cases if case["tokens"] == 1}
    wanted = (
        ("ONNX Runtime fp32", ("ONNX Runtime", "ONNX Runtime, chosen"), {256: 1.3, 1024: 1.05}),
        ("ONNX Runtime int4", ("ONNX Runtime int4", "ONNX Runtime int4, chosen"), {256: 2.0, 1024: 1.2}),
        ("int4 fused over fp32 unfused", ("fp32 unfused / int4 fused",), {256: 3.0, 1024: 4.5, 2048: 4.5}),
        ("torch.compile over inductor", ("torch.compile", "torch.compile, chosen"), {256: 1.3}),
    )
    for text, pairs, least in wanted:
        for hidden, bar in least.items():
            found = _best_ratio(one.get(f"chain-{hidden}"), pairs)
            yield _told(f"{text}, 8 FFNs, hidden {hidden}, one token", bar, found, "{:.2f}")
    share = _best_share(run, one.get("chain-2048"), lambda name: name in ("onnx-fused", "onnx-chosen"))
    yield _told(
        "ONNX Runtime fp32, hidden 2048, one token: share of the read bandwidth", 0.9, share, "{:.0%}"
    )
    yield _worst(cases, ("ONNX Runtime, chosen", "ONNX Runtime int4, chosen", "torch.compile, chosen"))


def _on_cuda(run: Record, cases: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    for dtype in ("float16", "bfloat16"):
        one = {c["model"]: c for c in cases if c["tokens"] == 1 and c["dtype"] == dtype}
        for hidden in (1024, 2048):
            found = _best_ratio(one.get(f"chain-{hidden}"), ("best with CUDA graphs",))
            text = f"the best with CUDA graphs, 8 FFNs, hidden {hidden}, {dtype}, one token"
            yield _told(text, 1.5, found, "{:.2f}")
        share = _best_share(run, one.get("chain-4096"), lambda name: "fused" in name or "fxfuse" in name)
        yield _told(f"hidden 4096, {dtype}, one token: share of the copy bandwidth", 0.85, share, "{:.0%}")
    yield _worst(cases, ("best with CUDA graphs",))


def _told(text: str, bar: float, found: float | None, form: str) -> tuple[str, str, str]:
    at_least = f"{text}: at least {form.format(bar)}"
    if found is None:
        return at_least, "", "not measured"
    return at_least, form.format(found), "yes" if found >= bar else "no"


def _best_ratio(case: Record | None, pairs: Sequence[str]) -> float | None:
    found = [case["ratios"][pair]["median"] for pair in pairs if pair in case["ratios"]] if case else []
    return max(found, default=None)


def _best_share(run: Record, case: Record | None, wanted: Callable[[str], bool]) -> float | None:
    timings = case["timings"].items() if case else ()
    found = [timing["share"] for name, timing in timings if wanted(name) and timing["share"] is not None]
    return max(found, default=None)


def _worst(cases: Sequence[Record], pairs: Sequence[str]) -> tuple[str, str, str]:
    """The smallest ratio anywhere; where fxfuse declined, what it gives is the unfused form."""
    found = [
        (case["ratios"][pair]["median"], f"{case['name']}, {pair}")
        for case in cases
        for pair in pairs
        if pair in case["ratios"]
    ]
    text = f"never under {NEVER_UNDER:g} anywhere"
    if not found:
        return text, "", "not measured"
    least, where = min(found)
    count = f"{len(found)} ratios, {sum(ratio < NEVER_UNDER for ratio, _ in found)} under"
    return text, f"{least:.2f} ({where}); {count}", "yes" if least >= NEVER_UNDER else "no"
