"""Samples of tensors: any write over all of a tensor shows, whatever its type and layout."""

import contextlib

import pytest
import torch

from fxfuse import samples as module
from fxfuse.samples import EVERY, Samples

KINDS = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.complex64]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("shape", [(3,), (40,), (2, 3), (64, 48), (48, 64, 2)])
def test_a_write_over_a_tensor_shows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = [torch.ones(shape, dtype=dtype), torch.ones(shape, dtype=dtype).mT if len(shape) == 2 else None]
    for tensor in tensors:
        if tensor is not None:
            samples = Samples([torch.zeros(5), tensor, torch.empty(0)])
            assert not samples.differ()
            tensor.data.add_(1)
            assert samples.differ()
            tensor.data.sub_(1)
            assert not samples.differ()


def test_parts_of_larger_tensors() -> None:
    whole = torch.zeros(32, 100)
    samples = Samples([whole[4:20, 30:60]])
    whole[:4] = 1
    whole[:, :30] = 1
    whole[:, 60:] = 1
    assert not samples.differ()
    whole[4:20, 30:60] = 1
    assert samples.differ()


def test_nan_is_equal_to_itself() -> None:
    assert not Samples([torch.full((4, 4), float("nan"))]).differ()


def test_no_tensors() -> None:
    assert not Samples([]).differ()


class Event:
    """An event of a GPU that is `behind` so many questions."""

    behind = 0
    records = 0

    def record(self) -> None:
        Event.records += 1
        self.left = Event.behind

    def query(self) -> bool:
        self.left -= 1
        return self.left < 0


def on_a_gpu(tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch, *, behind: int) -> module._Away:
    """Samples of a tensor that is taken for one on a GPU."""
    monkeypatch.setattr(Event, "behind", behind)
    monkeypatch.setattr(Event, "records", 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(module, "_pinned", lambda: torch.zeros((), dtype=torch.bool))
    return module._Away(torch.device("cuda"), [module._view(tensor)])


@pytest.mark.parametrize("behind", [0, 3, 40])
def test_a_gpu_answers_at_a_later_call(behind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    away = on_a_gpu(tensor := torch.zeros(64, 48), monkeypatch, behind=behind)
    tensor.data.add_(1)
    answers = [away.differ() for _ in range(EVERY + behind + 1)]
    assert answers == [False] * (EVERY + behind) + [True]
    assert Event.records == 1


def test_a_gpu_is_asked_at_every_sixteenth_call(monkeypatch: pytest.MonkeyPatch) -> None:
    away = on_a_gpu(torch.zeros(64, 48), monkeypatch, behind=0)
    assert not any(away.differ() for _ in range(10 * EVERY))
    assert Event.records == 10


def test_nothing_is_asked_while_a_stream_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    away = on_a_gpu(tensor := torch.zeros(64, 48), monkeypatch, behind=0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tensor.data.add_(1)
    assert not any(away.differ() for _ in range(3 * EVERY))
    assert Event.records == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_asked_seldom_and_never_waited_for() -> None:
    tensor = torch.zeros(64, 48, dtype=torch.bfloat16, device="cuda")
    samples = Samples([tensor, torch.zeros(40, device="cuda")])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert not any(samples.differ() for _ in range(3 * EVERY))
        tensor.data.add_(1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            assert not any(samples.differ() for _ in range(3 * EVERY))
        found = []
        for _ in range(2 * EVERY):
            found.append(samples.differ())
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        assert True in found[: EVERY + 1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
