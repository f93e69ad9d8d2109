"""How little each attention matters: the loss without it, and how little it turns the stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxfuse.analysis.records import AttentionScore
from fxfuse.page.names import numbers_of
from fxfuse.page.numbers import figure, known, with_error
from fxfuse.page.plot import Frame, axes, bars, dot, place_labels
from fxfuse.page.scales import Linear, Scale, log_over
from fxfuse.page.svg import drawing, group

__all__ = ["draw_attention"]

_HEIGHT = 216
_FEW = 16
"""Up to so many attentions the axis names them all."""


class _Layers:
    """The x axis: one place for each attention, labelled by its layer's number."""

    def __init__(self, scores: Sequence[AttentionScore], frame: Frame) -> None:
        self._labels = numbers_of([score.name for score in scores])
        self._linear = Linear(-0.5, len(scores) - 0.5, frame.left, frame.right)

    def __call__(self, value: float) -> float:
        return self._linear(value)

    def ticks(self) -> list[tuple[float, str]]:
        """A tick for each layer; what would touch its neighbour is left out where they are drawn."""
        return [(self(place), text) for place, text in enumerate(self._labels)]


def draw_attention(scores: Sequence[AttentionScore], narrow: bool = False) -> str:
    """Panels below each other with one x axis: KL without the attention, and 1 - cosine."""
    panels: list[tuple[str, Callable[[AttentionScore], float | None]]] = []
    if any(known(score.kl) for score in scores):
        panels.append(("KL without it, nats/token (log)", lambda score: score.kl))
    if any(known(score.cosine) for score in scores):
        panels.append(("1 − cosine of the stream before and after (log)", lambda score: _turn(score)))
    width = 336 if narrow else 880
    parts = [
        part
        for number, (title, value) in enumerate(panels)
        for part in _panel(scores, title, value, _frame(width, number))
    ]
    kind = "narrow" if narrow else "wide"
    told = f"{len(scores)} attentions in order. {_extremes(scores)}"
    height = max(1, len(panels)) * (_HEIGHT + 30)
    return drawing(f"attention-{kind}", width, height, "Importance of each attention", told, parts)


def _frame(width: int, number: int) -> Frame:
    top = 30 + number * (_HEIGHT + 30)
    return Frame(width, _HEIGHT, 56, width - 8, top, top + _HEIGHT - 48)


def _turn(score: AttentionScore) -> float | None:
    return max(0.0, 1 - score.cosine) if known(score.cosine) else None


def _panel(
    scores: Sequence[AttentionScore],
    title: str,
    value: Callable[[AttentionScore], float | None],
    frame: Frame,
) -> list[str]:
    x = _Layers(scores, frame)
    found = [(place, score, value(score)) for place, score in enumerate(scores)]
    points = [(place, score, v) for place, score, v in found if v is not None and known(v)]
    y = log_over([v for *_, v in points], frame.bottom - 14, frame.top + 4, frame.bottom - 1)
    radius = 4.5 if (frame.right - frame.left) / len(scores) > 12 else 2.5
    parts = axes(frame, x, y, "layer", title)
    for place, score, v in points:
        error = score.kl_error if v == score.kl else None
        parts.append(_mark(x(place), y, v, error, score, radius, frame))
    return parts + (_named(points, x, y, frame) if len(scores) > _FEW else [])


def _mark(
    x: float, y: Scale, value: float, error: float | None, score: AttentionScore, radius: float, frame: Frame
) -> str:
    told = f"{score.name}: KL {with_error(score.kl, score.kl_error)}, cosine {figure(score.cosine, 5)}"
    return group([bars(x, y, value, error, frame.bottom - 1), dot(x, y(value), "measured", radius)], told)


def _named(
    points: Sequence[tuple[int, AttentionScore, float]], x: Scale, y: Scale, frame: Frame
) -> list[str]:
    """The layers that matter least and most, by their numbers."""
    numbers = numbers_of([score.name for _, score, _ in points])
    order = sorted(range(len(points)), key=lambda place: points[place][2])
    taken = [(x(place), y(v)) for place, _, v in points]
    chosen = dict.fromkeys([*order[:3], *order[-1:]])
    wanted = [(*taken[place], numbers[place]) for place in chosen]
    return place_labels(wanted, frame, taken)


def _extremes(scores: Sequence[AttentionScore]) -> str:
    measured = [score for score in scores if known(score.kl)]
    if not measured:
        return ""
    least, most = (f(measured, key=lambda score: score.kl or 0.0) for f in (min, max))
    return (
        f"Least loss without {least.name} ({figure(least.kl)}), most without {most.name} ({figure(most.kl)})."
    )
