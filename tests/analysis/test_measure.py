"""Every figure against the decoder's forward written by hand.

drift   sum of 1 - cos(x_q, x_a)            local error   x_a + sum f_i(x_a) against x_b
KL      the logits with a group fused, or with something left out, against the original's
"""

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from fxfuse.analysis.dependency import measure_dependency
from fxfuse.analysis.measure import Measurements
from fxfuse.analysis.states import slices
from fxfuse.calibration import Calibration
from fxfuse.errors import InputError
from fxfuse.frontends.torch_model import read_torch
from fxfuse.passes.attention import stream_updates
from tests.analysis.hand import ATTENTION, CHAINS, NAMES, cosine, forward, kl, tiny, windows

FIT, HELD = windows(6, 1), windows(5, 2)
SEGMENTS = [(0, 0, 1), (0, 0, 3), (0, 1, 3), (1, 0, 1)]


def near(value: float, relative: float = 1e-4) -> object:
    return pytest.approx(value, rel=relative, abs=1e-9)


def calibration(fit: torch.Tensor = FIT, held: torch.Tensor = HELD, size: int = 2) -> Calibration:
    parts = [tuple({"input_ids": rows} for rows in each.split(size)) for each in (fit, held)]
    return Calibration(*parts, source="random", seed=3)


@functools.cache
def front():
    return read_torch(tiny(), {"input_ids": FIT[:2]})


@pytest.fixture(scope="module")
def taken() -> Iterator[Measurements]:
    with Measurements(front(), calibration()) as measurements:
        yield measurements


def blocks(taken: Measurements, chain: int, first: int, last: int):
    return taken.chains[chain].blocks[first : last + 1]


def layers(chain: int, first: int, last: int) -> tuple[int, ...]:
    return CHAINS[chain][first : last + 1]


# What the fitting part tells


def test_the_chains_are_those_of_the_decoder(taken):
    assert [[block.name for block in chain.blocks] for chain in taken.chains] == NAMES
    assert [each.name for each in taken.attention] == [f"layers.{index}.self_attn" for index in ATTENTION]


@pytest.mark.parametrize("segment", SEGMENTS)
def test_drift(taken, segment):
    streams = forward(tiny(), FIT).streams
    first, *others = (streams[f"layers.{index}.mlp"] for index in layers(*segment))
    expected = sum(float((1 - cosine(each, first)).mean()) for each in others)
    assert expected > 1e-3
    assert taken.drift(*segment) == near(expected)


def test_cosines_of_attention(taken):
    found = forward(tiny(), FIT)
    for each, value in zip(taken.attention, taken.cosines(), strict=True):
        assert value == near(float(cosine(found.streams[each.name], found.ends[each.name]).mean()))


@pytest.mark.parametrize("segment", SEGMENTS)
def test_local_error(taken, segment):
    start, end = f"layers.{layers(*segment)[0]}.mlp", f"layers.{layers(*segment)[-1]}.mlp"
    true, hand = forward(tiny(), FIT), forward(tiny(), FIT, groups=[layers(*segment)])
    noise = float((hand.ends[end] - true.ends[end]).double().norm())
    signal = float((true.ends[end] - true.streams[start]).double().norm())
    error = taken.local_error(blocks(taken, *segment))
    assert error.relative_error == near(noise / float(true.ends[end].double().norm()))
    assert error.sqnr_db == near(20 * torch.tensor(signal / noise).log10().item())
    assert error.cosine == near(float(cosine(hand.ends[end], true.ends[end]).mean()), 1e-6)


def test_one_block_alone_has_no_error(taken):
    assert taken.local_error(blocks(taken, 0, 1, 1)).relative_error < 1e-6


# What the held-out part tells


@pytest.mark.parametrize("segment", SEGMENTS)
def test_kl_of_one_segment(taken, segment):
    changed = forward(tiny(), HELD, groups=[layers(*segment)])
    expected, error = kl(forward(tiny(), HELD).logits, changed.logits)
    found = taken.segment_kl(blocks(taken, *segment))
    assert expected > 1e-4
    assert (found.kl, found.standard_error) == (near(expected), near(error))
    assert found.tokens == HELD.numel()


@pytest.mark.parametrize("groups", [[(1, 2, 3, 4), (5, 6)], [(1, 2), (3, 4)], [(2, 3), (4,), (5, 6)]])
def test_kl_of_several_groups_of_several_chains(taken, groups):
    named = {block.name: block for chain in taken.chains for block in chain.blocks}
    own = [[named[f"layers.{index}.mlp"] for index in group] for group in groups]
    for part, ids in (("held_out", HELD), ("fit", FIT)):
        changed = forward(tiny(), ids, groups=groups).logits
        expected, error = kl(forward(tiny(), ids).logits, changed)
        found = taken.groups_kl(list(reversed(own)), part)
        assert (found.kl, found.standard_error) == (near(expected), near(error))


def test_nothing_changed_is_no_divergence(taken):
    assert taken.groups_kl([]).kl == 0.0


@pytest.mark.parametrize("names", [["layers.2.mlp"], ["layers.2.mlp", "layers.3.mlp", "layers.6.mlp"]])
def test_kl_of_blocks_left_out(taken, names):
    own = [block for chain in taken.chains for block in chain.blocks if block.name in names]
    expected, _ = kl(forward(tiny(), HELD).logits, forward(tiny(), HELD, names).logits)
    assert taken.removed_kl(own).kl == near(expected)


