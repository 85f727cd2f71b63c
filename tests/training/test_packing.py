"""A packed model describes photos as a PCA of its features by another library does."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from landmark_retrieval.cli import main
from landmark_retrieval.data.decode import decode, resize
from landmark_retrieval.data.reading import ShardedPhotos
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.models import DOLGResNet, GeMNet
from landmark_retrieval.training import packing
from landmark_retrieval.training.packing import pack
from landmark_retrieval.zoo import load_model
from landmark_retrieval.zoo.saved_model import save_model

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ARGUMENTS = {"backbone": "mobilenetv3_small_050", "embedding_dim": 12}
CARD = {"architecture": "GeMNet", "arguments": ARGUMENTS, "image_size": 64, "mean": list(MEAN), "std": list(STD)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = GeMNet(**ARGUMENTS)
    with torch.no_grad():  # a neck that bends and shifts, as training leaves it
        made.neck[1].running_mean.normal_()
        made.neck[1].weight.uniform_(0.5, 2)
    return made.eval()


@pytest.fixture(scope="module")
def source(shards):
    return ShardedPhotos.open(shards / "train_full")


@pytest.fixture(scope="module")
def images(source):
    """All photos as the model takes them, (n, 3, 64, 64)."""
    pixels = np.stack([resize(decode(photo.data), 64) for photo in source.photos()]) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).transpose(0, 3, 1, 2)).float()


@torch.inference_mode()
def pooled(model, images):
    return model.global_pool(model.backbone(images)).double().numpy()


@torch.inference_mode()
def described(model, images):
    return F.normalize(model(images)).numpy()


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_the_neck_is_the_pca_of_another_library(model, source, images, tmp_path, power):
    pack(model, CARD, source, tmp_path, embedding_dim=9, power=power, half=False, workers=0)
    packed, card = load_model(tmp_path)
    rows = pooled(model, images)
    pca = PCA(9, svd_solver="full").fit(rows)
    expected = pca.transform(rows) / pca.explained_variance_ ** (power / 2)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = described(packed, images)
    # axes are the same up to their signs
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-4)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=5e-4)
    assert card["arguments"]["embedding_dim"] == packed.embedding_dim == 9
    assert f"{len(source)} photos" in card["neck"]


def test_half_the_size_and_the_same_neighbours(model, source, images, tmp_path):
    whole = pack(model, CARD, source, tmp_path / "whole", half=False, workers=0)
    half = pack(model, CARD, source, tmp_path / "half", workers=0, name="a.b", licence="of one's own")
    assert half["weights_size"] == pytest.approx(whole["weights_size"] / 2, rel=0.05)
    assert half["name"] == "a.b" and half["licence"] == "of one's own"
    kinds = {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()}
    assert kinds == {torch.float16, torch.int64}
    expected, found = (described(load_model(tmp_path / name)[0], images) for name in ("whole", "half"))
    assert (expected * found).sum(1).min() > 0.999
    lengths = load_model(tmp_path / "half")[0](images).detach().norm(dim=1)
    assert lengths.square().mean().sqrt().item() == pytest.approx(1, rel=0.02)


def test_the_model_itself_stays_as_it_is(model, source, tmp_path):
    before = copy.deepcopy(model.state_dict())
    pack(model, CARD, source, tmp_path, workers=0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert CARD["arguments"] == ARGUMENTS


def test_a_card_without_mean_and_std_means_those_of_imagenet(model, source, images, tmp_path):
    bare = {key: value for key, value in CARD.items() if key not in ("mean", "std")}
    pack(model, CARD, source, tmp_path / "said", workers=0)
    pack(model, bare, source, tmp_path / "bare", workers=0)
    expected, found = (described(load_model(tmp_path / name)[0], images) for name in ("said", "bare"))
    np.testing.assert_array_equal(found, expected)


def test_the_neck_can_be_kept(model, source, images, tmp_path):
    pack(model, CARD, source, tmp_path, power=None, half=False)
    np.testing.assert_allclose(described(load_model(tmp_path)[0], images), described(model, images), atol=1e-6)
    with pytest.raises(LandmarkRetrievalError, match="leave out one"):
        pack(model, CARD, source, tmp_path, embedding_dim=9, power=None)


def test_of_many_photos_evenly_chosen_ones_are_enough(model, source, images, monkeypatch):
    monkeypatch.setattr(packing, "LARGEST_SAMPLE", 20)
    rows = packing.features(model, CARD, source, batch_size=7, workers=0)
    np.testing.assert_allclose(rows, pooled(model, images)[:: -(-len(source) // 20)], rtol=1e-3, atol=1e-4)


def test_what_cannot_be_packed(model, source, tmp_path):
    with pytest.raises(LandmarkRetrievalError, match=r"DOLGResNet has no neck .*--keep-neck"):
        pack(DOLGResNet(50).eval(), CARD, source, tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="not squares"):
        pack(model, {**CARD, "resize": "original"}, source, tmp_path)
    with pytest.raises(LandmarkRetrievalError, match="choose fewer"):
        pack(model, CARD, source, tmp_path, embedding_dim=len(source), workers=0)
    assert not (tmp_path / "model.json").exists()


def test_broken_photos_are_named(model, source, tmp_path):
    class OneBroken:
        fingerprint = "some"

        def __len__(self):
            return len(source)

        def prefetch(self, numbers):
            pass

        def photos(self, start=0, stop=None):
            for number, photo in enumerate(source.photos(start, stop), start):
                yield photo if number != 3 else type(photo)(**{**vars(photo), "data": photo.data[:200]})

    with pytest.raises(LandmarkRetrievalError, match=f"1 photos cannot be decoded, the first is {source.ids[3]}"):
        pack(model, CARD, OneBroken(), tmp_path, workers=0)


def test_the_command(model, shards, tmp_path, capsys):
    save_model(tmp_path / "run", model, CARD)
    main(["zoo", "pack", str(tmp_path / "run"), str(shards), "--out", str(tmp_path / "small"), "--image-size", "96"])
    assert "MB" in capsys.readouterr().out
    assert load_model(tmp_path / "small")[1]["image_size"] == 96
