import numpy as np
import pytest
import torch

from landmark_retrieval.data.batches import PhotoBatches, TrainingBatches, loader
from landmark_retrieval.data.decode import decode
from landmark_retrieval.data.gldv2 import read_photos, read_train
from landmark_retrieval.data.photos import PhotoTable
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def sharded(shards):
    return ShardedPhotos.open(shards / "train_full")


def epoch(source, workers=0, **options):
    batches = TrainingBatches(source, 32, **({"batch_size": 8} | options))
    made = list(loader(batches, workers))
    assert len(made) == len(batches)
    return made


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a["images"], b["images"]) and torch.equal(a["labels"], b["labels"])
        for a, b in zip(first, second, strict=True)
    )


def test_shapes_and_labels(sharded):
    batches = epoch(sharded)
    assert len(batches) == 6
    for batch in batches:
        assert batch["images"].shape == (8, 32, 32, 3)
        assert batch["images"].dtype == torch.uint8
        assert batch["labels"].dtype == torch.int64
    labels = torch.cat([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(np.bincount(labels), sharded.manifest.class_counts)


def test_batches_depend_on_seed_and_epoch_and_not_on_the_workers(sharded):
    reference = epoch(sharded, seed=3, epoch=2)
    assert same(reference, epoch(sharded, workers=2, seed=3, epoch=2))
    assert not same(reference, epoch(sharded, seed=3, epoch=1))
    assert not same(reference, epoch(sharded, seed=4, epoch=2))


def test_processes_share_an_epoch_with_equal_numbers_of_batches(sharded):
    parts = [TrainingBatches(sharded, 32, 4, epoch=1, rank=rank, world=3) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    files = [shard.file for part in parts for shard in part.shards]
    assert sorted(files) == [shard.file for shard in sharded.manifest.shards]
    assert all(len(list(part)) == len(part) for part in parts)


def test_too_few_photos_for_a_batch(sharded):
    with pytest.raises(LandmarkRetrievalError, match="not one batch of 64"):
        TrainingBatches(sharded, 32, 64)


@pytest.fixture
def damaged(photos, tmp_path):
    """Shards written whole, some photos of which are damaged afterwards, in place."""
    write_shards(read_train(photos, "full"), tmp_path, photos_per_shard=10, workers=1)
    source = ShardedPhotos.open(tmp_path)
    victims = list(source.photos())[::9]
    for shard in source.manifest.shards:
        path = tmp_path / shard.file
        data = path.read_bytes()
        for photo in victims:
            data = data.replace(photo.data, b"\0" * len(photo.data))
        path.write_bytes(data)
    return source, {photo.id for photo in victims}


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_photos_are_skipped_and_counted_in_training(damaged, workers):
    source, victims = damaged
    batches = TrainingBatches(source, 32, 8)
    made = list(loader(batches, workers))
    assert [len(batch["labels"]) for batch in made] == [8] * 6
    assert batches.broken.value == len(victims) == 6


def test_broken_photos_are_named_in_description(damaged):
    source, victims = damaged
    batches = list(PhotoBatches(source, 32, 7))
    assert {photo for batch in batches for photo, _ in batch["broken"]} == victims
    assert sum(len(batch["ids"]) for batch in batches) == 48 - len(victims)


def test_nothing_but_broken_photos_is_an_error(damaged, tmp_path):
    source, _ = damaged
    for shard in source.manifest.shards:
        path = source.folder / shard.file
        data = path.read_bytes()
        for photo in source.photos():
            data = data.replace(photo.data, b"\0" * len(photo.data))
        path.write_bytes(data)
    with pytest.raises(LandmarkRetrievalError, match="None of 8 photos in a row"):
        list(TrainingBatches(source, 32, 8))


@pytest.mark.parametrize("world", [1, 3, 8])
@pytest.mark.parametrize("workers", [0, 2])
def test_description_sees_each_photo_once(shards, workers, world):
    source = ShardedPhotos.open(shards / "index")
    ids, positions = [], []
    for rank in range(world):
        batches = PhotoBatches(source, 32, 4, rank=rank, world=world)
        made = list(loader(batches, workers))
        assert len(made) == len(batches)
        ids += [photo for batch in made for photo in batch["ids"]]
        positions += [position for batch in made for position in batch["positions"]]
    order = [photo.id for photo in source.photos()]
    assert sorted(ids) == sorted(order)
    assert [order[position] for position in positions] == ids


def test_table_and_shards_give_the_same_batches(photos, shards):
    table, sharded = read_photos(photos, "test"), ShardedPhotos.open(shards / "test")
    pairs = list(zip(PhotoBatches(table, 40, 4, start=3), PhotoBatches(sharded, 40, 4, start=3), strict=True))
    assert [batch["ids"] for batch, _ in pairs] == [table.ids[3:7], table.ids[7:]]
    for first, second in pairs:
        assert first["ids"] == second["ids"]
        assert torch.equal(first["images"], second["images"])


def test_more_processes_than_photos(shards):
    with pytest.raises(LandmarkRetrievalError, match="cannot be dealt out to 20 processes"):
        PhotoBatches(ShardedPhotos.open(shards / "test"), 32, 4, world=20)


def test_a_table_of_broken_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (batch,) = PhotoBatches(PhotoTable(["a.jpg"], tmp_path.joinpath), 16, 4)
    assert batch["images"].shape == (0, 16, 16, 3)
    assert batch["broken"] == [("a.jpg", "the file is empty or cannot be read")]


def test_training_images_look_like_their_photos(sharded):
    """Augmentation keeps labels with their pictures: the mean brightness of a class is that of its photos."""
    by_id = {photo.id: decode(photo.data).mean() for photo in sharded.photos()}
    labels = {photo.id: photo.label for photo in sharded.photos()}
    expected = [np.mean([by_id[i] for i in by_id if labels[i] == c]) for c in range(len(sharded.manifest.classes))]
    seen = [[] for _ in expected]
    for number in range(6):
        for batch in epoch(sharded, epoch=number):
            for image, label in zip(batch["images"], batch["labels"], strict=True):
                pixels = image.float()[image.sum(-1) > 0]
                seen[label].append(float(pixels.mean()))
    measured = [np.mean(values) for values in seen]
    assert np.corrcoef(expected, measured)[0, 1] > 0.9
