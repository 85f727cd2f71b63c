"""Ranks of the positives among distractors, against a full sort and the functional core."""

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics.functional import revisited_average_precision, revisited_from_positions
from landmark_retrieval.metrics.functional.revisited import SETUPS, count_positives
from landmark_retrieval.retrieval.revisited import open_distractors, rank_positives
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter
from landmark_retrieval.retrieval.store_rows import StoreRows


def benchmark(seed, queries=9, images=40, distractors=(70, 1, 33)):
    """Descriptors of few small integers, so that products are exact and many scores are equal."""
    rng = np.random.default_rng(seed)

    def rows(count):
        return rng.integers(-2, 3, (count, 4)).astype(np.float32)

    relevant = []
    for _ in range(queries):
        drawn = rng.permutation(images).tolist()
        easy, hard, junk = rng.integers(0, 6, 3)
        relevant.append(
            {"easy": drawn[:easy], "hard": drawn[easy : easy + hard], "junk": drawn[20 : 20 + junk]},
        )
    relevant[0] = {"easy": [3], "hard": [], "junk": []}
    return rows(queries), rows(images), relevant, [rows(count) for count in distractors]


def full_sort(queries, database, distractors):
    scores = queries @ np.concatenate([database, *distractors]).T
    return np.argsort(-scores, axis=1, kind="stable")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk", [(256, 16384), (2, 7)])
def test_figures_are_those_of_a_full_sort(seed, chunk):
    queries, database, relevant, distractors = benchmark(seed)
    for others in (distractors, []):
        wanted = revisited_average_precision(full_sort(queries, database, others), relevant)
        found = rank_positives(queries, database, np.arange(len(database)), relevant, others, chunk)
        for setup in SETUPS:
            counts = [count_positives(query, truth, setup) for query, truth in enumerate(relevant)]
            judged = revisited_from_positions(found[setup], counts)
            np.testing.assert_equal(judged, wanted[setup])  # to the bit; NaN where a query has no positives


def test_distractors_push_positives_down_but_not_on_a_tie():
    queries = np.array([[1, 0]], np.float32)
    database = np.array([[0.5, 0], [0.75, 0], [0.25, 0], [0.5, 0]], np.float32)
    relevant = [{"easy": [0], "hard": [3], "junk": [1]}]
    distractors = [np.array([[0.5, 0], [0.5, 1]], np.float32), np.array([[0.625, 0], [0.125, 0]], np.float32)]
    found = rank_positives(queries, database, np.arange(4), relevant, distractors)
    assert [row.tolist() for row in found["medium"]] == [[1, 2]]
    assert [row.tolist() for row in found["easy"]] == [[1]]
    assert [row.tolist() for row in found["hard"]] == [[1]]


def test_images_that_were_left_out_are_not_found(tmp_path):
    queries, database, relevant, distractors = benchmark(7)
    rows = np.array([row for row in range(len(database)) if row not in (3, *relevant[1]["hard"][:1])])
    with DescriptorWriter(tmp_path / "store", {"model": "m"}, part_size=16) as writer:
        order = rows[::-1]  # a store in another order
        writer.append([f"i{row}" for row in order], database[order])
    store = DescriptorStore.open(tmp_path / "store")
    stored = StoreRows(store, np.arange(len(rows))[::-1])
    found = rank_positives(queries, stored, rows, relevant, distractors)
    assert found["easy"][0].tolist() == []
    ranking = [
        [row for row in ranked if row >= len(database) or row in rows]
        for ranked in full_sort(queries, database, distractors).tolist()
    ]
    for query, truth in enumerate(relevant):
        for setup, (right, ignored) in SETUPS.items():
            kept = [row for row in ranking[query] if not any(row in truth[name] for name in ignored)]
            wanted = [place for place, row in enumerate(kept) if any(row in truth[name] for name in right)]
            assert found[setup][query].tolist() == wanted


def test_memory_does_not_grow_with_the_distractors():
    class Endless:
        """Many distractors of which there is never more than a block."""

        ndim, shape = 2, (2_000_000, 4)
        largest = 0

        def __len__(self):
            return self.shape[0]

        def __getitem__(self, rows):
            start, stop, _ = rows.indices(len(self))
            Endless.largest = max(Endless.largest, stop - start)
            block = np.zeros((stop - start, 4), np.float32)
            block[(np.arange(start, stop) % 1000) == 0, 0] = 9
            return block

    queries, database, relevant, _ = benchmark(3, queries=2)
    queries[:] = [1, 0, 0, 0]
    plain = rank_positives(queries, database, np.arange(len(database)), relevant)
    found = rank_positives(queries, database, np.arange(len(database)), relevant, [Endless()])
    assert Endless.largest <= 16384
    beaten = database @ queries[0]
    for query, truth in enumerate(relevant):
        assert (found["medium"][query] >= plain["medium"][query] + 2000).all()
        above = [row for row in truth["easy"] + truth["hard"] if beaten[row] >= 0]
        assert (found["medium"][query][: len(above)] == plain["medium"][query][: len(above)] + 2000).all()


def stores(folder, names, card, suffix=""):
    with DescriptorWriter(folder, card) as writer:
        writer.append([f"{name}{suffix}" for name in names], torch.eye(len(names)))
    return folder


def test_distractors_of_another_model_or_with_known_photos(tmp_path):
    card = {"model": "m", "image_size": 64}
    first = stores(tmp_path / "first", "ab", card)
    second = stores(tmp_path / "second", "cd", card)
    taken = {"the queries": ["q"], "the database": ["x", "y"]}
    assert [store.ids for store in open_distractors([first, second], card, taken)] == [["a", "b"], ["c", "d"]]
    other = stores(tmp_path / "other", "ef", card | {"image_size": 96})
    with pytest.raises(LandmarkRetrievalError, match=r"distractors .*other .*image_size: 96 and 64"):
        open_distractors([first, other], card, taken)
    with pytest.raises(LandmarkRetrievalError, match=r"'y' of the distractors .*known is in the database, too"):
        open_distractors([stores(tmp_path / "known", "zy", card)], card, taken)
    with pytest.raises(LandmarkRetrievalError, match=r"'d' of the distractors .*again is in .*second, too"):
        open_distractors([first, second, stores(tmp_path / "again", "gd", card)], card, taken)
    with pytest.raises(LandmarkRetrievalError, match="no descriptor store at"):
        open_distractors([tmp_path / "nowhere"], card, taken)
