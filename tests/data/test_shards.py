import csv
import hashlib
import json
import tarfile

import numpy as np
import pytest

from landmark_retrieval.data import shards as module
from landmark_retrieval.data.gldv2 import read_photos, read_train
from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.shards import write_shards
from landmark_retrieval.errors import LandmarkRetrievalError


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def table(photos):
    return read_train(photos, "full")


@pytest.fixture
def breakable(photos, tmp_path):
    """A copy of the photos' tables whose files may be damaged."""
    table = read_train(photos, "full")
    own = tmp_path / "own"
    own.mkdir()
    for photo in table.ids:
        (own / photo).write_bytes(table.locate(photo).read_bytes())
    return module.PhotoTable(table.ids, PathIn(own), table.labels, table.classes)


class PathIn:
    def __init__(self, folder):
        self.folder = folder

    def __call__(self, photo):
        return self.folder / photo


def test_every_photo_once_byte_for_byte_with_its_label(table, tmp_path):
    manifest = write_shards(table, tmp_path / "s", photos_per_shard=10, workers=1)
    seen = {}
    for shard in manifest.shards:
        with tarfile.open(tmp_path / "s" / shard.file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".json"):
                about = json.loads(data)
                assert about["id"] not in seen
                seen[about["id"]] = (about["label"], members[name.replace(".json", ".jpg")])
    assert set(seen) == set(table.ids)
    for photo, label in zip(table.ids, table.labels, strict=True):
        assert seen[photo] == (label, table.locate(photo).read_bytes())
    assert manifest.photos == len(table)
    np.testing.assert_array_equal(manifest.class_counts, np.bincount(table.labels))
    assert Manifest.read(tmp_path / "s") == manifest
    manifest.check_files(tmp_path / "s", checksums=True)
    # mixed: the first shard holds more than one landmark
    with tarfile.open(tmp_path / "s" / manifest.shards[0].file) as tar:
        labels = {json.loads(tar.extractfile(m).read())["label"] for m in tar if m.name.endswith(".json")}
    assert len(labels) > 1


def test_same_bytes_with_one_and_two_processes(table, tmp_path):
    for workers in (1, 2):
        write_shards(table, tmp_path / str(workers), photos_per_shard=20, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_an_interrupted_run_carries_on(table, tmp_path, monkeypatch):
    write_shards(table, tmp_path / "whole", photos_per_shard=10, workers=1)
    real, calls = module._write_shard, []

    def failing(out, plan, job):
        calls.append(job[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(out, plan, job)

    monkeypatch.setattr(module, "_write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        write_shards(table, tmp_path / "s", photos_per_shard=10, workers=1)
    assert not (tmp_path / "s" / "manifest.json").exists()
    kept = (tmp_path / "s" / "shard-00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(module, "_write_shard", real)
    write_shards(table, tmp_path / "s", photos_per_shard=10, workers=1)
    assert (tmp_path / "s" / "shard-00000.tar").stat().st_mtime_ns == kept
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


def test_finished_shards_are_left_alone_and_other_photos_refused(table, photos, tmp_path):
    first = write_shards(table, tmp_path, photos_per_shard=10, workers=1)
    before = contents(tmp_path)
    assert write_shards(table, tmp_path, photos_per_shard=10, workers=1) == first
    assert contents(tmp_path) == before
    with pytest.raises(LandmarkRetrievalError, match="other photos or settings"):
        write_shards(read_photos(photos, "index"), tmp_path, photos_per_shard=10, workers=1)


def test_missing_and_broken_photos_stop_or_are_left_out_and_listed(breakable, tmp_path):
    missing, cut, empty = breakable.ids[3], breakable.ids[11], breakable.ids[20]
    breakable.locate(missing).unlink()
    breakable.locate(cut).write_bytes(breakable.locate(cut).read_bytes()[:2000])
    breakable.locate(empty).write_bytes(b"")
    with pytest.raises(LandmarkRetrievalError, match=r"3 of 48 photos cannot be used.*--skip-bad"):
        write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1)
    assert not (tmp_path / "s" / "manifest.json").exists()
    manifest = write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1, skip_bad=True)
    assert (manifest.photos, manifest.refused) == (45, 3)
    with (tmp_path / "s" / "refused.csv").open() as file:
        refused = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert set(refused) == {missing, cut, empty}
    assert "no such file" in refused[missing]
    assert "cut short" in refused[cut]
    assert "empty" in refused[empty]


def test_mended_photos_are_taken_on_the_next_call(breakable, tmp_path):
    photo = breakable.ids[0]
    data = breakable.locate(photo).read_bytes()
    breakable.locate(photo).write_bytes(data[:500])
    with pytest.raises(LandmarkRetrievalError, match=photo):
        write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1)
    breakable.locate(photo).write_bytes(data)
    manifest = write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1)
    assert (manifest.photos, manifest.refused) == (48, 0)
    assert not (tmp_path / "s" / "refused.csv").exists()


def test_a_landmark_left_without_photos_is_named(breakable, tmp_path):
    for photo, label in zip(breakable.ids, breakable.labels, strict=True):
        if label == 0:
            breakable.locate(photo).unlink()
    with pytest.raises(LandmarkRetrievalError, match=f"landmark {breakable.classes[0]} can be used"):
        write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1, skip_bad=True)


def test_damaged_shards_are_found(table, tmp_path):
    manifest = write_shards(table, tmp_path, photos_per_shard=10, workers=1)
    victim = tmp_path / manifest.shards[2].file
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    with pytest.raises(LandmarkRetrievalError, match=rf"{victim.name} has .* bytes instead of"):
        manifest.check_files(tmp_path)
    victim.write_bytes(data[:-1] + b"x")
    manifest.check_files(tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="other contents"):
        manifest.check_files(tmp_path, checksums=True)
    victim.unlink()
    with pytest.raises(LandmarkRetrievalError, match="missing"):
        manifest.check_files(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LandmarkRetrievalError, match="damaged"):
        Manifest.read(tmp_path)
