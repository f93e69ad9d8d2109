"""Mutations of a file's bytes, at random and at the places where protobuf keeps tags, lengths and numbers."""

from __future__ import annotations

from random import Random

__all__ = ["mutate_bytes", "places"]

_WHOLE = 512
"""Fields longer than this that are no message are weights: their inside is not looked at."""


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Some bytes changed, lost, doubled or moved; half of the mutations aim at the structure."""
    changed = bytearray(data)
    aimed = places(data) if rng.random() < 0.7 else []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if not changed:
            break
        at = rng.choice(aimed) if aimed else rng.randrange(len(changed))
        rng.choice(_MUTATIONS)(changed, min(at, len(changed) - 1), rng)
    return bytes(changed)


def places(data: bytes) -> list[int]:
    """Offsets of every tag, length and short content of a serialized message, its messages included."""
    found: list[int] = []
    _walk(data, 0, len(data), found)
    return found


def _walk(data: bytes, start: int, stop: int, found: list[int]) -> bool:
    """Collect the places of the message in data[start:stop]; False where it is none."""
    own, at = [], start
    while at < stop:
        tag, after = _varint(data, at, stop)
        own.append(at)
        kind, number = tag & 7, tag >> 3
        if after < 0 or not 0 < number < 64 or kind not in (0, 1, 2, 5):
            return False
        at = after
        if kind == 0:
            own.append(at)
            _, at = _varint(data, at, stop)
        elif kind == 2:
            own.append(at)
            length, at = _varint(data, at, stop)
            if at < 0 or at + length > stop:
                return False
            if not _walk(data, at, at + length, own) and length <= _WHOLE:
                own += range(at, at + length, 3)
            at += length
        else:
            own.append(at)
            at += 8 if kind == 1 else 4
        if at < 0:
            return False
    found += own
    return True


def _varint(data: bytes, at: int, stop: int) -> tuple[int, int]:
    """The number at `at` and where it ends; -1 where it does not."""
    value = shift = 0
    while at < stop and shift < 64:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at
    return 0, -1


def _flip(data: bytearray, at: int, rng: Random) -> None:
    data[at] ^= 1 << rng.randrange(8)


def _set(data: bytearray, at: int, rng: Random) -> None:
    data[at] = rng.choice((0, 1, 2, 7, 127, 128, 255, rng.randrange(256)))


def _cut(data: bytearray, at: int, rng: Random) -> None:
    del data[at:]


def _drop(data: bytearray, at: int, rng: Random) -> None:
    del data[at : at + rng.choice((1, 2, 8, 64, 4096))]


def _double(data: bytearray, at: int, rng: Random) -> None:
    data[at:at] = data[at : at + rng.choice((1, 2, 8, 64, 4096))]


def _splice(data: bytearray, at: int, rng: Random) -> None:
    source, size = rng.randrange(len(data)), rng.choice((1, 4, 16, 256))
    data[at : at + size] = data[source : source + size]


def _blank(data: bytearray, at: int, rng: Random) -> None:
    size = rng.choice((4, 64, 4096))
    data[at : at + size] = bytes([rng.choice((0, 255))]) * len(data[at : at + size])


_MUTATIONS = [_flip, _flip, _flip, _set, _set, _cut, _drop, _double, _splice, _blank]
