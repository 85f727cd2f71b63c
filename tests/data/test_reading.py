import dataclasses

import pytest

from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.photos import Photo
from landmark_retrieval.data.reading import ShardedPhotos, epoch_shards
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def sharded(shards):
    return ShardedPhotos.open(shards / "train_full")


def test_reading_from_the_middle_equals_a_slice(sharded):
    everything = list(sharded.photos())
    assert len(everything) == len(sharded) == 48
    assert all(isinstance(photo, Photo) for photo in everything)
    for start, stop in ((0, 48), (9, 11), (10, 20), (37, None), (48, None), (5, 5)):
        assert list(sharded.photos(start, stop)) == everything[start:stop]


def test_mixed_is_a_permutation_drawn_from_the_seed(sharded):
    everything = sorted(photo.id for photo in sharded.photos())
    orders = [[p.id for p in sharded.mixed(list(sharded.manifest.shards), seed, 20)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == everything for order in orders)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_an_epoch_gives_each_shard_to_one_process(sharded, world):
    shards = sharded.manifest.shards
    for epoch in range(3):
        shares = [epoch_shards(shards, 0, epoch, rank, world) for rank in range(world)]
        assert sorted(s.file for share in shares for s in share) == [s.file for s in shards]
    assert epoch_shards(shards, 0, 0) != epoch_shards(shards, 0, 1)
    assert epoch_shards(shards, 0, 1) == epoch_shards(shards, 0, 1)


def test_fewer_shards_than_processes(sharded):
    with pytest.raises(LandmarkRetrievalError, match="5 shards cannot be split over 8"):
        epoch_shards(sharded.manifest.shards, 0, 0, 0, 8)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_shard_is_an_error_even_if_its_size_was_not_checked(sharded, tmp_path, share):
    first = sharded.manifest.shards[0]
    data = (sharded.folder / first.file).read_bytes()
    (tmp_path / first.file).write_bytes(data[: int(share * len(data))])
    alone = ShardedPhotos(tmp_path, dataclasses.replace(sharded.manifest, shards=(first,)))
    with pytest.raises(LandmarkRetrievalError, match=f"{first.file} is damaged"):
        list(alone.photos())
    with pytest.raises(LandmarkRetrievalError, match=f"{first.file} is damaged"):
        list(alone.labels())


def test_labels_without_photos(sharded):
    assert list(sharded.labels()) == [(photo.id, photo.label) for photo in sharded.photos()]


def test_find(sharded):
    wanted = list(sharded.photos())[::7]
    assert sharded.find({photo.id for photo in wanted} | {"nowhere"}) == {photo.id: photo.data for photo in wanted}


def test_no_manifest(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="no shard manifest"):
        Manifest.read(tmp_path)
