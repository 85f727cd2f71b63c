import dataclasses
import pickle
import shutil

import numpy as np
import pytest
from webdataset.tariterators import tarfile_to_samples

from landmark_retrieval.data import reading as module
from landmark_retrieval.data.manifest import Manifest, wrong_file
from landmark_retrieval.data.photos import Photo
from landmark_retrieval.data.places import LocalPlace
from landmark_retrieval.data.reading import Selection, ShardedPhotos
from landmark_retrieval.errors import LandmarkRetrievalError


@pytest.fixture
def sharded(shards):
    return ShardedPhotos.open(shards / "train_full")


@pytest.fixture
def own(shards, tmp_path):
    """Shards that may be damaged."""
    shutil.copytree(shards / "train_full", tmp_path / "own")
    return tmp_path / "own"


def test_photos_are_those_that_webdataset_reads(sharded, shards):
    """The numbers in samples.npy against a reader of whole tar files."""
    urls = [{"url": str(shards / "train_full" / shard.file)} for shard in sharded.manifest.shards]
    theirs = list(tarfile_to_samples()(urls))
    ours = list(sharded.photos())
    assert [photo.data for photo in ours] == [sample["jpg"] for sample in theirs]
    assert len(ours) == len(sharded) == 48
    assert [photo.id for photo in ours] == list(sharded.ids)
    assert [photo.label for photo in ours] == sharded.labels.tolist()
    np.testing.assert_array_equal(np.bincount(sharded.labels), sharded.manifest.class_counts)


def test_reading_from_the_middle_equals_a_slice(sharded):
    everything = list(sharded.photos())
    assert all(isinstance(photo, Photo) for photo in everything)
    for start, stop in ((0, 48), (9, 11), (10, 20), (37, None), (48, None), (5, 5), (40, 100)):
        assert list(sharded.photos(start, stop)) == everything[start:stop]
    assert sharded.photo(31) == everything[31]
    for number in (-1, 48):
        with pytest.raises(IndexError):
            sharded.photo(number)


def test_a_copy_for_a_worker_reads_the_same(sharded):
    sharded.photo(0)
    assert pickle.loads(pickle.dumps(sharded)).photo(20) == sharded.photo(20)


def test_more_shards_than_files_may_be_open(sharded, monkeypatch):
    monkeypatch.setattr(module, "_OPEN_SHARDS", 2)
    order = np.random.default_rng(0).permutation(48).tolist()
    everything = list(sharded.photos())
    assert [sharded.photo(number) for number in order] == [everything[number] for number in order]
    assert len(sharded._files._open) == 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_shard_cut_while_it_is_read_is_an_error(own, share):
    sharded = ShardedPhotos.open(own)
    shard = own / sharded.manifest.shards[0].file
    shard.write_bytes(shard.read_bytes()[: int(share * shard.stat().st_size)])
    with pytest.raises(LandmarkRetrievalError, match=rf"{shard.name} is damaged \(it ends inside photo"):
        list(sharded.photos())


def test_other_contents_are_never_taken_for_the_photo(own):
    """A shard of the same size from elsewhere: labels would be silently wrong."""
    sharded = ShardedPhotos.open(own)
    shard = own / sharded.manifest.shards[1].file
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b'"label": ', b'"label": 1')[: len(data)])
    with pytest.raises(LandmarkRetrievalError, match=f"{shard.name} is damaged"):
        list(sharded.photos())


def test_a_shard_that_vanishes(own):
    sharded = ShardedPhotos.open(own)
    shard = own / sharded.manifest.shards[2].file
    shard.unlink()
    with pytest.raises(LandmarkRetrievalError, match=rf"{shard.name} cannot be read \(No such file"):
        list(sharded.photos())


@pytest.mark.parametrize("content", [b"", b"no numbers", b"half"])
def test_damaged_samples(own, content):
    samples = own / "samples.npy"
    samples.write_bytes(samples.read_bytes()[:300] if content == b"half" else content)
    with pytest.raises(LandmarkRetrievalError, match=r"samples\.npy has .* bytes instead of"):
        ShardedPhotos.open(own)
    manifest = Manifest.read(own)
    with pytest.raises(LandmarkRetrievalError, match=r"samples\.npy is damaged"):
        ShardedPhotos(own, dataclasses.replace(manifest)).photo(0)


def test_find(sharded):
    wanted = list(sharded.photos())[::7]
    assert sharded.find({photo.id for photo in wanted} | {"nowhere"}) == {photo.id: photo.data for photo in wanted}
    assert sharded.find(set()) == {}


def test_a_selection(sharded):
    numbers = np.array([40, 3, 17])
    some = Selection(sharded, numbers)
    assert [photo.id for photo in some.photos()] == [sharded.ids[number] for number in (40, 3, 17)]
    assert list(some.photos(1, 3)) == [sharded.photo(3), sharded.photo(17)]
    assert len(some) == 3
    assert some.fingerprint != Selection(sharded, numbers[::-1]).fingerprint


def test_no_manifest(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match="no shard manifest"):
        ShardedPhotos.open(tmp_path)


def test_two_hundred_damaged_shards_and_an_exact_account(sharded, tmp_path):
    """Each photo of a damaged shard comes under its own id with its own label, or there is an error that names the
    shard; and checksums find the damage every time."""
    shard = sharded.manifest.shards[0]
    whole = (sharded.place.path / shard.file).read_bytes()
    originals = [sharded.photo(number) for number in range(shard.photos)]
    rng = np.random.default_rng(0)
    own = tmp_path / shard.file
    outcomes = {"same": 0, "other bytes": 0, "error": 0}
    for turn in range(200):
        data = bytearray(whole)
        place = int(rng.integers(len(data) - 600))
        if turn % 4 == 0:
            data = data[:place]
        elif turn % 4 == 1:
            data[place] ^= 1 << int(rng.integers(8))
        elif turn % 4 == 2:
            data[place : place + 512] = bytes(512) if any(data[place : place + 512]) else b"\1" * 512
        else:
            start = place // 512 * 512  # a block more, so that all that follows is out of place
            data = data[:start] + data[start : start + 512] + data[start:]
        own.write_bytes(data)
        damaged = ShardedPhotos(LocalPlace(tmp_path), dataclasses.replace(sharded.manifest))
        shutil.copy(sharded.place.path / "samples.npy", tmp_path)
        assert wrong_file(tmp_path, (shard.file, shard.bytes, shard.sha256), checksum=True)
        for original in originals:
            number = sharded.ids.rows([original.id])[0]
            try:
                photo = damaged.photo(int(number))
            except LandmarkRetrievalError as error:
                outcomes["error"] += shard.file in str(error)
                continue
            assert (photo.id, photo.label) == (original.id, original.label)
            outcomes["same" if photo == original else "other bytes"] += 1
    assert sum(outcomes.values()) == 200 * len(originals)
    assert min(outcomes.values()) > 20