def test_kl_of_attention_and_a_single_block_left_out(taken):
    single = next(block for block in taken.blocks if block.name == "layers.0.mlp")
    expected, _ = kl(
        forward(tiny(), HELD).logits, forward(tiny(), HELD, ["layers.0.mlp", "layers.5.self_attn"]).logits
    )
    assert taken.removed_kl([taken.attention[2], single]).kl == near(expected)


def test_kl_of_each_attention_left_out(taken):
    for each, found in zip(taken.attention, taken.left_out_kls(taken.attention), strict=True):
        expected, error = kl(forward(tiny(), HELD).logits, forward(tiny(), HELD, [each.name]).logits)
        assert (found.kl, found.standard_error) == (near(expected), near(error))


def test_a_part_that_is_none(taken):
    with pytest.raises(ValueError, match="part is 'fit' or 'held_out'"):
        taken.groups_kl([], "test")


# The dependency matrix


def test_dependency():
    """M_ij = 1 - cos(h_j, h_j with update i left out)"""
    updates = stream_updates(front().view)
    names = [each.name for each in updates]
    found = measure_dependency(front(), updates, calibration().fit)
    true = forward(tiny(), FIT).added
    assert names == list(true)
    assert found.names == tuple(names)
    assert found.kinds == tuple("attention" if "attn" in name else "ffn" for name in names)
    for i, name in enumerate(names):
        added = forward(tiny(), FIT, [name]).added
        for j, other in enumerate(names):
            expected = float((1 - cosine(added[other], true[other])).mean()) if j > i else 0.0
            assert found.matrix[i][j] == pytest.approx(expected, rel=1e-4, abs=1e-6)


# Bounds


def test_states_that_do_not_fit_into_memory_change_nothing(taken):
    with Measurements(front(), calibration(), memory=4000) as bound:
        for segment in SEGMENTS:
            assert bound.drift(*segment) == near(taken.drift(*segment), 1e-6)
            own = blocks(taken, *segment)
            assert bound.local_error(own).sqnr_db == near(taken.local_error(own).sqnr_db, 1e-6)
            assert bound.segment_kl(own).kl == near(taken.segment_kl(own).kl, 1e-5)
        assert bound.store.bytes_in_memory <= 4000
        assert "temporary file" in (bound.store.note or "")


def test_kl_tokens_takes_some_batches_of_all():
    with Measurements(front(), calibration(), kl_tokens=24) as taken:
        found = taken.segment_kl(blocks(taken, 0, 0, 1))
        assert found.tokens == 24
        assert taken.groups_kl([blocks(taken, 0, 0, 1)]).tokens == HELD.numel()


def test_batches_are_cut_by_windows():
    batch = {"input_ids": windows(5), "attention_mask": torch.ones(5, 12)}
    assert [len(each["attention_mask"]) for each in slices([batch], 24)] == [2, 2, 1]
    assert [len(each["input_ids"]) for each in slices([batch], 1)] == [1] * 5
    assert slices([batch], 1000) == [batch]
    uneven = {"input_ids": windows(5), "table": torch.ones(3)}
    assert slices([uneven], 1) == [uneven]


# Padding


class Masked(nn.Module):
    """Takes a mask, which a causal decoder of right-padded windows need not read."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny()

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids)


def test_padding_counts_for_nothing():
    mask = torch.ones_like(FIT)
    mask[:, 8:] = 0
    garbage = torch.where(mask.bool(), FIT, (FIT + 7) % 50)
    padded = tuple({"input_ids": ids, "attention_mask": mask} for ids in (FIT, garbage))
    masked = read_torch(Masked().eval(), padded[0])
    for batch in padded:
        own = Calibration((batch,), (batch,), "padded", 0, ())
        short = calibration(FIT[:, :8], FIT[:, :8])
        with (
            Measurements(masked, own) as found,
            Measurements(front(), short) as expected,
        ):
            assert found.drift(0, 0, 2) == near(expected.drift(0, 0, 2))
            assert found.cosines() == [near(each) for each in expected.cosines()]
            ours, theirs = (blocks(each, 0, 0, 2) for each in (found, expected))
            assert found.local_error(ours).sqnr_db == near(expected.local_error(theirs).sqnr_db)
            assert found.segment_kl(ours).kl == near(expected.segment_kl(theirs).kl)
            assert found.segment_kl(ours).tokens == 48


# What cannot be measured


@pytest.fixture
def spoiled(request):
    """A front whose model has NaN in one weight."""
    model, found = spare()
    weight = model.get_parameter(request.param)
    kept = weight.clone()
    weight[0, 0] = float("nan")
    yield found
    weight.copy_(kept)


@functools.cache
def spare():
    model = tiny(seed=9)
    return model, read_torch(model, {"input_ids": FIT[:2]})


@pytest.mark.parametrize(
    ("spoiled", "where"),
    [
        ("layers.2.mlp.down_proj.weight", "layers.2.mlp"),
        ("layers.5.self_attn.o_proj.weight", "layers.5.self_attn"),
        ("lm_head.weight", "its logits"),
    ],
    indirect=["spoiled"],
)
def test_nan_is_told_with_the_layer_that_gives_it(spoiled, where):
    told = f"gives NaN or infinity at {where} on the calibration data"
    with Measurements(spoiled, calibration()) as taken, pytest.raises(InputError, match=told):
        _ = taken.fit, taken.held_out
