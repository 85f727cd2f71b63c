"""Exported files against the module, as a program without this package runs them: same descriptors, whole or absent."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import landmark_retrieval
from landmark_retrieval import cli, models
from landmark_retrieval.data.transforms import normalize
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.retrieval.extract import describe
from landmark_retrieval.zoo import export, save_model
from landmark_retrieval.zoo.export import export_model

SMALL = {"backbone": "mobilenetv3_small_050", "embedding_dim": 32}
HYBRID = {
    "cnn": "tf_efficientnet_lite0",
    "transformer": "swin_tiny_patch4_window7_224",
    "pretrained": "cnn",
    "embedding_dim": 32,
}
FORMATS = ("onnx", "torch-export")


def built(architecture="DOLGNet", arguments=SMALL, image_size=64, **card):
    """A model whose BatchNorm has seen photos, and its card: a fresh one gives nearly the same descriptor for all."""
    torch.manual_seed(0)
    model = getattr(models, architecture)(**arguments).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.9  # with the photos' statistics alone, random weights magnify rounding errors
    with torch.no_grad():
        model(normalize(torch.from_numpy(photos(8, image_size))))
    return model.eval(), {"architecture": architecture, "arguments": arguments, "image_size": image_size, **card}


def photos(batch, side):
    """Colour gradients with noise, uint8: unlike each other, unlike the plain noise that `export_model` checks with."""
    random = np.random.default_rng(batch)
    corners = random.uniform(0, 255, (batch, 2, 2, 3)).astype(np.float32)
    across = np.linspace(0, 1, side, dtype=np.float32)
    smooth = np.einsum("bijc,ih,jw->bhwc", corners, np.stack([across, 1 - across]), np.stack([across, 1 - across]))
    return (smooth + random.normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)


def load(path, format):
    """A function from photos to descriptors, of the file alone."""
    if format == "torch-export":
        module = torch.export.load(path).module()
        return lambda images: module(torch.from_numpy(images)).numpy()
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def assert_same_descriptors(run, model, card, batches=(1, 4)):
    for batch in batches:
        images = photos(batch, card["image_size"])
        found = run(images)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, describe(model, torch.from_numpy(images), card).numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    # else any constant would pass
    assert np.abs(found - found[:1])[1:].max(1).min() > 2e-3


@pytest.fixture(autouse=True)
def skip_onnx_without_the_extra(request):
    if "onnx" in request.node.name:
        pytest.importorskip("onnxscript", reason="needs the extra `export`")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("architecture", "arguments", "image_size"),
    [
        pytest.param("DOLGNet", SMALL | {"fusion": "released2021"}, 64, id="dolg-mobilenet"),
        # TensorFlow's padding depends on the size: an odd one shows a wrong side
        pytest.param("DOLGNet", {"backbone": "tf_efficientnet_b0"}, 75, id="dolg-b0"),
        pytest.param("GeMNet", {"backbone": "tf_efficientnet_lite0", "embedding_dim": None}, 64, id="gem"),
        pytest.param("DOLGResNet", {"depth": 50, "multi_atrous": True, "embedding_dim": 32}, 64, id="dolg-resnet"),
        pytest.param("HybridSwinNet", HYBRID, 224, id="hybrid-token", marks=pytest.mark.slow),
        pytest.param("HybridSwinNet", HYBRID | {"aggregation": "mean"}, 224, id="hybrid-mean", marks=pytest.mark.slow),
    ],
)
def test_the_file_gives_the_descriptors_of_the_module(tmp_path, architecture, arguments, image_size, format):
    model, card = built(architecture, arguments, image_size)
    exported = export_model(model, card, tmp_path / "model", format)
    assert exported.difference <= 1e-4
    assert list(tmp_path.iterdir()) == [exported.path] == list(exported.files)
    assert_same_descriptors(load(exported.path, format), model, card)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """format -> model, card and export of a small model with a normalisation of its own."""
    folder = tmp_path_factory.mktemp("exported")
    facts = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "name": "Türme", "licence": "CC-BY-4.0"}
    model, card = built(**facts, weights_sha256="5e" * 32, source=None)
    made = {}

    def make(format):
        if format not in made:
            made[format] = export_model(model, card, folder / f"model{export.SUFFIXES[format]}", format)
        return model, card, made[format]

    return make


@pytest.mark.parametrize("format", FORMATS)
def test_the_normalisation_is_that_of_the_card(exported, format):
    model, card, made = exported(format)
    run = load(made.path, format)
    assert_same_descriptors(run, model, card)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same_descriptors(run, model, {"image_size": 64})


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_says_what_it_is(exported, format):
    _, _, made = exported(format)
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
        session = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
        ((taken,), (given,)) = session.get_inputs(), session.get_outputs()
        assert (taken.name, taken.type, taken.shape) == ("images", "tensor(uint8)", ["batch", 64, 64, 3])
        assert (given.name, given.type, given.shape) == ("descriptors", "tensor(float)", ["batch", 32])
        found = session.get_modelmeta().custom_metadata_map
    else:
        files = {"card.json": ""}
        torch.export.load(made.path, extra_files=files)
        found = json.loads(files["card.json"])
    assert found == made.metadata
    assert found["name"] == "Türme"
    assert found["licence"] == "CC-BY-4.0"
    assert found["weights_sha256"] == "5e" * 32
    assert found["image_size"] == "64"
    assert json.loads(found["mean"]) == [0.5, 0.4, 0.3]
    assert json.loads(found["std"]) == [0.2, 0.3, 0.4]
    assert json.loads(found["arguments"]) == SMALL
    assert found["input"] == "images: uint8 (batch, 64, 64, 3), RGB"
    assert found["output"] == "descriptors: float32 (batch, 32), unit length"
    assert "source" not in found


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_tells_nothing_of_the_machine(exported, format):
    _, _, made = exported(format)
    content = made.path.read_bytes()
    for package in (landmark_retrieval, torch):
        assert str(Path(package.__file__).parents[1]).encode() not in content
    # the first bytes of a weight, so that the search above is not one in compressed data
    assert b"mobilenetv3_small_050" in content


def test_the_model_is_left_as_it_is(tmp_path):
    model, card = built()
    model.train().to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = export_model(model, card, tmp_path / "model.pt2", "torch-export")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    # computed in evaluation mode and float32, whatever the model was in
    assert_same_descriptors(load(made.path, "torch-export"), model.float().eval(), card)


def test_weights_too_large_for_an_onnx_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 100_000)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    card = {"image_size": 32}
    out = tmp_path / "model.onnx"
    made = export_model(model, card, out)
    assert made.files == (out, tmp_path / "model.onnx.data")
    assert sorted(tmp_path.iterdir()) == sorted(made.files)
    assert out.stat().st_size < 100_000 < made.files[1].stat().st_size
    assert_same_descriptors(load(out, "onnx"), model, card)


class Drifting(nn.Module):
    """Gives something else at every call, which a graph cannot do."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return images.mean((2, 3)) + self.calls * torch.tensor([1.0, 0, 0])


