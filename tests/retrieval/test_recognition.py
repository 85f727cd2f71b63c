"""Recognition with non-landmarks against golden values, and against the rules written as plain loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.metrics import global_average_precision
from landmark_retrieval.retrieval import recognition
from landmark_retrieval.retrieval.ensemble import average_and_concatenate
from landmark_retrieval.retrieval.recognition import recognize, recognize_in_detail

CASES = sorted((Path(__file__).parents[1] / "golden" / "recognition_pp").glob("case_*"))


def golden(case):
    inputs = dict(np.load(case / "inputs.npz"))
    return inputs, dict(np.load(case / "expected.npz")), json.loads((case / "expected.json").read_text())


def unit_rows(values):
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def made(seed=0, models=2, dim=6, landmarks=5, test=11, train=25, others=13):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(models, landmarks, dim))
    of_test, of_train = rng.integers(0, landmarks, test), rng.integers(0, landmarks, train)
    photos = centers[:, of_test] + 0.7 * rng.normal(size=(models, test, dim))
    bank = centers[:, of_train] + 0.7 * rng.normal(size=(models, train, dim))
    return [*map(np.float32, (photos, bank))], of_train * 7 + 1, np.float32(rng.normal(size=(models, others, dim)))


def test_there_are_golden_cases():
    assert len(CASES) == 4


@pytest.mark.parametrize("block", [16384, 7])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_cases(case, kind, block, monkeypatch):
    monkeypatch.setattr(recognition, "_BLOCK", block)
    inputs, expected, about = golden(case)
    params = about["params"]
    others = inputs["val"][:, inputs["is_non_landmark"].astype(bool)]
    arguments = (kind(inputs["val"]), kind(inputs["train"]), kind(inputs["train_labels"]), kind(others))
    options = {
        "groups": params["henkel2021_groups"],
        "quantile_transform": params["quantile_transform"],
        "top": params["k_train"],
        "train_neighbours": params["k_B"],
        "test_neighbours": params["k_C"],
    }
    found = recognize_in_detail(*arguments, skip_first=1, **options)
    assert isinstance(found.labels, type(arguments[0]))
    found = type(found)(*map(np.asarray, found))
    np.testing.assert_allclose(
        found.train_non_landmark, expected["B"].reshape(found.train_non_landmark.shape), atol=1e-5
    )
    np.testing.assert_array_equal(found.candidates, expected["top3_train_index"])
    np.testing.assert_array_equal(inputs["train_labels"][found.candidates], expected["top3_label"])
    np.testing.assert_allclose(found.values, expected["top3_value"], atol=1e-5)
    np.testing.assert_array_equal(found.labels, expected["label"])
    np.testing.assert_allclose(found.agreement, expected["score_a_minus_b"], atol=2e-5)
    np.testing.assert_allclose(found.non_landmark, expected["C"], atol=1e-5)
    np.testing.assert_allclose(found.scores, expected["score_final"], atol=2e-5)
    external = recognize_in_detail(*arguments, **options)
    np.testing.assert_allclose(external.non_landmark, expected["C_no_skip_top10"], atol=1e-5)

    solution = {
        str(row): [] if label == about["non_landmark_class"] else [int(label)]
        for row, label in enumerate(inputs["val_targets"])
    }
    answers = {str(row): (int(found.labels[row]), float(found.scores[row])) for row in range(len(found.labels))}
    np.testing.assert_allclose(
        global_average_precision(answers, solution), about["notebook_gap"]["final"]["all"], atol=1e-9
    )


def recognized_by_loops(photos, bank, labels, others, top, near, far, skip):
    """Without the quantile transform, photo by photo."""
    photos, bank, others = (unit_rows(part).astype(np.float64) for part in (photos, bank, others))
    likeness = np.sort(np.einsum("mtd,mod->mto", bank, others), axis=2)[:, :, ::-1][:, :, :near].mean(axis=2)
    result = []
    for number in range(photos.shape[1]):
        sums = {}
        for model in range(len(photos)):
            values = np.clip(bank[model] @ photos[model, number], 0, 1) - likeness[model]
            for row in sorted(range(len(values)), key=lambda row: (-values[row], row))[:top]:
                sums[labels[row]] = sums.get(labels[row], 0.0) + values[row]
        label = max(sums, key=sums.get)
        whole = np.concatenate(photos[:, number]) / np.sqrt(len(photos))
        alike = sorted(
            (whole @ (np.concatenate(row) / np.sqrt(len(photos))) for row in others.swapaxes(0, 1)), reverse=True
        )
        result.append((label, sums[label] - np.mean(alike[skip : skip + far])))
    return result


@pytest.mark.parametrize(
    ("models", "top", "near", "far", "skip"), [(1, 3, 5, 10, 0), (3, 3, 5, 10, 1), (2, 1, 2, 3, 2)]
)
def test_agrees_with_plain_loops(models, top, near, far, skip):
    (photos, bank), labels, others = made(models=models)
    found, scores = recognize(
        photos, bank, labels, others, top=top, train_neighbours=near, test_neighbours=far, skip_first=skip,
        quantile_transform=False, chunk=(4, 5),
    )  # fmt: skip
    wanted = recognized_by_loops(photos, bank, labels, others, top, near, far, skip)
    assert found.tolist() == [label for label, _ in wanted]
    np.testing.assert_allclose(scores, [score for _, score in wanted], atol=2e-6)


def test_one_model_may_come_as_a_matrix_and_several_with_different_dimensions():
    (photos, bank), labels, others = made()
    alone = recognize(photos[0], bank[0], labels, others[0])
    np.testing.assert_array_equal(alone[1], recognize(photos[:1], bank[:1], labels, others[:1])[1])
    both = recognize([photos[0], photos[1][:, :4]], [bank[0], bank[1][:, :4]], labels, [others[0], others[1][:, :4]])
    assert both[0].shape == (11,)


def test_without_non_landmarks_nothing_is_taken_off():
    (photos, bank), labels, _ = made()
    found = recognize_in_detail(photos, bank, labels, None)
    assert (found.non_landmark == 0).all()
    assert (found.train_non_landmark == 0).all()
    np.testing.assert_array_equal(found.scores, found.agreement)


def test_few_non_landmarks_and_training_photos_are_enough():
    (photos, bank), labels, others = made(train=2, others=2)
    found, scores = recognize(photos, bank, labels, others, skip_first=1)
    assert set(found.tolist()) <= set(labels.tolist())
    assert np.isfinite(scores).all()


def test_no_test_photos_have_no_answers():
    (photos, bank), labels, others = made()
    found, scores = recognize(photos[:, :0], bank, labels, others)
    assert found.shape == scores.shape == (0,)


def test_the_means_of_types_may_be_normalized():
    (photos, bank), labels, others = made(models=3)
    parts = [average_and_concatenate(list(part), (2, 1), normalize_means=True) for part in (photos, bank, others)]
    wanted = recognize(parts[0], parts[1], labels, parts[2])
    found = recognize(photos, bank, labels, others, groups=(2, 1), normalize_means=True)
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-5)


def test_bad_input():
    (photos, bank), labels, others = made()
    with pytest.raises(LandmarkRetrievalError, match="no training photos"):
        recognize(photos, bank[:, :0], labels[:0], others)
    with pytest.raises(LandmarkRetrievalError, match="no non-landmark photos"):
        recognize(photos, bank, labels, others[:, :0])
    with pytest.raises(LandmarkRetrievalError, match="25 training photos need"):
        recognize(photos, bank, labels[:-1], others)
    with pytest.raises(LandmarkRetrievalError, match="integers as labels"):
        recognize(photos, bank, labels + 0.5, others)
    for skip in (-1, 13):
        with pytest.raises(LandmarkRetrievalError, match="at least one has to be left"):
            recognize(photos, bank, labels, others, skip_first=skip)
    with pytest.raises(LandmarkRetrievalError, match="same models"):
        recognize(photos, bank[:1], labels, others)
    with pytest.raises(LandmarkRetrievalError, match=r"\(11, 6\), \(10, 6\)"):
        recognize([photos[0], photos[1][:-1]], bank, labels, others)
    with pytest.raises(LandmarkRetrievalError, match="do not add up to the 2 models"):
        recognize(photos, bank, labels, others, groups=(3, 3, 2))
    bank[1, 8, 0] = np.inf
    with pytest.raises(LandmarkRetrievalError, match="Row 8 of the training photos"):
        recognize(photos, bank, labels, others)
