"""The head against values of the released code; see golden/README.md for how they were made."""

import json

import numpy as np
import pytest
import torch

from landmark_retrieval.heads import SubCenterArcFace
from landmark_retrieval.heads.chunked import with_margin


@pytest.mark.parametrize("case", ["case1_random_50", "case2_aligned_50"])
def test_loss_and_gradients_equal_the_released_code(golden, fill_rule, case):
    expected = np.load(golden / "loss" / f"{case}.npz")
    head = SubCenterArcFace(512, 50, scale=45.0, margins=expected["margins"]).double()
    head.load_state_dict({"weight": torch.from_numpy(fill_rule.fill_array("head.weight", (150, 512)))})
    features = torch.from_numpy(expected["features"]).double().requires_grad_()
    loss = head(features, torch.from_numpy(expected["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(expected["loss_f64"]), rel=1e-9)
    np.testing.assert_allclose(features.grad, expected["gx_f64"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(head.weight.grad.norm(dim=1), expected["gw_rownorm_f64"], rtol=1e-6, atol=1e-9)

    single = SubCenterArcFace(512, 50, scale=45.0, margins=expected["margins"])
    single.load_state_dict(head.state_dict())
    loss32 = single(torch.from_numpy(expected["features"]), torch.from_numpy(expected["labels"]))
    assert loss32.item() == pytest.approx(float(expected["loss_f64"]), rel=1e-5)


def test_easy_branch_equals_the_released_code(golden):
    expected = np.load(golden / "loss" / "case3_cosine_50.npz")
    meta = json.loads((golden / "loss" / "case3_cosine_50.json").read_text())
    cosine = torch.from_numpy(expected["cos_in"]).double().requires_grad_()
    labels = torch.from_numpy(expected["labels"])
    margins = torch.from_numpy(expected["margins"])[labels]
    shifted, slope = with_margin(cosine.gather(1, labels[:, None])[:, 0], margins)
    # with_margin gives its derivative itself; this attaches it for autograd
    target = cosine.gather(1, labels[:, None])[:, 0]
    shifted = shifted.detach() + slope.detach() * (target - target.detach())
    loss = torch.nn.functional.cross_entropy(meta["s"] * cosine.scatter(1, labels[:, None], shifted[:, None]), labels)
    loss.backward()
    assert loss.item() == pytest.approx(meta["loss_limit_f64"], rel=1e-9)
    np.testing.assert_allclose(cosine.grad, expected["gcos_f64"], rtol=1e-6, atol=1e-9)


def test_loss_equals_the_third_place_code(golden):
    arrays = np.load(golden / "training_formulas" / "arrays.npz")
    for i, case in enumerate(
        json.loads((golden / "training_formulas" / "expected.json").read_text())["adaptive_arcface"]
    ):
        if f"arc{i}_x" not in arrays:
            continue
        a = {
            k: torch.from_numpy(arrays[f"arc{i}_{k}"]) for k in ("x", "weight", "y", "cosine", "grad_x", "grad_weight")
        }
        head = SubCenterArcFace(a["x"].shape[1], case["num_classes"], case["k"], case["s"], arrays[f"arc{i}_margins"])
        head.load_state_dict({"weight": a["weight"]})
        x = a["x"].clone().requires_grad_()
        loss = head(x, a["y"])
        loss.backward()
        assert loss.item() == pytest.approx(case["loss"], abs=1e-4)
        torch.testing.assert_close(head.cosine(a["x"]), a["cosine"], atol=1e-6, rtol=0)
        torch.testing.assert_close(x.grad, a["grad_x"], atol=1e-4, rtol=0)
        torch.testing.assert_close(head.weight.grad, a["grad_weight"], atol=1e-4, rtol=0)


def test_cosine_takes_the_nearest_center(golden):
    expected = np.load(golden / "head" / "head_k3_7x16.npz")
    head = SubCenterArcFace(16, 7)
    head.load_state_dict({"weight": torch.from_numpy(expected["weight"])})
    np.testing.assert_allclose(
        head.cosine(torch.from_numpy(expected["features"])).detach(), expected["cosine"], atol=2e-6
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cosine_of_one_is_finite(sign):
    head = SubCenterArcFace(4, 3, sub_centers=1, margins=[0.05, 0.3, 0.5])
    embeddings = (sign * head.weight.detach()[:2]).clone().requires_grad_()
    loss = head(embeddings, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_loss_is_float32_under_autocast():
    torch.manual_seed(0)
    head = SubCenterArcFace(32, 10)
    embeddings, labels = torch.randn(6, 32), torch.arange(6)
    plain = head(embeddings, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(embeddings, labels)
    assert mixed.dtype == torch.float32
    assert mixed.item() == plain.item()
    assert head.weight.dtype == torch.float32


def test_gradients_in_float64():
    torch.manual_seed(0)
    head = SubCenterArcFace(5, 4, margins=[0.1, 0.2, 0.3, 0.4]).double()
    labels = torch.tensor([0, 3, 2])
    assert torch.autograd.gradcheck(
        lambda x: head(x, labels), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    )


def test_wrong_input():
    head = SubCenterArcFace(8, 5)
    with pytest.raises(ValueError, match="from 0 to 5"):
        head(torch.randn(2, 8), torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="as many labels"):
        head(torch.randn(2, 8), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"\(B, 8\)"):
        head(torch.randn(2, 7), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="one per class"):
        SubCenterArcFace(8, 5, margins=[0.1, 0.2])
    with pytest.raises(ValueError, match="radians"):
        SubCenterArcFace(8, 5, margins=-0.1)
