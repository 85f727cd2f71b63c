import pytest
import torch
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.training.freezing import freeze, freeze_batchnorm, matching_modules


@pytest.fixture
def model():
    return nn.ModuleDict({"backbone": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "neck": nn.Conv2d(4, 2, 1)})


def test_frozen_parameters_and_statistics_stand_still(model):
    frozen = matching_modules(model, ["backbone"], "stage.freeze")
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


def test_statistics_stand_still_while_the_weights_learn(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    freeze_batchnorm(matching_modules(model, ["back*"], "stage.freeze_batchnorm"))
    model["neck"](model["backbone"](torch.randn(4, 3, 5, 5))).square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {"backbone.1.running_mean", "backbone.1.running_var", "backbone.1.num_batches_tracked"}


def test_an_unknown_pattern_is_an_error_that_names_the_modules(model):
    with pytest.raises(LandmarkRetrievalError, match=r"'bakbone' *; it has backbone, .*neck"):
        matching_modules(model, ["bakbone"], "stage.freeze")
