"""KL(original || changed) = sum p (log p - log q), mean over tokens, its standard error over windows."""

import math

import pytest
import torch

from fxfuse import divergence
from fxfuse.divergence import MAX_KL, Divergence, DivergenceMeter


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def measured(*pairs: tuple[torch.Tensor, ...]) -> Divergence:
    meter = DivergenceMeter()
    for pair in pairs:
        meter.add(*pair)
    return meter.result()


@pytest.mark.parametrize("at_once", [1 << 23, 30, 1])
def test_mean_and_standard_error(monkeypatch, at_once):
    monkeypatch.setattr(divergence, "_AT_ONCE", at_once)
    p, q = logits(4, 6, 9), logits(4, 6, 9, seed=1)
    means = by_hand(p, q).mean(-1)
    found = measured((p[:3], q[:3]), (p[3:], q[3:]))
    assert found.kl == pytest.approx(float(means.mean()))
    assert found.standard_error == pytest.approx(float(means.std()) / 2)
    assert found.windows == pytest.approx(means.tolist())
    assert found.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.tokens == 24


def test_windows_of_other_lengths_count_by_their_tokens():
    pairs = [(logits(1, n, 5, seed=n), logits(1, n, 5, seed=n + 9)) for n in (2, 6)]
    expected = torch.cat([by_hand(*pair).flatten() for pair in pairs]).mean()
    assert measured(*pairs).kl == pytest.approx(float(expected))


def test_masked_tokens_count_for_nothing():
    p, q = logits(3, 4, 5), logits(3, 4, 5, seed=1)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    found = measured((p, q, mask))
    assert found.kl == pytest.approx(float(by_hand(p, q)[mask].mean()))
    assert (found.tokens, len(found.windows)) == (6, 2)
    assert measured((p[:, 0], q[:, 0], mask)).tokens == 3  # logits of the last token alone


def test_a_class_that_the_original_rules_out_counts_for_nothing():
    p, q = logits(1, 3, 5), logits(1, 3, 5, seed=1)
    p[..., 2] = -math.inf
    kept = [0, 1, 3, 4]
    log_p, log_q = p.double().log_softmax(-1)[..., kept], q.double().log_softmax(-1)[..., kept]
    assert measured((p, q)).kl == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    q[..., 2] = -math.inf
    assert measured((p, q)).kl == pytest.approx(float(by_hand(p[..., kept], q[..., kept]).mean()))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_model_that_breaks_is_not_taken_for_a_perfect_one(value):
    p, q = logits(2, 3, 5), logits(2, 3, 5)
    q[0, 1, 2] = value
    found = measured((p, q))
    assert found.windows == (MAX_KL, 0.0)
    assert found.kl == MAX_KL / 2


def test_nothing_gathered():
    found = DivergenceMeter().result()
    assert math.isnan(found.kl)
    assert found.tokens == 0


def test_one_window_has_no_standard_error():
    assert math.isnan(measured((logits(3, 5), logits(3, 5, seed=1))).standard_error)
    assert str(measured((logits(3, 5), logits(3, 5)))) == "KL 0 ± nan nats on 3 tokens"
