import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

from landmark_retrieval import list_models, models
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo.records import WEIGHTS, find, released
from landmark_retrieval.zoo.registry import ARCHITECTURES

CONF = Path(__file__).parents[2] / "conf" / "model"


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_can_be_built(name):
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        net = getattr(models, architecture.model)(**architecture.arguments)
    assert net.embedding_dim == 512
    assert getattr(net, "image_size", architecture.image_size) == architecture.image_size
    json.dumps(dict(architecture.arguments))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_zoo_and_the_configs_mean_the_same_by_a_name(path):
    config = yaml.safe_load(path.read_text())
    configured = {key: value for key, value in config["model"].items() if key not in ("_target_", "pretrained")}
    architecture = ARCHITECTURES[config["name"]]
    assert config["model"]["_target_"].endswith(f".{architecture.model}")
    arguments = dict(architecture.arguments)
    assert set(configured) == set(arguments)
    # these depend on the stage: the zoo has the finished model
    later = ("image_size", "stem_stride") if path.stem == "dolg_efficientnet_b7" else ("image_size",)
    assert {k: v for k, v in configured.items() if k not in later} == {
        k: v for k, v in arguments.items() if k not in later
    }


def test_list_models():
    assert list_models() == sorted(ARCHITECTURES)
    assert list_models("dolg_resnet*") == ["dolg_resnet101", "dolg_resnet101_ma", "dolg_resnet50", "dolg_resnet50_ma"]
    assert list_models("no*") == []
    assert list_models(pretrained=True) == ["dolg_efficientnet_lite0.gldv2mini", "gem_efficientnet_lite0.imagenet"]
    assert list_models("gem_efficientnet_lite0", pretrained=True) == ["gem_efficientnet_lite0.imagenet"]
    assert list_models("dolg_resnet*", pretrained=True) == []


def test_records_are_whole():
    for name, weights in WEIGHTS.items():
        assert name == f"{weights.architecture}.{weights.tag}"
        assert weights.architecture in ARCHITECTURES
        assert weights.source
        # what can be fetched is known to the byte; what cannot says what to do and claims no figure
        if weights.location:
            assert len(weights.sha256) == 64 and weights.size and weights.licence and weights.command
        else:
            assert weights.by_hand and weights.figure is None and weights.sha256 is None
        json.dumps(dataclasses.asdict(weights))


def test_unknown_names():
    with pytest.raises(LandmarkRetrievalError, match="did you mean dolg_efficientnet_b5"):
        find("dolg_eficientnet_b5")
    with pytest.raises(LandmarkRetrievalError, match="its tags: feymanpriv"):
        find("dolg_resnet50.fymanpriv")
    with pytest.raises(LandmarkRetrievalError, match="zoo list"):
        find("xyz")


def test_weights_that_cannot_be_fetched_say_what_to_do():
    with pytest.raises(LandmarkRetrievalError, match=r"pan.baidu.com.*zoo convert FILE --source feymanpriv_dolg"):
        released(*find("dolg_resnet50"))
    with pytest.raises(LandmarkRetrievalError, match="No weights of hybrid_efficientnet_lite0_swin_tiny_224"):
        released(*find("hybrid_efficientnet_lite0_swin_tiny_224"))
