"""What several test files need: golden values, the fill rule that rebuilds the weights behind them, real photos if
present."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

# no run of the suite may wait for a hub, or send anything out
os.environ.update(HF_HUB_OFFLINE="1", NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="disabled")

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
