"""A data set at a URL is read as one in a folder."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.dataset import open_queries_and_index, train_place
from landmark_retrieval.data.places import place
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.data.remote import cache as remote
from landmark_retrieval.data.remote.cache import Cache
from landmark_retrieval.errors import LandmarkRetrievalError


class Counting(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(shards, tmp_path):
    """Address of a copy of the shards, and the list of what was asked for."""
    shutil.copytree(shards, tmp_path / "served")
    handler = functools.partial(Counting, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server.asked
        server.shutdown()


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 10**9, stall_seconds=5, attempts=1)


def test_folders_and_files(served, cache, shards):
    local, remote = place(shards), place(served[0], cache)
    assert local.folders() == remote.folders() == ["index", "test", "train_c", "train_full", "train_x"]
    for name in ("retrieval_solution.csv", "recognition_solution.csv", "nothing.csv"):
        assert local.has(name) == remote.has(name) == (name != "nothing.csv")
    assert remote.name.startswith("127.0.0.1")
    assert remote.below("train_c").name == local.below("train_c").name == "train_c"
    assert train_place(remote, "c").manifest() == train_place(local, "c").manifest()


def test_photos_and_solutions(served, cache, shards):
    queries, index, solution = open_queries_and_index(place(served[0], cache))
    expected = open_queries_and_index(shards)
    assert solution == expected[2]
    assert list(queries.photos()) == list(expected[0].photos())
    assert list(index.photos(5, 9)) == list(expected[1].photos(5, 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_url(served, shards, tmp_path, workers):
    address, asked = served
    options = {"train_set": "full", "image_size": 16, "batch_size": 8, "num_workers": workers}
    local = list(LandmarkDataModule(shards, **options).train_dataloader())
    remote = LandmarkDataModule(address, **options, cache_dir=tmp_path / "cache")
    for first, second in zip(local, remote.train_dataloader(), strict=True):
        assert torch.equal(first["images"], second["images"])
        assert torch.equal(first["labels"], second["labels"])
    fetched = [path for path in asked if path.endswith(".tar")]
    assert len(fetched) == len(set(fetched)) == 5
    asked.clear()
    list(LandmarkDataModule(address, **options, cache_dir=tmp_path / "cache").train_dataloader())
    assert not [path for path in asked if path.endswith((".tar", ".npy"))]


def test_a_cache_for_less_than_the_data(served, cache, tmp_path, monkeypatch):
    """Every photo comes, and no more is kept than the bound allows, files deleted and still open among them."""
    monkeypatch.setattr(remote, "_IN_USE", 0)
    photos = ShardedPhotos.open(place(served[0], cache).below("train_full"))
    limit = max(shard.bytes for shard in photos.manifest.shards) * 2 + photos.manifest.samples[0]
    again = ShardedPhotos.open(place(served[0], Cache(tmp_path / "small", limit)).below("train_full"))
    served[1].clear()
    for original, photo in zip(photos.photos(), again.photos(), strict=True):
        assert photo == original
        held = [path for path in (tmp_path / "small").iterdir() if path.is_file()]
        assert sum(path.stat().st_size for path in held) <= limit
    opened = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    kept_open = [name for name in opened if str(tmp_path / "small") in name]
    assert not [name for name in kept_open if photos.manifest.samples[1] not in name]
    # each shard once for each of the two, though half of them did not fit
    assert len([path for path in served[1] if path.endswith(".tar")]) == 10


def test_a_cache_for_less_than_is_read_side_by_side(served, tmp_path):
    options = {"train_set": "full", "image_size": 16, "batch_size": 8, "cache_dir": tmp_path, "cache_gb": 1e-5}
    with pytest.raises(LandmarkRetrievalError, match=r"more than data.cache_gb=1e-05.*smaller data.lanes"):
        LandmarkDataModule(served[0], **options).train_dataloader()


def test_what_is_wrong_at_a_url_is_told(served, cache, tmp_path):
    address, _ = served
    shard = tmp_path / "served" / "train_full" / "shard-00001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    photos = ShardedPhotos.open(place(address, cache).below("train_full"))
    with pytest.raises(LandmarkRetrievalError, match=r"shard-00001\.tar.*not the file that was expected"):
        list(photos.photos())
    shard.unlink()
    with pytest.raises(
        LandmarkRetrievalError, match=r"^http[^ ]*shard-00001\.tar cannot be fetched .*404.*same again\.$"
    ):
        list(photos.photos())
    (tmp_path / "served" / "dataset.json").write_text("[]")
    with pytest.raises(LandmarkRetrievalError, match=r"dataset\.json is damaged"):
        place(address, cache).folders()
    with pytest.raises(LandmarkRetrievalError, match=r"^http[^ ]*dataset\.json cannot be fetched .*404"):
        LandmarkDataModule(f"{address}/nowhere", cache_dir=tmp_path / "cache")
    (tmp_path / "served" / "train_c" / "manifest.json").write_text("{")
    with pytest.raises(LandmarkRetrievalError, match=r"manifest\.json is damaged"):
        place(address, cache).below("train_c").manifest()


def test_no_such_folder(tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"no data at .*nowhere.*landmark-retrieval shard"):
        place(tmp_path / "nowhere")
