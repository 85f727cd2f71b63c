import itertools
import math

import pytest
from torch import nn

from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.models import DOLGNet
from landmark_retrieval.training.freezing import batchnorms, read_patterns, standing_still

NAMES = [
    "backbone.blocks.0.0.conv.weight",
    "backbone.blocks.10.0.conv.weight",
    "backbone.blocks.2.bn.bias",
    "neck.0.weight",
    "token",
    "head.weight",
]


def still(entries, epoch=0):
    return standing_still(NAMES, read_patterns(entries, NAMES, "stage.freeze"), epoch)


def test_a_pattern_takes_modules_with_all_inside_and_single_parameters():
    assert still(["backbone"]) == set(NAMES[:3])
    assert still(["backbone.blocks.[0-2]"]) == {NAMES[0], NAMES[2]}
    assert still(["token", "head"]) == {"token", "head.weight"}
    assert still(["*"]) == set(NAMES)
    assert still([]) == set()


def test_it_is_a_function_of_the_epoch_alone():
    entries = ["token", {"backbone": 3, "head": 1}]
    expected = {
        0: {*NAMES[:3], "token", "head.weight"},
        1: {*NAMES[:3], "token"},
        2: {*NAMES[:3], "token"},
        3: {"token"},
        50: {"token"},
        # what stands still for ever
        math.inf: {"token"},
    }
    # asked in any order, as runs that are taken up in any epoch do
    for order in itertools.permutations(expected):
        patterns = read_patterns(entries, NAMES, "stage.freeze")
        assert all(standing_still(NAMES, patterns, epoch) == expected[epoch] for epoch in order)


def test_a_pattern_that_matches_nothing_names_the_nearest_and_what_there_is():
    with pytest.raises(
        LandmarkRetrievalError,
        match=r"stage\.freeze: no module of the model matches 'backbne'; did you mean backbone or backbone.blocks\? "
        "It has backbone, neck, token, head",
    ):
        still(["backbne"])
    with pytest.raises(LandmarkRetrievalError, match=r"did you mean backbone\.blocks\.10"):
        still(["backbone.blocks.11"])
    with pytest.raises(LandmarkRetrievalError, match="'token' stands still for 'long' epochs; give a number"):
        still([{"token": "long"}])


def test_batchnorm_without_statistics_is_none_of_ours():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert list(batchnorms(dict(model.named_modules()))) == ["0"]
    norms = batchnorms(dict(DOLGNet("mobilenetv3_small_050").named_modules()))
    assert len(standing_still(norms, {"backbone": math.inf}, 0)) == sum(name.startswith("backbone.") for name in norms)
