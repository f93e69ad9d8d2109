"""Activations: the same bits from memory and from the disk, within the bound, and nothing left behind."""

import errno
import os
import random
from pathlib import Path

import pytest
import torch

from fxfuse.calibration import Activations
from fxfuse.calibration import store as module
from fxfuse.errors import InputError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("bound", [0, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_comes_back_bit_for_bit(bound, dtype):
    with Activations(bound) as kept:
        for batch, shape in enumerate([(3, 5, 7), (1,), (), (0, 4)]):
            tensor = (torch.randn(shape) * 100).to(dtype)
            kept.put("x", batch, tensor)
            found = kept.get("x", batch)
            assert found.dtype == dtype
            assert found.shape == tensor.shape
            assert torch.equal(found, tensor)
        assert (kept.bytes_written > 0) == (bound == 0)


def test_transposed_tensors_and_parts_of_larger_ones_are_kept_as_what_they_show():
    whole = torch.randn(40, 50)
    for bound in (0, 1 << 20):
        with Activations(bound) as kept:
            kept.put("transposed", 0, whole.T)
            kept.put("part", 0, whole[3:5])
            assert torch.equal(kept.get("transposed", 0), whole.T)
            assert torch.equal(kept.get("part", 0), whole[3:5])
            assert kept.get("part", 0).untyped_storage().nbytes() == 2 * 50 * 4


def test_only_what_is_beyond_the_bound_goes_to_the_disk():
    with Activations(1000) as kept:
        for batch in range(5):
            kept.put("x", batch, torch.full((100,), batch, dtype=torch.float32))
        assert (kept.bytes_in_memory, kept.bytes_on_disk, kept.bytes_written) == (800, 1200, 1200)
        assert [float(kept.get("x", batch).mean()) for batch in range(5)] == [0, 1, 2, 3, 4]
        assert kept.note is not None
        assert kept.note.startswith("1.2 kB of activations went to a temporary file in ")
        assert kept.note.endswith(", beyond the 1.0 kB allowed in memory.")


def test_gradients_are_not_kept():
    with Activations() as kept:
        kept.put("x", 0, torch.ones(3, requires_grad=True) * 2)
        assert not kept.get("x", 0).requires_grad
        assert kept.note is None


def test_dropped_keys_free_their_room():
    with Activations(400) as kept:
        for key in ("a", "b", "c"):
            for batch in range(2):
                kept.put(key, batch, torch.ones(50))
        size = os.fstat(kept._file.fileno()).st_size
        for key in ("a", "b"):
            kept.drop(key)
            assert (key, 0) not in kept
            with pytest.raises(KeyError):
                kept.get(key, 0)
        kept.drop("never there")
        assert (kept.bytes_in_memory, kept.bytes_on_disk) == (0, 400)
        for key in ("d", "e"):
            for batch in range(2):
                kept.put(key, batch, torch.full((50,), 7.0))
        assert (kept.bytes_in_memory, kept.bytes_on_disk) == (400, 800)
        assert os.fstat(kept._file.fileno()).st_size == size
        assert float(kept.get("c", 1).sum()) == 50


def test_what_was_read_stays_when_its_room_is_used_again():
    with Activations(0) as kept:
        kept.put("a", 0, torch.zeros(1000))
        read = kept.get("a", 0)
        kept.drop("a")
        kept.put("b", 0, torch.ones(1000))
        assert not read.any()


def test_a_key_that_is_put_again_is_replaced():
    for bound in (0, 10_000):
        with Activations(bound) as kept:
            for value in range(3):
                kept.put("x", 0, torch.full((10 + value,), value))
            assert kept.get("x", 0).tolist() == [2] * 12
            assert kept.bytes_in_memory + kept.bytes_on_disk == 96


def test_a_long_run_of_puts_and_drops_mixes_nothing_up():
    draw, kept_there = random.Random(0), {}
    with Activations(5000) as kept:
        for step in range(2000):
            key = draw.randrange(30)
            if draw.random() < 0.3:
                kept.drop(key)
                kept_there.pop(key, None)
            else:
                kept_there[key] = torch.full((draw.randrange(1, 300),), step, dtype=torch.int32)
                kept.put(key, 0, kept_there[key])
            assert kept.bytes_in_memory <= 5000
            assert kept.bytes_in_memory + kept.bytes_on_disk == sum(
                each.nbytes for each in kept_there.values()
            )
        assert all(torch.equal(kept.get(key, 0), tensor) for key, tensor in kept_there.items())
        assert kept._end <= 30 * 1200 * 2


def open_in(folder: Path) -> list[str]:
    links = (f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.islink(link) and str(folder) in os.readlink(link)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at Linux's list of open files")
def test_nothing_is_left_behind_also_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), Activations(0, tmp_path) as kept:
        kept.put("x", 0, torch.ones(1000))
        assert list(tmp_path.iterdir()) == []  # the file has no name, for those who are killed
        assert len(open_in(tmp_path)) == 1
        _ = 1 / 0
    assert open_in(tmp_path) == []
    assert kept.bytes_on_disk == 0
    with pytest.raises(KeyError):
        kept.get("x", 0)


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    with Activations(0, tmp_path / "gone") as kept, pytest.raises(InputError) as told:
        kept.put("x", 0, torch.ones(3))
    assert "gone, which takes activations beyond the memory bound of 0 bytes, cannot be written" in str(
        told.value
    )


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    class Full:
        def seek(self, _offset): ...

        def close(self): ...

        def write(self, _data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_open", lambda _folder: Full())
    with (
        Activations(0, tmp_path) as kept,
        pytest.raises(InputError, match="is full: allow more memory, or set"),
    ):
        kept.put("x", 0, torch.ones(3))
    assert kept.bytes_on_disk == 0


def test_a_bound_below_zero_is_refused():
    with pytest.raises(InputError, match="The memory bound must be 0 bytes or more, not -1"):
        Activations(-1)
