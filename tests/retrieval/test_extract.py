import numpy as np
import pytest
import torch

from landmark_retrieval import GeMNet
from landmark_retrieval.data.importers.folder import read_unlabelled
from landmark_retrieval.data.importers.gldv2 import read_photos
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval import extract as module
from landmark_retrieval.retrieval.extract import broken_photos, extract

CARD = {"architecture": "GeMNet", "image_size": 48}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GeMNet("mobilenetv3_small_050", embedding_dim=None).eval()


def test_every_photo_once_with_unit_length(model, photos, tmp_path):
    table = read_photos(photos, "index")
    store = extract(model, CARD, table, tmp_path, batch_size=4, workers=0)
    rows = store.load()
    assert store.ids == table.ids
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    # one by one, by the plain way
    from landmark_retrieval.data.decode import decode, resize

    image = torch.from_numpy(resize(decode(table.photo(5).data), 48))[None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(normalize(image)))[0]
    np.testing.assert_allclose(rows[5], expected, atol=1e-5)


def test_an_interrupted_run_carries_on(model, photos, tmp_path, monkeypatch):
    table = read_photos(photos, "index")
    whole = extract(model, CARD, table, tmp_path / "whole", batch_size=3, workers=0, part_size=5)
    real, calls = module.describe, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "describe", failing)
    with pytest.raises(KeyboardInterrupt):
        extract(model, CARD, table, tmp_path / "s", batch_size=3, workers=0, part_size=5)
    done = len(calls)
    monkeypatch.setattr(module, "describe", lambda *a: calls.append(1) or real(*a))
    resumed = extract(model, CARD, table, tmp_path / "s", batch_size=3, workers=0, part_size=5)
    assert len(calls) - done < 5  # the whole takes 5 batches
    assert resumed.ids == whole.ids
    np.testing.assert_allclose(resumed.load(), whole.load(), atol=1e-6)


def test_broken_photos_are_counted_and_listed(model, photos, tmp_path):
    files = sorted((photos / "index").rglob("*.jpg"))[:6]
    for i, path in enumerate(files):
        data = path.read_bytes()
        (tmp_path / f"{i}.jpg").write_bytes(data[:300] if i in (1, 4) else data)
    for _ in range(2):  # the second call finds the store finished
        store = extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", batch_size=4, workers=0)
        assert store.ids == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
        assert set(broken_photos(tmp_path / "out")) == {"1.jpg", "4.jpg"}


def test_photos_exchanged_under_the_same_names(model, photos, tmp_path):
    first, second = sorted((photos / "index").rglob("*.jpg"))[:2]
    (tmp_path / "a.jpg").write_bytes(first.read_bytes())
    extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", workers=0)
    (tmp_path / "a.jpg").write_bytes(second.read_bytes())
    with pytest.raises(LandmarkRetrievalError, match="other photos"):
        extract(model, CARD, read_unlabelled(tmp_path), tmp_path / "out", workers=0)


def test_other_photos_or_another_model_in_the_folder(model, photos, tmp_path):
    extract(model, CARD, read_photos(photos, "test"), tmp_path, workers=0)
    with pytest.raises(LandmarkRetrievalError, match="other photos"):
        extract(model, CARD, read_photos(photos, "index"), tmp_path, workers=0)
    with pytest.raises(LandmarkRetrievalError, match=str(tmp_path)):
        extract(model, CARD | {"image_size": 64}, read_photos(photos, "test"), tmp_path, workers=0)
