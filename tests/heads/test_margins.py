import json

import numpy as np
import pytest

from landmark_retrieval.heads import dynamic_margins


def test_equal_to_the_reference(golden):
    for case in json.loads((golden / "training_formulas" / "expected.json").read_text())["dynamic_margins"]:
        margins = dynamic_margins(case["counts"], case["margin_scale"], case["margin_offset"])
        np.testing.assert_allclose(margins, case["margins"], atol=1e-12, rtol=0)


def test_classes_without_images_get_the_largest_margin_and_move_nothing():
    with_missing, without = dynamic_margins([0, 3, 300, 0]), dynamic_margins([3, 300])
    assert with_missing[[0, 3]] == pytest.approx(0.5)
    np.testing.assert_array_equal(with_missing[[1, 2]], without)


@pytest.mark.parametrize("counts", [[7, 7, 7], [1], [0, 0], [5, 0, 5]])
def test_no_spread_is_no_nan(counts):
    margins = dynamic_margins(counts)
    assert ((margins >= 0.05) & (margins <= 0.5)).all()


@pytest.mark.parametrize("counts", [[], [3, -1], [[1, 2]], [1, float("nan")]])
def test_wrong_counts(counts):
    with pytest.raises(ValueError, match=r"class_counts|negative"):
        dynamic_margins(counts)
