"""What a stage begins with, from what the one before handed over."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from landmark_retrieval import HybridSwinNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.heads import SubCenterArcFace
from landmark_retrieval.training.handoff import Handoff
from landmark_retrieval.training.parameter_table import Origin, parameter_table
from landmark_retrieval.training.starting_point import starting_point

SWIN = "swin_tiny_patch4_window7_224"


class Net(nn.Linear):
    """A model of two layers' worth of nothing."""

    embedding_dim = 4

    def __init__(self, width=3, pretrained=False):
        super().__init__(width, 4)


def config(model=None, arcface=None, **stage):
    return {
        "stage": {"name": "second", "surgery": None, "head": "same", **stage},
        "model": {"_target_": f"{__name__}.Net", "pretrained": True, **(model or {})},
        "head": {
            "_target_": "landmark_retrieval.heads.SubCenterArcFace",
            "sub_centers": 2,
            "margins": 0.1,
            "sharded": False,
            "sample_rate": 1.0,
            **(arcface or {}),
        },
    }


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """`_target_` names this file."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "Net", Net, raising=False)


@pytest.fixture
def parent(tmp_path):
    head = SubCenterArcFace(4, 3, sub_centers=2)
    return Handoff.write(
        tmp_path / "first", "first", Net(), head.weight, {}, ["a", "b", "c"], {}, {"photos_sha256": "7"}
    )


def start(parent, classes, **keys):
    return starting_point(config(**keys), parent, classes, (5,) * len(classes))


def test_the_same_classes_take_over_everything(parent):
    _, head, origin = start(parent, ["a", "b", "c"])
    assert torch.equal(head.weight, parent.head_weight())
    assert not origin.new and not sum(origin.partly.values()) and not origin.dropped
    assert "3 of 3 classes" in origin.summary
    # in whatever order
    _, head, _ = start(parent, ["c", "a", "b"])
    assert torch.equal(head.weight.view(3, -1), parent.head_weight().view(3, -1)[[2, 0, 1]])


def test_other_classes_are_named_and_a_way_is_offered(parent):
    with pytest.raises(
        LandmarkRetrievalError,
        match=r"not those of stage first in .*: 2 new \(x, y\) and 1 gone \(c\)\. stage\.head=by_name takes over",
    ):
        start(parent, ["x", "b", "y", "a"])


def test_the_head_is_rebuilt_by_class_name(parent):
    torch.manual_seed(0)
    _, head, origin = start(parent, ["x", "b", "a"], head="by_name")
    torch.manual_seed(0)
    Net()
    fresh = SubCenterArcFace(4, 3, sub_centers=2).weight
    assert torch.equal(head.weight[2:].view(2, -1), parent.head_weight().view(3, -1)[[1, 0]])
    assert torch.equal(head.weight[:2], fresh[:2])
    assert "2 of 3 classes" in origin.summary
    assert (origin.partly, origin.dropped) == ({"head.weight": 8}, {"head.weight": 8})


def test_a_fresh_head(parent):
    _, head, origin = start(parent, ["a", "b", "c"], head="fresh")
    assert not torch.equal(head.weight, parent.head_weight())
    assert (origin.partly, origin.dropped) == ({"head.weight": 24}, {"head.weight": 24})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"head": "other"}, r"stage\.head is same, by_name or fresh, not 'other'"),
        ({"model": {"width": 5}}, r"hands over another model \(1 tensors differ, the first is weight\)"),
        (
            {"surgery": "insert_cnn_block"},
            "GeMNet has no 'insert_cnn_block'; it has none: leave it out",
        ),
    ],
)
def test_mistakes(parent, keys, message):
    if "surgery" in keys:
        page = json.loads((parent.folder / "handoff.json").read_text())
        page["card"] |= {"architecture": "GeMNet", "arguments": {"backbone": "mobilenetv3_small_050"}}
        (parent.folder / "handoff.json").write_text(json.dumps(page))
        parent = Handoff.read(parent.folder, "")
    with pytest.raises(LandmarkRetrievalError, match=message):
        start(parent, ["a", "b", "c"], **keys)


def test_another_number_of_centers(parent):
    wanted = config(arcface={"sub_centers": 3})
    with pytest.raises(LandmarkRetrievalError, match="a head of 2 centers of 4 numbers per class, this stage has 3 "):
        starting_point(wanted, parent, ["a", "b", "c"], (5, 5, 5))


def test_surgery_without_a_stage_before():
    with pytest.raises(LandmarkRetrievalError, match="changes the model of an earlier stage, and stage second starts"):
        start(None, ["a"], surgery="insert_cnn_block")


def test_the_page_says_which_photos(parent):
    assert Handoff.read(parent.folder, "").photos_sha256 == "7"
    assert json.loads((parent.folder / "handoff.json").read_text())["photos_sha256"] == "7"


# --- surgery ---


def hybrid(cnn, blocks=1, size=224, **more):
    return {
        "_target_": "landmark_retrieval.models.HybridSwinNet",
        "pretrained": False,
        "cnn": cnn,
        "transformer": SWIN,
        "image_size": size,
        "cnn_blocks": blocks,
        "stem_stride": 2,
        "aggregation": "token",
        "position_embedding": True,
        "embedding_dim": 8,
        **more,
    }


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """The hand-over of the first of the four steps."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("patches")
    arguments = {key: value for key, value in hybrid(None).items() if key not in ("_target_", "pretrained")}
    net = HybridSwinNet(**arguments)
    card = {"architecture": "HybridSwinNet", "arguments": arguments}
    return Handoff.write(folder, "first", net, SubCenterArcFace(8, 2, sub_centers=2).weight, card, ["a", "b"], {}, {})


