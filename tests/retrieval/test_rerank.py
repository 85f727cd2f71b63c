"""Discriminative re-ranking against golden values, and against the rules written as plain loops."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval import ensemble as ensemble_module
from landmark_retrieval.retrieval import rerank
from landmark_retrieval.retrieval.rerank import ensemble, hard_rerank, rerank_voted, soft_rerank, soft_vote

GOLDEN = Path(__file__).parents[1] / "golden" / "rerank"
SOFT, HARD = (sorted(GOLDEN.glob(f"{name}_*")) for name in ("soft_rerank", "label_vote"))


def golden(case):
    return dict(np.load(case / "inputs.npz")), json.loads((case / "expected.json").read_text())


def unit_rows(rng, rows, dim=8):
    values = rng.normal(size=(rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def clustered(seed=0, landmarks=6, queries=7, index=40, train=30):
    """Rows of a few landmarks, so that votes agree and dissent."""
    rng = np.random.default_rng(seed)
    centers = unit_rows(rng, landmarks)

    def photos(count):
        labels = rng.integers(0, landmarks, count)
        rows = centers[labels] + 0.5 * rng.normal(size=(count, centers.shape[1]))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels * 10 + 3

    (query, _), (rows, _), (bank, labels) = photos(queries), photos(index), photos(train)
    return query, rows, bank, labels


def voted_by_loops(images, train, labels, k):
    found = []
    for image in images.astype(np.float64):
        similarity = train.astype(np.float64) @ image
        nearest = sorted(range(len(train)), key=lambda row: (-similarity[row], row))[:k]
        votes = {}
        for row in nearest:
            votes[labels[row]] = votes.get(labels[row], 0.0) + similarity[row]
        best = max(votes, key=votes.get)  # the first of equal ones, in the order of the neighbours
        found.append((best, votes[best] / len(nearest)))
    return found


def reranked_by_loops(query, index, train, labels, k, up, down, top):
    of_query, of_index = voted_by_loops(query, train, labels, k), voted_by_loops(index, train, labels, k)
    rows, scores = [], []
    for image, (label, _) in zip(query.astype(np.float64), of_query, strict=True):
        adjusted = []
        for photo, (other, sure) in zip(index.astype(np.float64), of_index, strict=True):
            adjusted.append(photo @ image + (up * sure if other == label else -down * sure))
        order = sorted(range(len(index)), key=lambda row: (-adjusted[row], row))[:top]
        rows.append(order)
        scores.append([adjusted[row] for row in order])
    return np.array(rows), np.array(scores)


def test_there_are_golden_cases():
    assert len(SOFT) == 4
    assert len(HARD) == 3


@pytest.mark.parametrize("case", HARD, ids=lambda case: case.name)
def test_golden_votes_and_hard_reranking(case):
    inputs, expected = golden(case)
    query, index, train, labels = (inputs[key] for key in ("query", "index", "train", "train_labels"))
    for images, name in ((query, "query"), (index, "index")):
        found, sure = soft_vote(images, train, labels, expected["voting_k"])
        np.testing.assert_array_equal(found, expected[f"{name}_label"])
        np.testing.assert_allclose(sure, expected[f"{name}_score"], atol=1e-6)
    rows, cosines = hard_rerank(
        query, index, train, labels, expected["voting_k"], expected["topk"], expected["insert_threshold"]
    )
    assert inputs["index_ids"][rows].tolist() == expected["hard_reranked"]
    np.testing.assert_allclose(cosines, np.take_along_axis(query @ index.T, rows, axis=1), atol=1e-6)


@pytest.mark.parametrize("case", SOFT, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["numpy", "torch", "small chunks"])
def test_golden_soft_reranking_and_ensemble(case, kind):
    inputs, expected = golden(case)
    params = expected["params"]
    lists = []
    for model, wanted in enumerate(expected["models"]):
        query, index, train = (inputs[key][model] for key in ("query", "index", "train"))
        labels = inputs["train_labels"]
        if kind == "torch":
            query, index, train, labels = map(torch.from_numpy, (query, index, train, labels))
        found, sure = soft_vote(index, train, labels, params["k"], params["confidence"])
        assert found.tolist() == wanted["index_label"]
        np.testing.assert_allclose(np.asarray(sure), wanted["index_confidence"], atol=1e-6)
        assert soft_vote(query, train, labels, params["k"])[0].tolist() == wanted["query_label"]
        options = {name: params[name] for name in ("k", "up", "down", "confidence")}
        options |= {"chunk": (2, 5)} if kind == "small chunks" else {}
        rows, scores = soft_rerank(query, index, train, labels, top=params["per_model_top"], **options)
        assert isinstance(rows, torch.Tensor if kind == "torch" else np.ndarray)
        for number, short_list in enumerate(wanted["top"]):
            assert rows[number].tolist() == short_list["index"]
            np.testing.assert_allclose(np.asarray(scores[number]), short_list["score"], atol=1e-6)
        lists.append((rows, scores))
    rows, scores = ensemble(lists, params["final_top"])
    for number, (wanted_rows, wanted_scores) in enumerate(
        zip(expected["final_index"], expected["final_score"], strict=True)
    ):
        count = len(wanted_rows)
        assert rows[number, :count].tolist() == wanted_rows
        np.testing.assert_allclose(np.asarray(scores[number, :count]), wanted_scores, atol=1e-6)
        assert (np.asarray(rows[number, count:]) == -1).all()


@pytest.mark.parametrize("k", [1, 3, 5, 100])
@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_plain_loops(k, seed):
    query, index, train, labels = clustered(seed)
    rows, scores = soft_rerank(query, index, train, labels, k=k, up=0.7, down=0.2, top=25, chunk=(3, 11))
    wanted_rows, wanted_scores = reranked_by_loops(query, index, train, labels, k, 0.7, 0.2, 25)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_allclose(scores, wanted_scores, atol=1e-6)


def test_a_photo_far_down_the_list_comes_up():
    query = np.array([[1.0, 0.0, 0.0]], np.float32)
    train = np.array([[0.9, 0.1, 0.42], [0.0, 1.0, 0.0]], np.float32)
    train /= np.linalg.norm(train, axis=1, keepdims=True)
    lost = np.array([[0.1, 0.0, 0.99]], np.float32)  # the query's landmark from elsewhere
    near = np.array([[0.5, 0.86, 0.0]] * 20, np.float32)
    rows, _ = soft_rerank(query, np.concatenate([near, lost]), train, [1, 2], k=1, top=3)
    assert rows[0, 0] == 20


def test_of_equal_votes_the_nearer_neighbour_decides():
    train = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
    labels, sure = soft_vote(np.array([[0.5, 0.5, 0.5, 0.5]], np.float32), train, [9, 4, 4, 9], k=4)
    assert labels.tolist() == [9]
    np.testing.assert_allclose(sure, [0.25])


def test_confidences():
    train = np.eye(4, dtype=np.float32)
    image = np.array([[0.6, 0.5, 0.4, 0.1]], np.float32)
    for name, value in {"sum_over_k": 0.3, "sum": 0.9, "mean_topk": 0.5, "top1": 0.6}.items():
        labels, sure = soft_vote(image, train, [1, 2, 2, 3], k=3, confidence=name)
        assert labels.tolist() == [2]
        np.testing.assert_allclose(sure, [value], rtol=1e-6, err_msg=name)


def test_queries_do_not_find_themselves():
    _, index, train, labels = clustered()
    free, _ = soft_rerank(index, index, train, labels, top=10)
    rows, scores = soft_rerank(index, index, train, labels, top=10, exclude=np.arange(len(index)), chunk=(3, 7))
    for number in range(len(index)):
        assert number not in rows[number]
        kept = [row for row in free[number] if row != number]
        assert rows[number].tolist()[: len(kept)] == kept
    rows, scores = soft_rerank(index[:2], index, train, labels, top=99, exclude=[0, -1])
    assert rows[0, -1] == -1
    assert scores[0, -1] == -np.inf
    assert sorted(rows[1].tolist()) == list(range(len(index)))


def test_an_index_split_over_devices_is_reranked_as_one():
    query, index, train, labels = clustered()
    options = {"top": 12, "exclude": np.arange(7) * 5, "chunk": (3, 4)}
    rows, scores = soft_rerank(query, index, train, labels, **options)
    split_rows, split_scores = soft_rerank(query, index, train, labels, **options, devices=["cpu"] * 3)
    np.testing.assert_array_equal(rows, split_rows)
    np.testing.assert_allclose(scores, split_scores, atol=1e-6)


def test_votes_known_beforehand_give_the_same():
    query, index, train, labels = clustered()
    votes = soft_vote(index, train, labels)
    mine = soft_vote(query, train, labels)[0]
    rows, scores = rerank_voted(query, mine, index, *votes, top=12)
    wanted_rows, wanted_scores = soft_rerank(query, index, train, labels, top=12)
    np.testing.assert_array_equal(rows, wanted_rows)
    np.testing.assert_array_equal(scores, wanted_scores)


def test_half_precision_and_memory_maps(tmp_path):
    query, index, train, labels = clustered()
    np.save(tmp_path / "index.npy", index.astype(np.float16))
    held = np.load(tmp_path / "index.npy", mmap_mode="r")
    rows, _ = soft_rerank(query, held, train, labels, top=15)
    wanted, _ = soft_rerank(query, np.asarray(held).astype(np.float32), train, labels, top=15)
    np.testing.assert_array_equal(rows, wanted)


def test_an_ensemble_adds_up_whatever_is_in_the_lists():
    rng = np.random.default_rng(0)
    lists = [
        (np.stack([rng.permutation(50)[:count] for _ in range(9)]), rng.normal(size=(9, count)).astype(np.float32))
        for count in (20, 50, 3)
    ]
    rows, scores = ensemble(lists, top=30, weights=[1.0, 0.5, 2.0])
    for query in range(9):
        total = {}
        for (found, values), weight in zip(lists, (1.0, 0.5, 2.0), strict=True):
            for row, value in zip(found[query].tolist(), values[query].tolist(), strict=True):
                total[row] = total.get(row, 0.0) + weight * value
        wanted = sorted(total, key=lambda row: (-total[row], row))[:30]
        assert rows[query].tolist() == wanted
        np.testing.assert_allclose(scores[query], [total[row] for row in wanted], atol=1e-6)


def test_an_ensemble_of_lists_that_end_early():
    first = np.array([[3, -1], [0, 1]]), np.array([[0.5, -np.inf], [0.9, 0.8]])
    second = np.array([[3], [2]]), np.array([[0.25], [0.1]])
    rows, scores = ensemble([first, second])
    assert rows.tolist() == [[3, -1, -1], [0, 1, 2]]
    np.testing.assert_allclose(scores, [[0.75, -np.inf, -np.inf], [0.9, 0.8, 0.1]], rtol=1e-6)


def test_arrays_of_any_making():
    query, index, train, labels = clustered()
    wanted = soft_rerank(query, index, train, labels, top=20)
    labels.flags.writeable = False
    for made in (
        lambda array: array.astype(np.float64),
        lambda array: array.astype(array.dtype.newbyteorder(">")),
        np.asfortranarray,
    ):
        rows, scores = soft_rerank(made(query), made(index), made(train), labels, top=20)
        np.testing.assert_array_equal(rows, wanted[0])
        np.testing.assert_allclose(scores, wanted[1], atol=1e-6)
    rows, _ = soft_rerank(query, index, train[::-1], labels[::-1], top=20)
    np.testing.assert_array_equal(rows, wanted[0])
    best = ensemble([(wanted[0][:, ::-1], wanted[1][:, ::-1])], top=20)
    np.testing.assert_array_equal(best[0], wanted[0])
    tracked = torch.from_numpy(query).requires_grad_()
    assert not soft_rerank(tracked, index, train, labels, top=3)[1].requires_grad
    assert soft_rerank(query[:0], index, train, labels, top=3)[0].shape == (0, 3)


def test_a_precision_chosen_elsewhere_stays_as_it_is():
    query, index, train, labels = clustered()
    place = torch.backends.cuda.matmul
    before = place.fp32_precision
    place.fp32_precision = "tf32"
    try:
        soft_rerank(query, index, train, labels, top=3)
        assert place.fp32_precision == "tf32"
    finally:
        place.fp32_precision = before


def test_bad_input():
    query, index, train, labels = clustered()
    with pytest.raises(LandmarkRetrievalError, match="training set is empty"):
        soft_rerank(query, index, train[:0], labels[:0])
    with pytest.raises(LandmarkRetrievalError, match="30 training photos need"):
        soft_vote(query, train, labels[:-1])
    with pytest.raises(LandmarkRetrievalError, match="integers"):
        soft_vote(query, train, labels.astype(np.float32))
    with pytest.raises(LandmarkRetrievalError, match="sum_over_k"):
        soft_vote(query, train, labels, confidence="sum_over")
    with pytest.raises(LandmarkRetrievalError, match="same d"):
        soft_rerank(query, index[:, :5], train, labels)
    with pytest.raises(LandmarkRetrievalError, match="cannot be compared"):
        soft_rerank(query, index, train[:, :5], labels)
    with pytest.raises(LandmarkRetrievalError, match="at least one model"):
        ensemble([])
    with pytest.raises(LandmarkRetrievalError, match="same 1 queries"):
        ensemble([(np.array([[1]]), np.array([[0.5]])), (np.array([[1], [2]]), np.array([[0.5], [0.1]]))])
    with pytest.raises(LandmarkRetrievalError, match="lists of model 0 must be integers"):
        ensemble([(np.array([[4.5, 1.0]]), np.array([[0.5, 0.1]]))])
    with pytest.raises(LandmarkRetrievalError, match="score of photo 4 for query 0 by model 0 is NaN"):
        ensemble([(np.array([[1, 4]]), np.array([[0.5, np.nan]]))])
    with pytest.raises(LandmarkRetrievalError, match=r"between -1 \(none\) and 39"):
        soft_rerank(query, index, train, labels, exclude=[40] * 7)
    with pytest.raises(LandmarkRetrievalError, match="integers as rows to exclude"):
        soft_rerank(query, index, train, labels, exclude=[0, 1])
    with pytest.raises(LandmarkRetrievalError, match="integers as labels"):
        soft_rerank(query, index, train, [f"name {label}" for label in labels])
    with pytest.raises(LandmarkRetrievalError, match="Photo 4 stands twice in the list of query 0 of model 1"):
        ensemble([(np.array([[4, 1]]), np.array([[0.5, 0.1]])), (np.array([[4, 4]]), np.array([[0.5, 0.1]]))])
    index[7, 2] = np.nan
    with pytest.raises(LandmarkRetrievalError, match="Row 7"):
        soft_rerank(query, index, train, labels)


@pytest.mark.parametrize("module", [rerank, ensemble_module])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