class NotANumber(nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) * torch.nan


class OfOneBatchSize(nn.Module):
    def forward(self, images):
        return images.reshape(2, -1)[:, :8]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("model", "reason"),
    [(Drifting(), "off by"), (NotANumber(), "off by nan"), (OfOneBatchSize(), "OfOneBatchSize cannot be exported")],
    ids=["drifting", "nan", "one-batch-size"],
)
def test_a_file_that_would_be_wrong_is_not_written(tmp_path, model, reason, format):
    out = tmp_path / "model"
    out.write_text("an older file")
    with pytest.raises(LandmarkRetrievalError, match=f"{out} was not written: .*{reason}"):
        export_model(model, {"image_size": 32}, out, format)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text() == "an older file"


def test_what_cannot_be_exported_is_told(tmp_path, monkeypatch):
    model, card = built()
    with pytest.raises(LandmarkRetrievalError, match="no format 'tflite': choose onnx or torch-export"):
        export_model(model, card, tmp_path / "model", "tflite")
    with pytest.raises(LandmarkRetrievalError, match="is a folder: name the file"):
        export_model(model, card, tmp_path, "torch-export")
    with pytest.raises(LandmarkRetrievalError, match=r"images of 16 px .*too small"):
        export_model(model, card | {"image_size": 16}, tmp_path / "model", "torch-export")
    for shape in ({"resize": "original"}, {"views": {"scales": [1.0], "flip": True}}):
        with pytest.raises(LandmarkRetrievalError, match="squares of one size"):
            export_model(model, card | shape, tmp_path / "model", "torch-export")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(LandmarkRetrievalError, match=r"needs onnx\w*, .* pip install landmark-retrieval\[export\]"):
        export_model(model, card, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_is_not_checked_without_onnxruntime(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    made = export_model(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), {"image_size": 32}, tmp_path / "model")
    assert made.difference is None
    assert made.path.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_the_command(tmp_path, monkeypatch, capsys, format):
    model, card = built()
    save_model(tmp_path / "finetune_large", model, card)
    monkeypatch.chdir(tmp_path)
    cli.main(["export", "finetune_large", "--format", format])
    printed = capsys.readouterr().out
    path = tmp_path / f"finetune_large{export.SUFFIXES[format]}"
    assert f"{path.name}: " in printed
    assert "images: uint8 (batch, 64, 64, 3), RGB" in printed
    assert "descriptors: float32 (batch, 32), unit length" in printed
    assert "largest difference from the module: " in printed
    assert_same_descriptors(load(path, format), model, card)
