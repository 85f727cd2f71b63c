import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from landmark_retrieval.data.datamodule import LandmarkDataModule
from landmark_retrieval.data.dataset import train_place
from landmark_retrieval.data.prepare import shard_folder
from landmark_retrieval.errors import LandmarkRetrievalError


def test_sets_of_gldv2(shards):
    clean = LandmarkDataModule(shards, "c", num_workers=0)
    large = LandmarkDataModule(shards, "x", num_workers=0)
    full = LandmarkDataModule(shards, "full", num_workers=0)
    assert clean.train.classes == large.train.classes
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


def test_validation_with_the_index_photos_that_match(shards):
    matching = LandmarkDataModule(shards, num_workers=0)
    everything = LandmarkDataModule(shards, num_workers=0, validation_index="all")
    right = {photo for images in matching.retrieval_solution.relevant.values() for photo in images}
    assert {photo.id for photo in matching.index.photos()} == right
    assert len(right) < len(everything.index)
    assert right < {photo.id for photo in everything.index.photos()}
    with pytest.raises(LandmarkRetrievalError, match="matching or all"):
        LandmarkDataModule(shards, validation_index="some")


def test_several_training_sets(shards):
    clean, full = (LandmarkDataModule(shards, which, num_workers=0).train for which in ("c", "full"))
    both = LandmarkDataModule(shards, ["c", "full"], image_size=16, batch_size=4, num_workers=0)
    assert len(both.train) == len(clean) + len(full)
    labels = torch.cat([batch["labels"] for batch in both.train_dataloader()])
    assert len(labels) == len(both.train) // 4 * 4
    weighed = LandmarkDataModule(shards, {"c": 1, str(shards / "train_full"): 3}, batch_size=4, num_workers=0)
    assert weighed.train.name == "train_c+train_full"
    numbers = weighed.train.plan(0, 0).at(np.arange(len(weighed.train)))
    assert (numbers >= len(clean)).mean() == pytest.approx(0.75, abs=0.05)
    for nothing in ([], {}):
        with pytest.raises(LandmarkRetrievalError, match="names no training set"):
            LandmarkDataModule(shards, nothing)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_taken_up_in_the_middle_of_an_epoch(shards, tmp_path, workers):
    """Trained through, and trained in two pieces with another number of workers: the same photos in the same steps."""

    def run(workers, start=None):
        seen = Seen()
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
            enable_progress_bar=False,
            enable_model_summary=False,
            reload_dataloaders_every_n_epochs=1,
        )
        data = LandmarkDataModule(shards, "full", image_size=16, batch_size=8, num_workers=workers)
        checkpoint = start and tmp_path / f"step={start}.ckpt"
        trainer.fit(seen, datamodule=data, ckpt_path=checkpoint, weights_only=False)
        return seen.batches

    through = run(0)
    assert len(through) == 18
    assert len({tuple(batch) for batch in through}) == 18
    # in the first epoch, in another one, at its end, in the last epoch
    for start in (1, 4, 8, 12, 17):
        assert run(workers, start) == through[start:]


class Seen(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def configure_optimizers(self):
        # asks for the training loader before the trainer knows where it is
        assert self.trainer.estimated_stepping_batches == 18
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.batches.append([*batch["labels"].tolist(), int(batch["images"].sum())])
        return self.weight.sum() + batch["images"].float().mean()


def test_data_without_validation(shards, tmp_path):
    (tmp_path / "train").symlink_to(shards / "train_c")
    data = LandmarkDataModule(tmp_path, num_workers=0)
    assert data.retrieval_solution is None
    assert data.val_dataloader() == []


def test_missing_data_says_what_to_do(shards, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"no data at .*nowhere.*landmark-retrieval shard"):
        LandmarkDataModule(tmp_path / "nowhere")
    with pytest.raises(LandmarkRetrievalError, match=r"no training set 'huge' \(it has: c, full, x\)"):
        train_place(shards, "huge")


def test_a_cut_shard_is_refused_before_training(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "s")
    victim = tmp_path / "s" / "train_c" / "shard-00001.tar"
    victim.write_bytes(victim.read_bytes()[:5000])
    with pytest.raises(LandmarkRetrievalError, match=r"shard-00001\.tar has 5,000 bytes"):
        LandmarkDataModule(tmp_path / "s", "c")
