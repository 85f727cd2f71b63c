import os
import pickle
import signal

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from landmark_retrieval.data.batches import PhotoBatches, TrainingBatches, loader
from landmark_retrieval.data.decode import decode, resize
from landmark_retrieval.data.importers.gldv2 import read_photos, read_train
from landmark_retrieval.data.mixture import Mixture
from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def sharded(shards):
    return Mixture([ShardedPhotos.open(shards / "train_full")])


def epoch(source, workers=0, seen=0, **options):
    number = options.pop("epoch", 0)
    batches = TrainingBatches(source, 32, **({"batch_size": 8} | options))
    made = list(loader(batches, workers, at=lambda: (number, seen)))
    assert len(made) == len(batches) - seen
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
        assert batch["broken"] == []
    labels = torch.cat([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(np.bincount(labels), sharded.class_counts)


@pytest.mark.parametrize("transforms", ["fast", "albumentations"])
def test_batches_depend_on_seed_and_epoch_and_not_on_the_workers(sharded, transforms):
    reference = epoch(sharded, seed=3, epoch=2, transforms=transforms)
    assert same(reference, epoch(sharded, workers=2, seed=3, epoch=2, transforms=transforms))
    assert not same(reference, epoch(sharded, seed=3, epoch=1, transforms=transforms))
    assert not same(reference, epoch(sharded, seed=4, epoch=2, transforms=transforms))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_epoch_is_taken_up_at_the_next_batch(sharded, workers):
    whole = epoch(sharded, seed=1, workers=2)
    for seen in (1, 4, 6):
        assert same(whole[seen:], epoch(sharded, seed=1, workers=workers, seen=seen))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_make_the_batches_of_one(sharded, world):
    """The same photos with the same augmentation, whoever makes them."""
    alone = epoch(sharded, batch_size=4 * world, epoch=1)
    parts = [epoch(sharded, batch_size=4, epoch=1, rank=rank, world=world) for rank in range(world)]
    for whole, *shares in zip(alone, *parts, strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share["images"], whole["images"][rank::world])
            assert torch.equal(share["labels"], whole["labels"][rank::world])


def test_more_processes_and_workers_than_shards(sharded):
    parts = [epoch(sharded, batch_size=1, workers=2, rank=rank, world=16) for rank in range(16)]
    assert {len(part) for part in parts} == {3}
    labels = torch.cat([batch["labels"] for part in parts for batch in part])
    np.testing.assert_array_equal(np.bincount(labels), sharded.class_counts)


def test_too_few_photos_for_a_batch(sharded):
    with pytest.raises(LandmarkRetrievalError, match="not one batch of 64"):
        TrainingBatches(sharded, 32, 64)


def test_what_is_not_possible_is_told_before_workers_start(sharded):
    for options, message in (
        ({"transforms": "quick"}, "fast"),
        ({"lanes": 0}, "data.lanes=0"),
        ({"batch_size": 0}, "at least 1"),
    ):
        with pytest.raises(LandmarkRetrievalError, match=message):
            TrainingBatches(sharded, 32, **({"batch_size": 8} | options))


def test_a_killed_worker_ends_the_epoch_with_a_sentence(sharded):
    batches = iter(loader(Killing(TrainingBatches(sharded, 32, 8)), 2))
    with pytest.raises(LandmarkRetrievalError, match=r"decoding process ended early .*data\.num_workers"):
        list(batches)


class Killing(IterableDataset):
    """Batches, until the worker that makes the third one is killed."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        for number, batch in enumerate(self.batches):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch


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
def test_broken_photos_are_replaced_and_listed_in_training(damaged, workers):
    source, victims = damaged
    made = epoch(Mixture([source]), workers)
    assert [len(batch["labels"]) for batch in made] == [8] * 6
    broken = dict(row for batch in made for row in batch["broken"])
    assert set(broken) == victims
    assert len(victims) == 6
    assert all(broken.values())
    for batch in made:
        # as many pictures are there twice as photos are broken
        assert len(np.unique(batch["images"].reshape(8, -1).numpy(), axis=0)) == 8 - len(batch["broken"])


def test_broken_photos_are_named_in_description(damaged):
    source, victims = damaged
    batches = list(PhotoBatches(source, 32, 7))
    assert {photo for batch in batches for photo, _ in batch["broken"]} == victims
    assert sum(len(batch["ids"]) for batch in batches) == 48 - len(victims)


def test_nothing_but_broken_photos_is_an_error(damaged, tmp_path):
    source, _ = damaged
    for shard in source.manifest.shards:
        path = source.place.file(shard.file)
        data = path.read_bytes()
        for photo in list(source.photos()):
            data = data.replace(photo.data, b"\0" * len(photo.data))
        path.write_bytes(data)
    with pytest.raises(LandmarkRetrievalError, match="None of 8 photos in a row"):
        list(TrainingBatches(Mixture([source]), 32, 8))


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
    assert [batch["ids"] for batch, _ in pairs] == [list(table.ids[3:7]), list(table.ids[7:])]
    for first, second in pairs:
        assert first["ids"] == second["ids"]
        assert torch.equal(first["images"], second["images"])


def test_more_processes_than_photos(shards):
    with pytest.raises(LandmarkRetrievalError, match="cannot be dealt out to 20 processes"):
        PhotoBatches(ShardedPhotos.open(shards / "test"), 32, 4, world=20)


def test_a_table_of_broken_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (batch,) = PhotoBatches(PhotoTable(Ids(["a.jpg"]), FilesById(tmp_path.joinpath)), 16, 4)
    assert batch["images"].shape == (0, 16, 16, 3)
    assert batch["broken"] == [("a.jpg", "the file is empty or cannot be read")]


def test_training_images_look_like_their_photos(sharded):
    """Augmentation keeps labels with their pictures: the mean brightness of a class is that of its photos."""
    photos = [sharded.labelled(number) for number in range(len(sharded))]
    brightness = [(decode(photo.data).mean(), label) for photo, label in photos]
    expected = [np.mean([mean for mean, label in brightness if label == c]) for c in range(len(sharded.classes))]
    seen = [[] for _ in expected]
    for number in range(6):
        for batch in epoch(sharded, epoch=number):
            for image, label in zip(batch["images"], batch["labels"], strict=True):
                pixels = image.float()[image.sum(-1) > 0]
                seen[label].append(float(pixels.mean()))
    measured = [np.mean(values) for values in seen]
    assert np.corrcoef(expected, measured)[0, 1] > 0.9


def test_only_the_box_of_a_photo_is_described(photos):
    table = read_photos(photos, "test")
    boxes = np.tile(np.array([[10, 5, 60, 45]], np.int32), (len(table), 1))
    boxes[-1] = (5000, 5000, 6000, 6000)
    (batch,) = PhotoBatches(PhotoTable(table.ids, table.files, boxes=boxes), 40, len(table))
    assert [photo for photo, _ in batch["broken"]] == [table.ids[-1]]
    assert "lies outside" in batch["broken"][0][1]
    cut = decode(table.photo(0).data)[5:45, 10:60]
    np.testing.assert_array_equal(batch["images"][0].numpy(), resize(cut, 40))


def test_batches_travel_to_a_process_that_knows_nothing(sharded):
    """As where workers are spawned: without open files, and small."""
    batches = TrainingBatches(sharded, 32, 8)
    made = list(batches)
    packed = pickle.dumps(batches)
    assert len(packed) < 20_000
    assert same(made, list(pickle.loads(packed)))
