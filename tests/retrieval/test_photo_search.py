import pytest
import torch

from landmark_retrieval import GeMNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.photo_search import gallery_entries, index_photos, model_of, search_photos

CARD = {"architecture": "GeMNet", "image_size": 48}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return GeMNet("mobilenetv3_small_050", embedding_dim=None).eval()


@pytest.fixture(scope="module")
def index(model, photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("index")
    index_photos(model, CARD, "imagenet", photos / "index", out, workers=0)
    return out


def test_a_photo_of_the_index_finds_itself_first(model, index, photos):
    files = sorted((photos / "index").rglob("*.jpg"))[:3]
    found = search_photos(model, CARD, index, files, top=5)
    assert [row.photos[0] for row in found] == [file.resolve() for file in files]
    for row in found:
        assert row.scores[0] == pytest.approx(1, abs=1e-4)
        assert row.scores == sorted(row.scores, reverse=True)
        assert len(row.photos) == 5
    assert len(search_photos(model, CARD, index, [photos / "test"], top=1000)[0].photos) == 14
    assert all(result.photo for entry in gallery_entries(found) for result in entry.results)


def test_mistakes(model, index, photos, tmp_path):
    assert model_of(index) == "imagenet"
    query = next((photos / "test").rglob("*.jpg"))
    with pytest.raises(LandmarkRetrievalError, match="no query photo"):
        search_photos(model, CARD, index, [tmp_path / "nowhere.jpg"])
    (tmp_path / "cut.jpg").write_bytes(query.read_bytes()[:1000])
    with pytest.raises(LandmarkRetrievalError, match=r"cut\.jpg cannot be used: the JPEG is cut short"):
        search_photos(model, CARD, index, [tmp_path / "cut.jpg"])
    with pytest.raises(LandmarkRetrievalError, match=r"no photo index|no index"):
        search_photos(model, CARD, tmp_path, [query])
    with pytest.raises(LandmarkRetrievalError):
        search_photos(model, CARD | {"weights_sha256": "other"}, index, [query])
