import numpy as np
import pytest

from landmark_retrieval.data.importers.gldv2 import read_train
from landmark_retrieval.data.mixture import Mixture
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def main(shards):
    return ShardedPhotos.open(shards / "train_full")


@pytest.fixture
def extra(photos, tmp_path):
    """Photos of the last two landmarks of the main source in another order, and of one that it does not know."""
    table = read_train(photos, "full")
    names = (table.classes[-1], "another", table.classes[-2])
    labels = np.arange(9, dtype=np.int32) % 3
    few = table.take(np.arange(9))
    write_shards(PhotoTable(few.ids, few.files, labels, names), tmp_path, 4, shuffle=False, workers=1)
    return ShardedPhotos.open(tmp_path)


def test_classes_are_matched_by_name(main, extra):
    mixture = Mixture([main, extra])
    assert mixture.classes == (*main.manifest.classes, "another")
    counts = np.array([*main.manifest.class_counts, 0])
    counts[[-1, -2, -3]] += 3
    assert mixture.class_counts == tuple(counts)
    assert len(mixture) == len(main) + 9
    for number, name in ((48, main.manifest.classes[-1]), (49, "another"), (50, main.manifest.classes[-2])):
        photo, label = mixture.labelled(number)
        assert photo == extra.photo(number - 48)
        assert mixture.classes[label] == name
    assert mixture.labelled(47)[1] == main.photo(47).label


def test_each_photo_once_or_by_weight(main, extra):
    mixture = Mixture([main, extra])
    assert sorted(mixture.plan(0, 0).at(np.arange(57))) == list(range(57))
    half = Mixture([main, extra], [1, 1])
    assert (half.plan(0, 0).at(np.arange(57)) >= 48).mean() == pytest.approx(0.5, abs=0.1)


def test_photos_without_labels(main, shards):
    with pytest.raises(LandmarkRetrievalError, match="index holds photos without labels"):
        Mixture([main, ShardedPhotos.open(shards / "index")])
