"""Computations in steps: what is there is read, what is missing is computed, what is damaged is named."""

import numpy as np
import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.steps import collected, digest, in_steps


class Work:
    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def __call__(self, start, stop):
        if start == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((start, stop))
        return {"squares": np.arange(start, stop) ** 2, "names": np.array([f"photo {i}" for i in range(start, stop)])}


def test_an_interrupted_computation_goes_on_where_it_stopped(tmp_path):
    first = Work(stop_at=6)
    with pytest.raises(KeyboardInterrupt):
        collected(in_steps(tmp_path / "some" / "where", 10, 3, first, "count"))
    assert first.calls == [(0, 3), (3, 6)]
    second = Work()
    found = collected(in_steps(tmp_path / "some" / "where", 10, 3, second, "count"))
    assert second.calls == [(6, 9), (9, 10)]
    assert found["squares"].tolist() == [i * i for i in range(10)]
    assert found["names"].tolist() == [f"photo {i}" for i in range(10)]
    third = Work()
    again = collected(in_steps(tmp_path / "some" / "where", 10, 3, third, "count"))
    assert third.calls == []
    np.testing.assert_array_equal(again["squares"], found["squares"])


def test_a_damaged_file_is_named(tmp_path):
    collected(in_steps(tmp_path, 4, 2, Work(), "count"))
    file = sorted(tmp_path.glob("*.npz"))[1]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(LandmarkRetrievalError, match=f"{file.name} is damaged"):
        collected(in_steps(tmp_path, 4, 2, Work(), "count"))


def test_a_digest_changes_with_every_fact():
    assert digest(1, {"a": [2, 3], "b": 4}) == digest(1, {"b": 4, "a": [2, 3]})
    assert len({digest(1, 2), digest(1, 3), digest([1, 2]), digest("1", 2), digest(2, 1)}) == 5
