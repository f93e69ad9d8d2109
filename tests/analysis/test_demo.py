"""The trained demo model: predictions rank its groups as the measured KL does."""

from dataclasses import replace

import pytest

import fxfuse
from fxfuse.analysis.prediction import predict, rank_correlations
from models import load_demo
from models.corpus import held_out


@pytest.mark.slow
def test_predictions_rank_all_groups_of_the_demo_model():
    options = {"dependency": True, "attention": False, "kl_tokens": 4096, "held_out": 0.5, "batch_size": 16}
    found = fxfuse.analyze(load_demo(), held_out(8192), **options)
    assert found.chains[0].blocks == tuple(f"layers.{index}.mlp" for index in range(4, 11))
    assert len(found.segments) == 21
    ranks = rank_correlations(found.segments)
    assert ranks["predicted_kl"] >= 0.95
    assert ranks["relative_error"] >= 0.95
    assert ranks["drift"] >= 0.95
    assert ranks["dependency"] >= 0.93
    pairs = [replace(each, kl=each.kl if each.length in (2, 7) else None) for each in found.segments]
    for guess, each in zip(predict(pairs), found.segments, strict=True):
        assert guess.predicted_kl is not None
        assert each.kl is not None
        assert 2 / 3 < guess.predicted_kl / each.kl < 3 / 2
