import shutil

import pytest

from landmark_retrieval.data.checking import check_data
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def own(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize("workers", [1, 2])
def test_whole_shards(shards, workers):
    manifests = check_data(shards, workers)
    assert {name: manifest.photos for name, manifest in manifests.items()} == {
        "index": 14,
        "test": 9,
        "train_c": 40,
        "train_full": 48,
        "train_x": manifests["train_x"].photos,
    }
    assert list(check_data(shards / "train_c", 1)) == ["train_c"]


def test_every_damaged_file_is_named(own):
    folder = own / "train_full"
    flipped, cut, gone = (folder / f"shard-{number:05d}.tar" for number in (0, 2, 3))
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-512])
    gone.unlink()
    with pytest.raises(LandmarkRetrievalError) as error:
        check_data(own, 1)
    for path, reason in ((flipped, "other contents"), (cut, "bytes instead of"), (gone, "is missing")):
        assert f"{path} " in str(error.value)
        assert reason in str(error.value)
    assert "(3 of" in str(error.value)
    assert "shard-00001" not in str(error.value)


def test_nothing_to_check(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="holds no shards"):
        check_data(tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="checked when it is fetched"):
        check_data("http://127.0.0.1:1/x")
