import pytest
import torch
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.freezing import freeze, frozen_modules


@pytest.fixture
def model():
    return nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "neck": nn.Conv2d(4, 2, 1)})


def test_frozen_parameters_and_statistics_stand_still(model):
    frozen = frozen_modules(model, ["backbone"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model.train()
        freeze(frozen)
        model["neck"](model["backbone"](torch.randn(4, 3, 5, 5))).sum().backward()
        optimizer.step()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"neck.weight", "neck.bias"}


def test_an_unknown_pattern_is_an_error_that_names_the_modules(model):
    with pytest.raises(LandmarkRetrievalError, match=r"'bakbone' *; it has backbone, .*neck"):
        frozen_modules(model, ["bakbone"])
