import csv
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmark_retrieval.data import shards as module
from landmark_retrieval.data.decode import decode, resize
from landmark_retrieval.data.importers.gldv2 import read_photos, read_train
from landmark_retrieval.data.manifest import Manifest
from landmark_retrieval.data.photos import FilesById, Ids, PhotoTable
from landmark_retrieval.data.reading import ShardedPhotos
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
        (own / photo).write_bytes(table.find([photo])[photo])
    return PhotoTable(table.ids, FilesById(PathIn(own)), table.labels, table.classes)


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
        assert seen[photo] == (label, table.files.locate(photo).read_bytes())
    assert manifest.photos == len(table)
    np.testing.assert_array_equal(manifest.class_counts, np.bincount(table.labels))
    assert Manifest.read(tmp_path / "s") == manifest
    manifest.check_files(tmp_path / "s", checksums=True)
    # mixed: the first shard holds more than one landmark
    with tarfile.open(tmp_path / "s" / manifest.shards[0].file) as tar:
        labels = {json.loads(tar.extractfile(m).read())["label"] for m in tar if m.name.endswith(".json")}
    assert len(labels) == manifest.shards[0].classes > 1


def test_same_bytes_with_one_and_two_processes(table, tmp_path):
    for workers in (1, 2):
        write_shards(table, tmp_path / str(workers), photos_per_shard=20, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_larger_photos_are_scaled_down_and_smaller_ones_kept(table, tmp_path):
    sizes = {photo.id: decode(photo.data).shape[:2] for photo in table.photos()}
    limit = sorted(max(size) for size in sizes.values())[len(sizes) // 2]
    manifest = write_shards(table, tmp_path, longest_side=limit, workers=1)
    kept = 0
    for photo in ShardedPhotos.open(tmp_path).photos():
        height, width = sizes[photo.id]
        image = decode(photo.data)
        if max(height, width) <= limit:
            assert photo.data == table.find([photo.id])[photo.id]
            kept += 1
        else:
            assert max(image.shape) == limit
            assert image.shape[0] / image.shape[1] == pytest.approx(height / width, rel=0.02)
            original = decode(table.find([photo.id])[photo.id])
            assert np.abs(resize(original, 32).astype(int) - resize(image, 32)).mean() < 3
    assert 0 < kept < len(sizes)
    with pytest.raises(LandmarkRetrievalError, match="other photos or settings"):
        write_shards(table, tmp_path, longest_side=limit + 1, workers=1)
    assert manifest.photos == len(table)


def test_boxes_travel_with_their_photos(table, tmp_path):
    boxes = np.arange(4 * len(table), dtype=np.int32).reshape(-1, 4)
    write_shards(PhotoTable(table.ids, table.files, boxes=boxes), tmp_path, shuffle=False, workers=1)
    assert [photo.box for photo in ShardedPhotos.open(tmp_path).photos()] == [tuple(box) for box in boxes.tolist()]


def test_members_are_named_by_what_they_are(table, tmp_path):
    """Whatever a file is called, readers go by the suffix of the member."""
    image = decode(table.photo(0).data)
    for name, suffix in (("a", ".png"), ("b", ".webp"), ("c", ".jpg")):
        data = cv2.imencode(suffix, image)[1].tobytes()
        (tmp_path / f"{name}.jpg").write_bytes(data)
    own = PhotoTable(Ids(["a.jpg", "b.jpg", "c.jpg"]), FilesById(PathIn(tmp_path)))
    manifest = write_shards(own, tmp_path / "s", shuffle=False, workers=1)
    with tarfile.open(tmp_path / "s" / manifest.shards[0].file) as tar:
        assert [name for name in tar.getnames() if not name.endswith("json")] == [
            "0000000.png",
            "0000001.webp",
            "0000002.jpg",
        ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_told_and_the_next_call_carries_on(table, tmp_path, workers):
    """In a process that may not write files of more than 60 kB; the limit counts for its workers, too."""
    root = tmp_path / "photos"
    for photo, data in table.find(list(table.ids)).items():
        place = root / "Tower" / f"{photo}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    command = f"landmark-retrieval shard folder {root} --out {tmp_path / 's'} --workers {workers} --photos-per-shard "
    limited = f"ulimit -f 60; trap '' XFSZ; exec python -m landmark_retrieval.cli {command.split(maxsplit=1)[1]}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", f"{limited} 30"], capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert "cannot take more: File too large" in done.stderr
    assert "carries on" in done.stderr
    assert not list((tmp_path / "s").rglob("*.partial"))
    assert not (tmp_path / "s" / "train" / "manifest.json").exists()


def test_an_interrupted_run_carries_on(table, tmp_path, monkeypatch):
    write_shards(table, tmp_path / "whole", photos_per_shard=10, workers=1)
    real, calls = module._write_shard, []

    def failing(out, plan, longest_side, job):
        calls.append(job[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(out, plan, longest_side, job)

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
    breakable.files.locate(missing).unlink()
    breakable.files.locate(cut).write_bytes(breakable.files.locate(cut).read_bytes()[:2000])
    breakable.files.locate(empty).write_bytes(b"")
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
    data = breakable.files.locate(photo).read_bytes()
    breakable.files.locate(photo).write_bytes(data[:500])
    with pytest.raises(LandmarkRetrievalError, match=photo):
        write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1)
    breakable.files.locate(photo).write_bytes(data)
    manifest = write_shards(breakable, tmp_path / "s", photos_per_shard=10, workers=1)
    assert (manifest.photos, manifest.refused) == (48, 0)
    assert not (tmp_path / "s" / "refused.csv").exists()


def test_a_landmark_left_without_photos_is_named(breakable, tmp_path):
    for photo, label in zip(breakable.ids, breakable.labels, strict=True):
        if label == 0:
            breakable.files.locate(photo).unlink()
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


def test_classes_of_another_set_may_be_empty(table, tmp_path):
    few = table.take(np.flatnonzero(table.labels == 1))
    with pytest.raises(LandmarkRetrievalError, match=f"landmark {table.classes[0]} can be used"):
        write_shards(few, tmp_path / "a", workers=1)
    manifest = write_shards(few, tmp_path / "b", workers=1, empty_classes=True)
    assert manifest.classes == table.classes
    assert manifest.class_counts == (0, len(few), 0, 0, 0)


def test_a_killed_worker(table, tmp_path):
    def kill():
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)

    timer = threading.Timer(0.2, kill)
    timer.start()
    with pytest.raises(LandmarkRetrievalError, match="A worker process died"):
        write_shards(table, tmp_path, photos_per_shard=1, workers=2)
    timer.join()
    assert not (tmp_path / "manifest.json").exists()
    manifest = write_shards(table, tmp_path, photos_per_shard=1, workers=1)
    manifest.check_files(tmp_path, checksums=True)
    assert manifest.photos == len(table)
    assert not list(tmp_path.rglob("*.partial"))