def operate(parent, model, surgery):
    wanted = config(surgery=surgery)
    wanted["model"] = model
    return starting_point(wanted, parent, ["a", "b"], (5, 5))


def test_the_patch_embedding_is_exchanged_and_the_rest_carried_over(patches, tmp_path):
    model, head, origin = operate(patches, hybrid("tf_efficientnet_lite0"), "replace_patch_embedding")
    old, new = load_file(patches.folder / "model.safetensors"), model.state_dict()
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("patch_embedding."))
    assert {name.partition(".")[0] for name in origin.new} == {"patch_embedding"}
    assert set(origin.new) == {n for n, _ in model.named_parameters() if n.startswith("patch_embedding.")}
    assert set(origin.dropped) == {key for key in old if key.startswith("patch_embedding.")}

    # and one block more
    card = {"architecture": "HybridSwinNet", "arguments": model.arguments}
    second = Handoff.write(tmp_path, "second", model, head.weight, card, ["a", "b"], {}, {})
    third, _, origin = operate(second, hybrid("tf_efficientnet_lite0", 2, 448), "insert_cnn_block")
    assert third.image_size == 448
    assert "patch_embedding.cnn.conv_stem.weight" not in origin.new
    assert "patch_embedding.project.weight" in origin.new
    assert "patch_embedding.project.weight" in origin.dropped


@pytest.mark.parametrize(
    ("model", "surgery", "message"),
    [
        (
            hybrid("tf_efficientnet_lite0", 2, 224),
            "replace_patch_embedding",
            r"on the model of stage first makes one of image_size 448, not 224: mend the `model` and data\.image_size",
        ),
        (hybrid("tf_efficientnet_lite0"), "insert_cnn_block", "There is no CNN to insert a block of"),
        (
            hybrid("tf_efficientnet_lite0"),
            "replace_patches",
            "HybridSwinNet has no 'replace_patches'; it has rep",
        ),
        (
            hybrid("tf_efficientnet_lite0"),
            None,
            r"hands over another model .*say how .* with stage\.surgery \(replace_patch_embedding, insert_cnn_block\)",
        ),
    ],
)
def test_surgery_that_does_not_fit(patches, model, surgery, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        operate(patches, model, surgery)


# --- the table ---


def test_the_table_counts_numbers_by_module():
    parameters = {
        "stem.weight": nn.Parameter(torch.zeros(1000, 2)),
        "neck.weight": nn.Parameter(torch.zeros(10)),
        "token": nn.Parameter(torch.zeros(3)),
        "head.weight": nn.Parameter(torch.zeros(4, 5)),
    }
    origin = Origin({"neck.weight"}, "", {"old.weight": 7, "head.weight": 5}, {"head.weight": 8})
    rows = [line.split() for line in parameter_table(parameters, {"token", "stem.weight"}, origin).splitlines()]
    assert rows == [
        ["parameters", "trainable", "frozen", "carried", "over", "new", "dropped"],
        ["stem", "2,000", "0", "2,000", "2,000", "0", "0"],
        ["neck", "10", "10", "0", "0", "10", "0"],
        ["token", "3", "0", "3", "3", "0", "0"],
        ["head", "20", "20", "0", "12", "8", "5"],
        ["old", "0", "0", "0", "0", "0", "7"],
        ["all", "2,033", "30", "2,003", "2,015", "18", "12"],
    ]
