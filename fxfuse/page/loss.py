"""Loss against the length of a group: every segment measured at the logits, its prediction beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxfuse.analysis.records import ChainFacts, Segment
from fxfuse.page.names import run_label
from fxfuse.page.numbers import figure, known, with_error
from fxfuse.page.plot import Frame, axes, bars, dot, key, place_labels, ring
from fxfuse.page.scales import Linear, Log, log_over
from fxfuse.page.svg import drawing, group, path

__all__ = ["draw_loss", "names_of"]

_FEW = 80
"""Up to so many segments are joined with their predictions by a line and tell their figures."""


@dataclass(frozen=True)
class _Spot:
    """A segment and where it stands: pixels along x of what was measured and of the prediction."""

    segment: Segment
    names: tuple[str, ...]
    x: float
    predicted_x: float
    chosen: bool


def draw_loss(
    segments: Sequence[Segment],
    chains: Sequence[ChainFacts],
    chosen: Sequence[Sequence[str]] = (),
    narrow: bool = False,
) -> str:
    """KL (log) over the number of FFNs; each length has measured segments left, their predictions right."""
    shown = [s for s in segments if s.length > 1 and (known(s.kl) or known(s.predicted_kl))]
    frame = Frame(336, 330, 56, 328, 56, 280) if narrow else Frame(880, 400, 64, 868, 56, 350)
    lengths = [s.length for s in shown]
    x = Linear(min(lengths) - 0.5, max(lengths) + 0.5, frame.left, frame.right, whole=True)
    values = [v for s in shown for v in (s.kl, s.predicted_kl) if v is not None and known(v)]
    y = log_over(values, frame.bottom - 16, frame.top + 4, frame.bottom - 1)
    spots = _spots(shown, chains, {tuple(names) for names in chosen}, x)
    told = f"{len(shown)} segments of {min(lengths)} to {max(lengths)} FFNs, measured and predicted KL."
    parts = [
        *axes(frame, x, y, "FFNs in the group", "KL, nats/token (log)"),
        *key(frame, [("measured", "measured"), ("predicted", "predicted")], 18),
        *_between(lengths, x, frame),
        *(_mark(spot, y, frame, len(spots)) for spot in sorted(spots, key=lambda spot: spot.chosen)),
        *_labels(spots, y, frame),
    ]
    kind = "narrow" if narrow else "wide"
    return drawing(f"loss-{kind}", frame.width, frame.height, "Loss against group length", told, parts)


def names_of(segment: Segment, chains: Sequence[ChainFacts]) -> tuple[str, ...]:
    """The blocks of a segment; none where its chain is unknown."""
    blocks = chains[segment.chain].blocks if segment.chain < len(chains) else ()
    return blocks[segment.first : segment.last + 1]


def _spots(
    shown: Sequence[Segment], chains: Sequence[ChainFacts], chosen: set[tuple[str, ...]], x: Linear
) -> list[_Spot]:
    """Segments of one length lie side by side in order, within a third of the room of their length."""
    found = []
    for length in sorted({s.length for s in shown}):
        same = sorted((s for s in shown if s.length == length), key=lambda s: (s.chain, s.first))
        for place, s in enumerate(same):
            at = length - 0.3 + 0.35 * place / (len(same) - 1) if len(same) > 1 else length - 0.12
            names = names_of(s, chains)
            found.append(_Spot(s, names, x(at), x(at + 0.28), names in chosen))
    return found


def _between(lengths: Sequence[int], x: Linear, frame: Frame) -> list[str]:
    """Lines between the lengths, where there are few."""
    places = [x(length + 0.5) for length in range(min(lengths), max(lengths))]
    lines = ([(place, frame.top), (place, frame.bottom)] for place in places)
    return [path(line, class_="grid") for line in lines] if len(places) < 12 else []


def _mark(spot: _Spot, y: Log, frame: Frame, count: int) -> str:
    s, few = spot.segment, count <= _FEW
    radius = 1.8 if not few else 4.0 if frame.width > 400 else 3.0
    parts = []
    if few and s.kl is not None and s.predicted_kl is not None and known(s.kl) and known(s.predicted_kl):
        parts.append(path([(spot.x, y(s.kl)), (spot.predicted_x, y(s.predicted_kl))], class_="pair"))
    if s.predicted_kl is not None and known(s.predicted_kl):
        kind = "predicted" if few else "predicted many"
        parts.append(dot(spot.predicted_x, y(s.predicted_kl), kind, radius))
    if s.kl is not None and known(s.kl):
        parts.append(bars(spot.x, y, s.kl, s.kl_error, frame.bottom - 1))
        parts.append(dot(spot.x, y(s.kl), "measured", radius))
        parts += [ring(spot.x, y(s.kl), radius + 4)] if spot.chosen else []
    return group(parts, _told(spot) if few else None)


def _told(spot: _Spot) -> str:
    s = spot.segment
    where = run_label(spot.names) if spot.names else f"{s.first + 1}–{s.last + 1}"
    return f"{where}: measured {with_error(s.kl, s.kl_error)}, predicted {figure(s.predicted_kl)} nats/token"


def _labels(spots: Sequence[_Spot], y: Log, frame: Frame) -> list[str]:
    """The chosen groups by their layers, and the longest segments of all."""
    measured = [spot for spot in spots if known(spot.segment.kl) and spot.names]
    longest = max((spot.segment.length for spot in measured), default=0)
    order = sorted(measured, key=lambda spot: not spot.chosen)
    named = [spot for spot in order if spot.chosen or spot.segment.length == longest]
    wanted = [(spot.x, y(spot.segment.kl or 0.0), run_label(spot.names, 14)) for spot in named]
    points = [(spot.x, y(spot.segment.kl or 0.0)) for spot in measured]
    predictions = [(spot.predicted_x, y(spot.segment.predicted_kl or 0.0)) for spot in spots]
    return place_labels(wanted[:40], frame, points + predictions)
