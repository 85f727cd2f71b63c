import shutil

import pytest

from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.dataset import shard_folder, train_folder
from landmark_retrieval.errors import LandmarkRetrievalError


def test_sets_of_gldv2(shards):
    clean = LandmarkDataModule(shards, "c", num_workers=0)
    large = LandmarkDataModule(shards, "x", num_workers=0)
    full = LandmarkDataModule(shards, "full", num_workers=0)
    assert clean.train.manifest.classes == large.train.manifest.classes
    assert len(clean.train) < len(large.train) <= len(full.train) == 48
    assert clean.retrieval_solution is not None
    assert set(clean.retrieval_solution.relevant) <= {photo.id for photo in clean.query.photos()}


def test_a_folder_of_ones_own_with_landmarks_held_out(photos, tmp_path):
    own = tmp_path / "own"
    for i, path in enumerate(sorted((photos / "train").rglob("*.jpg"))[:12]):
        (own / f"100 % old, place {i % 3}").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, own / f"100 % old, place {i % 3}" / f"{i} a.jpg")
    shard_folder(own, tmp_path / "shards", hold_out=0.3, workers=1)
    data = LandmarkDataModule(tmp_path / "shards", "x", image_size=32, batch_size=4, num_workers=0)
    assert len(data.train) == 8
    assert len(data.query) + len(data.index) == 4
    assert len(data.train_dataloader()) == 2
    assert [len(loader) for loader in data.val_dataloader()] == [1, 1]
    (images,) = data.retrieval_solution.relevant.values()
    assert set(images) == {photo.id for photo in data.index.photos()}


def test_data_without_validation(shards, tmp_path):
    (tmp_path / "train").symlink_to(shards / "train_c")
    data = LandmarkDataModule(tmp_path, num_workers=0)
    assert data.retrieval_solution is None
    assert data.val_dataloader() == []


def test_missing_data_says_what_to_do(shards, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"no data at .*nowhere.*landmark-retrieval shard"):
        LandmarkDataModule(tmp_path / "nowhere")
    with pytest.raises(LandmarkRetrievalError, match=r"no training set 'huge' \(it has: c, full, x\)"):
        train_folder(shards, "huge")


def test_a_cut_shard_is_refused_before_training(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "s")
    victim = tmp_path / "s" / "train_c" / "shard-00001.tar"
    victim.write_bytes(victim.read_bytes()[:5000])
    with pytest.raises(LandmarkRetrievalError, match=r"shard-00001\.tar has 5,000 bytes"):
        LandmarkDataModule(tmp_path / "s", "c")
