"""Whitening against numpy's SVD and scikit-learn's PCA; and what is whitened is not compared with what is not."""

import numpy as np
import pytest

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.index import build_index
from landmark_retrieval.retrieval.store import DescriptorStore, DescriptorWriter
from landmark_retrieval.retrieval.whitening import Whitening, whiten_store

CARD = {"model": "tiny"}


def correlated(rows=500, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, dim)) @ (rng.normal(size=(dim, dim)) * 0.6 ** np.arange(dim)[:, None]) + 0.5
    return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)


def store_of(folder, rows, card=CARD, dtype="float32"):
    with DescriptorWriter(folder, card=card, dtype=dtype, part_size=77) as writer:
        writer.append([f"p{number}" for number in range(len(rows))], rows)
    return DescriptorStore.open(folder)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def up_to_signs(first, second):
    """Columns of both with the same sign in the row where they are largest."""
    rows = np.abs(second).argmax(axis=0)
    columns = np.arange(second.shape[1])
    return first * np.sign(first[rows, columns] * second[rows, columns])


@pytest.mark.parametrize("dim", [3, 12])
@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_is_what_the_svd_says(tmp_path, dim, power):
    rows = correlated()
    centered = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, singular, axes = np.linalg.svd(centered, full_matrices=False)
    deviations = singular / np.sqrt(len(rows) - 1)
    expected = unit((centered @ axes.T / deviations**power)[:, :dim])
    for source in (rows, store_of(tmp_path, rows)):
        found = Whitening.fit(source, dim, power).apply(rows)
        assert found.dtype == np.float32
        np.testing.assert_allclose(up_to_signs(found, expected), expected, atol=1e-4)


def test_is_what_scikit_learn_says():
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    rows, others = correlated(), correlated(60, seed=1)
    expected = unit(decomposition.PCA(8, whiten=True, svd_solver="full").fit(rows.astype(np.float64)).transform(others))
    found = Whitening.fit(rows, 8).apply(others)
    np.testing.assert_allclose(up_to_signs(found, expected), expected, atol=1e-4)


def test_whitened_before_it_is_normalised_has_covariance_one():
    rows = correlated()
    whitening = Whitening.fit(rows, 12)
    np.testing.assert_allclose(
        np.cov((rows - whitening.mean) @ whitening.matrix.T, rowvar=False), np.eye(12), atol=1e-3
    )


def test_shrinkage_draws_the_scales_together():
    rows = correlated()
    variances = np.sort(np.linalg.eigvalsh(np.cov(rows, rowvar=False)))[::-1]
    scales = [np.linalg.norm(Whitening.fit(rows, 12, shrinkage=share).matrix, axis=1) for share in (0, 0.5, 1)]
    np.testing.assert_allclose(scales[0], variances**-0.5, rtol=1e-3)
    np.testing.assert_allclose(scales[1], (variances / 2 + variances.mean() / 2) ** -0.5, rtol=1e-3)
    np.testing.assert_allclose(scales[2], variances.mean() ** -0.5, rtol=1e-3)


def test_full_rotation_keeps_the_angles_of_centered_rows():
    rows = correlated()
    centered = unit(rows - rows.mean(axis=0))
    turned = Whitening.fit(rows, 12, power=0).apply(rows)
    np.testing.assert_allclose(turned @ turned.T, centered @ centered.T, atol=1e-4)


