"""What several test files need: golden values, the fill rule that rebuilds the weights behind them, real photos if
present."""

import importlib.util
import json
import os
import time
from pathlib import Path
from types import ModuleType

# no run of the suite may wait for a hub or send anything out; threads that wait for each other slow down small models
os.environ.update(HF_HUB_OFFLINE="1", NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled", OMP_NUM_THREADS="1")

import numpy as np
import pytest
import torch

from landmark_retrieval.data.prepare import shard_gldv2
from landmark_retrieval.data.procedural import generate

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def fill_rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_rule", GOLDEN / "fill_rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden_case(fill_rule):
    """name -> (meta, weights as the original names them, images, expected arrays)."""

    def load(name: str):
        folder = GOLDEN / name
        meta = json.loads((folder / "meta.json").read_text())
        keys_file = folder / "keys.json"
        keys = json.loads((keys_file if keys_file.exists() else GOLDEN / "dolg_b0_128" / "keys.json").read_text())
        weights = {k: torch.from_numpy(v) for k, v in fill_rule.original_state_dict(keys).items()}
        images = torch.from_numpy(fill_rule.make_input(meta["input"]["seed"], meta["input"]["shape"]))
        return meta, weights, images, dict(np.load(folder / "expected.npz"))

    return load


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Drawn photos of 5 + 3 landmarks in the layout of GLDv2."""
    folder = tmp_path_factory.mktemp("photos") / "drawn"
    generate(
        folder,
        train_landmarks=5,
        index_landmarks=3,
        train_photos=48,
        index_photos=14,
        test_photos=9,
        workers=1,
        progress=False,
    )
    return folder


@pytest.fixture(scope="session")
def shards(photos, tmp_path_factory) -> Path:
    """The drawn photos as shards; do not write into it."""
    folder = tmp_path_factory.mktemp("shards")
    shard_gldv2(photos, folder, ("c", "x", "full"), photos_per_shard=10, workers=1)
    return folder


# a model small enough to train in a test
TINY = (
    "model.backbone=mobilenetv3_small_050",
    "model.pretrained=false",
    "data.image_size=48",
    "data.batch_size=8",
    "data.num_workers=0",
    "stage.epochs=2",
    "stage.stop=null",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)


@pytest.fixture(scope="session")
def tiny(shards) -> tuple[str, ...]:
    """Overrides that make any stage small, on the drawn photos."""
    return (*TINY, f"data.root={shards}")


@pytest.fixture(scope="session")
def wait_for():
    """Wait until `found()` gives something, and return it."""

    def wait(found, seconds=120):
        deadline = time.monotonic() + seconds
        while not (result := found()):
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.05)
        return result

    return wait


@pytest.fixture(scope="session")
def running():
    """Whether the process of an id runs; one that has ended and waits to be collected does not."""

    def runs(process):
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return runs
