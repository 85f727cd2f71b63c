import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from landmark_retrieval import DOLGNet, DOLGResNet, GeMNet, HybridSwinNet
from landmark_retrieval.errors import LandmarkRetrievalError
from landmark_retrieval.zoo import convert_state_dict, load_model
from landmark_retrieval.zoo.convert import convert, convert_checkpoint

BACKBONE = {"backbone": "tf_efficientnet_b0"}
HYBRID = {"cnn": "tf_efficientnet_b0", "transformer": "swin_tiny_patch4_window7_224", "image_size": 224}


def on_meta(kind, **arguments):
    with torch.device("meta"):
        return kind(**arguments)


@pytest.fixture(scope="module")
def dolg(golden_case):
    return golden_case("dolg_b0_128")


@pytest.fixture(scope="module")
def hybrid(golden_case):
    return golden_case("hybrid1x_b0_swint_224")[1]


@pytest.fixture(scope="module")
def resnet(golden_case):
    return golden_case("dolg_resnet50_224")


@pytest.fixture(scope="module")
def dolg_net():
    return on_meta(DOLGNet, **BACKBONE)


WRAPPINGS = {
    "bare": lambda state: state,
    "DDP, with an optimizer": lambda state: {
        "model": {f"module.{key}": value for key, value in state.items()},
        "epoch": 0,
        "optimizer": {"state": {0: torch.zeros(2)}, "param_groups": []},
    },
    "model_state": lambda state: {"model_state": state},
    "Lightning, compiled": lambda state: {"state_dict": {f"model._orig_mod.{key}": v for key, v in state.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_whole_checkpoints_and_bare_ones(dolg, dolg_net, wrapping):
    _, weights, _, _ = dolg
    converted = convert_state_dict(WRAPPINGS[wrapping](weights), source="henkel2021", model=dolg_net)
    dolg_net.load_state_dict(converted, strict=True, assign=True)
    assert len(converted) == len(weights) - 1  # the head
    assert torch.equal(converted["attention.score.weight"], weights["attention2d.conv2.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"extra.weight": torch.zeros(3)}, r"1 tensors left over \(extra.weight\)"),
        (lambda w: {k: v for k, v in w.items() if k != "mam.d1.bias"}, "1 tensors missing .*branches.1.bias"),
        (lambda w: w | {"conv_g.bias": torch.zeros(7)}, r"global_project.0.bias \(7,\) instead of \(1024,\)"),
        (lambda w: w | {"global_project.0.bias": torch.zeros(1024)}, "left over"),
        (lambda w: {}, "no state dict"),
        (lambda w: {"epoch": 3, "lr": 0.1}, "found keys epoch, lr"),
        (lambda w: [1, 2], "found list"),
        (lambda w: w | {"note": "text"}, "no state dict"),
    ],
)
def test_nothing_is_left_over_or_missing_in_silence(dolg, dolg_net, change, message):
    with pytest.raises(LandmarkRetrievalError, match=message):
        convert_state_dict(change(dict(dolg[1])), "henkel2021", dolg_net)


def test_weights_of_another_model_say_whose_they_are(dolg, hybrid, resnet, dolg_net):
    with pytest.raises(LandmarkRetrievalError, match=r"feymanpriv/DOLG.*--source feymanpriv_dolg"):
        convert_state_dict(resnet[1], "henkel2021", dolg_net)
    with pytest.raises(LandmarkRetrievalError, match="Hybrid-Swin by Henkel 2021"):
        convert_state_dict(hybrid, "henkel2021", dolg_net)
    with pytest.raises(LandmarkRetrievalError, match="they fit dolg_resnet50: name that model"):
        convert_state_dict(resnet[1], "feymanpriv_dolg", on_meta(DOLGResNet, depth=101))
    with pytest.raises(LandmarkRetrievalError, match="like a DOLGNet with other arguments"):
        convert_state_dict(dolg[1], "henkel2021", on_meta(DOLGNet, backbone="tf_efficientnet_b1"))


def test_what_is_converted_already_is_not_converted_again(resnet):
    net = on_meta(DOLGResNet)
    converted = convert_state_dict(resnet[1], "feymanpriv_dolg", net)
    with pytest.raises(LandmarkRetrievalError, match="our names already"):
        convert_state_dict(converted, "feymanpriv_dolg", net)


def test_what_cannot_be_converted(dolg, dolg_net):
    with pytest.raises(LandmarkRetrievalError, match="'henkel2021' or 'feymanpriv_dolg', not 'timm'"):
        convert_state_dict(dolg[1], "timm", dolg_net)
    with pytest.raises(LandmarkRetrievalError, match="become a DOLGNet and HybridSwinNet, never a GeMNet"):
        convert_state_dict(dolg[1], "henkel2021", on_meta(GeMNet, **BACKBONE))
    with pytest.raises(LandmarkRetrievalError, match="become a DOLGResNet"):
        convert_state_dict(dolg[1], "feymanpriv_dolg", dolg_net)


def test_hybrid_what_is_dropped_is_counted_and_what_is_missing_is_told(hybrid):
    done = convert(hybrid, "henkel2021", on_meta(HybridSwinNet, **HYBRID, aggregation="mean", position_embedding=False))
    after_the_cut = [key for key in hybrid if any(f"backbone.blocks.{n}." in key for n in (2, 3, 4, 5, 6))]
    assert done.dropped == {
        "CNN stages after the cut, which the source builds and never runs": len(after_the_cut),
        "computed from the image size": sum("relative_position_index" in k or "attn_mask" in k for k in hybrid),
        "never run by the source: Swin averages its grid itself": 1,
    }
    assert len(done.state) + sum(done.dropped.values()) + 1 == len(hybrid)
    assert done.head.shape == (150, 512)
    assert done.filled == []

    with_position = on_meta(HybridSwinNet, **HYBRID, aggregation="mean")
    done = convert(hybrid, "henkel2021", with_position)
    assert done.filled == ["patch_embedding.position"]
    assert not done.state["patch_embedding.position"].any()
    with pytest.raises(LandmarkRetrievalError, match="aggregation='mean'"):
        convert(hybrid, "henkel2021", on_meta(HybridSwinNet, **HYBRID))
    # a stage that the model does run must be there, and one more stage needs another projection
    less = {key: value for key, value in hybrid.items() if "backbone.blocks.1." not in key}
    with pytest.raises(LandmarkRetrievalError, match=r"missing \(patch_embedding.cnn.blocks.1"):
        convert(less, "henkel2021", with_position)
    longer = on_meta(HybridSwinNet, **HYBRID | {"image_size": 448, "cnn_blocks": 2}, aggregation="mean")
    with pytest.raises(LandmarkRetrievalError, match="another shape"):
        convert(hybrid, "henkel2021", longer)


def difference(net, images, expected):
    with torch.no_grad():
        found = net.eval()(images).numpy()
    return np.abs(found - expected["embedding"]).max() / expected["embedding"].std()


def test_a_file_becomes_a_model_that_computes_what_the_released_code_does(dolg, tmp_path):
    _, weights, images, expected = dolg
    file = tmp_path / "b0.pth"
    torch.save(WRAPPINGS["DDP, with an optimizer"](weights), file)
    done = convert_checkpoint(
        file, "henkel2021", "dolg_efficientnet_b5", tmp_path / "m", image_size=128, overrides=BACKBONE
    )
    assert done.head.shape == (150, 512)
    net, card = load_model(tmp_path / "m")
    assert difference(net, images, expected) < 5e-5
    assert card["arguments"]["fusion"] == "released2021"
    assert (card["image_size"], card["classes"], card["licence"]) == (128, 50, "MIT")
    assert card["converted_from"]["file"] == "b0.pth"
    assert json.loads(json.dumps(card)) == card
    assert not (tmp_path / "m" / "head.safetensors").exists()


def test_the_head_is_kept_on_request(dolg, tmp_path):
    weights = dict(dolg[1])
    save_file(weights, tmp_path / "b0.safetensors")
    arguments = ("henkel2021", "dolg_efficientnet_b5", tmp_path / "m")
    convert_checkpoint(tmp_path / "b0.safetensors", *arguments, keep_head=True, overrides=BACKBONE)
    head = load_file(tmp_path / "m" / "head.safetensors")
    assert torch.equal(head["weight"], weights["head.weight"])
    # another conversion into the same folder does not leave the old one's head beside the new weights
    convert_checkpoint(tmp_path / "b0.safetensors", *arguments, overrides=BACKBONE)
    assert not (tmp_path / "m" / "head.safetensors").exists()
    del weights["head.weight"]
    save_file(weights, tmp_path / "headless.safetensors")
    with pytest.raises(LandmarkRetrievalError, match="has no head"):
        convert_checkpoint(tmp_path / "headless.safetensors", *arguments, keep_head=True, overrides=BACKBONE)


def test_bgr_is_turned_round(resnet, tmp_path):
    _, weights, images, expected = resnet
    file = tmp_path / "r50.pyth"
    torch.save({"model_state": weights}, file)
    convert_checkpoint(file, "feymanpriv_dolg", "dolg_resnet50", tmp_path / "m", keep_head=True)
    net, card = load_model(tmp_path / "m")
    assert difference(net, images.flip(1), expected) < 5e-5
    assert card["converted_from"]["turned_to_rgb"]
    assert card["classes"] == 50
    assert load_file(tmp_path / "m" / "head.safetensors")["weight"].shape == (50, 512)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_cannot_be_read(dolg, tmp_path, capsys):
    file = tmp_path / "c.pth"

    def refused():
        with pytest.raises(LandmarkRetrievalError) as error:
            convert_checkpoint(file, "henkel2021", "dolg_efficientnet_b5", tmp_path / "m", overrides=BACKBONE)
        assert str(file) in str(error.value)
        return str(error.value)

    assert "no checkpoint" in refused()
    torch.save({"model": dolg[1], "note": Evil()}, file)
    assert "run foreign code" in refused()
    file.write_bytes(pickle.dumps(Evil()))
    refused()
    assert "executed" not in capsys.readouterr().out
    torch.save({"model": dolg[1]}, file)
    file.write_bytes(file.read_bytes()[:100_000])
    assert "cut short" in refused()
    file.write_bytes(b"")
    assert "cut short" in refused()
    file.write_bytes(b"<html>not found</html>")
    assert "no checkpoint" in refused()
    assert not (tmp_path / "m").exists()