def test_saved_and_loaded(tmp_path):
    whitening = Whitening.fit(store_of(tmp_path / "s", correlated()), 5, power=0.7, shrinkage=0.1)
    whitening.save(tmp_path / "w.safetensors")
    loaded = Whitening.load(tmp_path / "w.safetensors")
    assert (loaded.power, loaded.shrinkage, loaded.card, loaded.sha256) == (0.7, 0.1, CARD, whitening.sha256)
    np.testing.assert_array_equal(loaded.apply(correlated()), whitening.apply(correlated()))
    content = bytearray((tmp_path / "w.safetensors").read_bytes())
    content[-2] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(LandmarkRetrievalError, match=r"w\.safetensors is damaged \(its checksum"):
        Whitening.load(tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(content[:50])
    with pytest.raises(LandmarkRetrievalError, match="is damaged"):
        Whitening.load(tmp_path / "w.safetensors")
    with pytest.raises(LandmarkRetrievalError, match="no whitening at"):
        Whitening.load(tmp_path / "nowhere")


def test_a_store_is_whitened_and_not_compared_with_the_raw_one(tmp_path):
    rows = correlated()
    store = store_of(tmp_path / "raw", rows)
    whitening = Whitening.fit(store, 6)
    whitened = whiten_store(store, whitening, tmp_path / "white")
    assert whitened.ids == store.ids and whitened.dim == 6
    np.testing.assert_allclose(whitened.load(), whitening.apply(rows), atol=1e-6)
    assert whitened.card["whitening"]["sha256"] == whitening.sha256
    # again: nothing to do, and the same
    assert len(whiten_store(store, whitening, tmp_path / "white")) == 500
    index = build_index(whitened, "exact")
    assert index.search(whitening.apply(rows[:1]), 1, card=whitening.card_of(CARD))[0] == [["p0"]]
    with pytest.raises(LandmarkRetrievalError, match=r"whitening: .* and None"):
        index.search(whitening.apply(rows[:1]), 1, card=CARD)
    other = Whitening.fit(rows[:400], 6)
    with pytest.raises(LandmarkRetrievalError, match="cannot be compared"):
        index.search(other.apply(rows[:1]), 1, card=other.card_of(CARD))
    with pytest.raises(LandmarkRetrievalError, match="whitened already"):
        whiten_store(whitened, whitening, tmp_path / "twice")
    with pytest.raises(LandmarkRetrievalError, match="another model"):
        whiten_store(store_of(tmp_path / "huge", rows, {"model": "huge"}), whitening, tmp_path / "other")


def test_cards_are_compared_as_files_keep_them(tmp_path):
    rows = correlated()
    card = {"model": "tiny", "mean": (0.5, 0.5), "views": {"scales": (1.0, 2.0)}}
    whitening = Whitening.fit(store_of(tmp_path / "raw", rows, card), 6)
    listed = {"model": "tiny", "mean": [0.5, 0.5], "views": {"scales": [1.0, 2.0]}}
    made = whitening.card_of(card)
    assert {**listed, "whitening": made["whitening"]} == made == whitening.card_of(listed)
    by_hand = Whitening(whitening.mean, whitening.matrix, card=card)
    assert by_hand.card_of(listed)["mean"] == [0.5, 0.5]
    with pytest.raises(LandmarkRetrievalError, match="another model"):
        whitening.card_of({**card, "mean": (0.5, 0.4)})


def test_a_photo_that_cannot_be_whitened_is_named(tmp_path):
    rows = correlated()
    whitening = Whitening.fit(rows, 6)
    rows[123] = whitening.mean
    with pytest.raises(LandmarkRetrievalError, match="The descriptor of photo 'p123' cannot be whitened"):
        whiten_store(store_of(tmp_path / "raw", rows), whitening, tmp_path / "white")


def test_misuse_is_refused():
    rows = correlated(20)
    for dim, given in ((0, rows), (13, rows), (5, rows[:5])):
        with pytest.raises(LandmarkRetrievalError, match=f"not {dim}: choose fewer"):
            Whitening.fit(given, dim)
    with pytest.raises(LandmarkRetrievalError, match="from 1 descriptors of 12 numbers: it takes at least 2"):
        Whitening.fit(rows[:1], 3)
    with pytest.raises(LandmarkRetrievalError, match="vary in 2 directions"):
        Whitening.fit(np.pad(rows[:, :2], ((0, 0), (0, 3))), 4)
    with pytest.raises(LandmarkRetrievalError, match=r"shrinkage in \[0, 1\]"):
        Whitening.fit(rows, 3, shrinkage=2)
    broken = rows.copy()
    broken[7, 1] = np.nan
    with pytest.raises(LandmarkRetrievalError, match="Descriptor 7 holds NaN"):
        Whitening.fit(broken, 3)
    whitening = Whitening.fit(rows, 3)
    with pytest.raises(LandmarkRetrievalError, match="Descriptor 7 cannot be whitened"):
        whitening.apply(broken)
    with pytest.raises(LandmarkRetrievalError, match="12-d descriptors, these have shape"):
        whitening.apply(rows[:, :4])
