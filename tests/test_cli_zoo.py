"""`landmark-retrieval zoo` as a person meets it."""

import json

import huggingface_hub
import pytest
import torch

from landmark_retrieval import DOLGNet, cli
from landmark_retrieval.zoo import load_model, save_model


def run(capsys, *arguments):
    """Exit code, stdout, stderr."""
    try:
        cli.main(["zoo", *map(str, arguments)])
        code = 0
    except SystemExit as ended:
        code = ended.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


def test_list(capsys):
    _, out, err = run(capsys, "list", "dolg*")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["name"] == ["model", "px", "weights"]
    assert rows["dolg_resnet50"] == ["DOLGResNet", "512", "(feymanpriv)"]
    assert rows["dolg_efficientnet_lite0"] == ["DOLGNet", "256", "gldv2mini"]
    assert not any(name.startswith("gem") for name in rows)
    assert "zoo info" in err
    _, out, err = run(capsys, "list", "--pretrained", "--json")
    assert err == ""
    row = {row["name"]: row for row in json.loads(out)}["gem_efficientnet_lite0.imagenet"]
    assert row == {
        "name": "gem_efficientnet_lite0.imagenet",
        "model": "GeMNet",
        "image_size": 256,
        "weights": ["imagenet"],
        "by_hand": [],
    }


def test_info(capsys):
    _, out, _ = run(capsys, "info", "dolg_resnet50")
    for part in ("pan.baidu.com/s/13Bt1v_sMSny8pGRIM0K8xQ", "d7or", "zoo convert FILE", "licence: MIT", "81.20/62.55"):
        assert part in out
    _, out, _ = run(capsys, "info", "gem_efficientnet_lite0.imagenet", "--json")
    facts = json.loads(out)
    assert facts["parameters"] > 3_000_000
    (weights,) = facts["weights"]
    assert weights["can_be_fetched"]
    assert weights["command"].startswith("landmark-retrieval evaluate")
    code, _, err = run(capsys, "info", "dolg_resnet51")
    assert code == 2
    assert "did you mean dolg_resnet50" in err


def test_convert(golden_case, tmp_path, capsys):
    _, weights, images, expected = golden_case("dolg_b0_128")
    file, out = tmp_path / "b0.pth", tmp_path / "model"
    torch.save({"model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 0}, file)
    arguments = ("convert", file, "--source", "henkel2021", "--model", "dolg_efficientnet_b5", "--out", out)
    changes = ("--set", "backbone=tf_efficientnet_b0", "dilations=[6, 12, 18]", "--image-size", 128)
    code, printed, _ = run(capsys, *arguments, *changes)
    assert code == 0
    assert "385 tensors" in printed
    assert "head (150, 512): dropped" in printed
    model, card = load_model(out)
    with torch.no_grad():
        difference = (model(images).numpy() - expected["embedding"]).__abs__().max()
    assert difference < 5e-5 * expected["embedding"].std()
    assert card["image_size"] == 128

    _, printed, _ = run(capsys, *arguments, *changes, "--keep-head")
    assert "kept in head.safetensors" in printed
    code, _, err = run(capsys, *arguments)  # B0 is no B5
    assert code == 2
    assert "of another shape" in err
    assert err.count("\n") == 1
    file.write_bytes(file.read_bytes()[:9999])
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "cut short" in err
    code, _, err = run(capsys, *arguments, "--set", "dilations")
    assert code == 2
    assert "not key=value" in err


def test_push(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, _, err = run(capsys, "push", tmp_path / "nowhere", "owner/name")
    assert code == 2
    assert "no model card" in err
    card = {"architecture": "DOLGNet", "arguments": {"backbone": "mobilenetv3_small_050"}, "image_size": 64}
    save_model(tmp_path / "model", DOLGNet(**card["arguments"]), card)
    code, _, err = run(capsys, "push", tmp_path / "model", "owner/name")
    assert code == 2
    assert "hf auth login" in err


@pytest.mark.parametrize("where", ["dolg_resnet50", "dolg_resnet50.fymanpriv", "dolg_resnet5"])
def test_models_that_other_commands_cannot_have(where, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["index", str(tmp_path), "--model", where, "--out", str(tmp_path / "index")])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
