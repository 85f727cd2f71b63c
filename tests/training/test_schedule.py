from itertools import pairwise

import pytest

from landmark_retrieval.training.schedule import cosine_with_warmup


def test_rises_then_falls():
    values = [cosine_with_warmup(e / 10, 10) for e in range(101)]
    assert values[0] == 0
    assert values[5] == pytest.approx(0.5)
    assert max(values) == values[10] == 1
    assert values[55] == pytest.approx(0.5)
    assert values[100] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(values[10:]))


def test_no_warmup_starts_at_the_peak_and_beyond_the_horizon_is_zero():
    assert cosine_with_warmup(0, 10, 0) == 1
    assert cosine_with_warmup(11, 10) == 0
