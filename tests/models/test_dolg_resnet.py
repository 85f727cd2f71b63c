"""DOLGResNet against values of the authors' code."""

import numpy as np
import pytest
import torch

from landmark_retrieval.models import DOLGResNet
from landmark_retrieval.zoo import convert_state_dict


@pytest.mark.parametrize(
    ("case", "multi_atrous"),
    [("dolg_resnet50_224", False), ("dolg_resnet50_ma_224", True), ("dolg_resnet50_ma_384", True)],
)
def test_descriptor_equals_the_released_code(golden_case, case, multi_atrous):
    _, weights, images, expected = golden_case(case)
    net = DOLGResNet(50, multi_atrous)
    net.load_state_dict(convert_state_dict(weights, source="feymanpriv_dolg", model=net), strict=True)
    net.eval()
    std = expected["embedding_f64"].std()
    with torch.no_grad():
        assert np.abs(net(images).numpy() - expected["embedding"]).max() < 5e-5 * std
        assert np.abs(net.double()(images.double()).numpy() - expected["embedding_f64"]).max() < 1e-9 * std


def test_resnet101_has_23_blocks_at_stride_16():
    with torch.device("meta"):
        net = DOLGResNet(101)
        local, global_ = net.backbone(torch.empty(1, 3, 64, 64))
    assert len(net.backbone.layer3) == 23
    assert (local.shape, global_.shape) == ((1, 1024, 4, 4), (1, 2048, 2, 2))


@pytest.mark.parametrize("multi_atrous", [False, True])
def test_black_image_and_half_precision_give_finite_descriptors(multi_atrous):
    net = DOLGResNet(50, multi_atrous)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            descriptors = net(torch.zeros(2, 3, 64, 64))
        descriptors.float().square().sum().backward()
        assert torch.isfinite(descriptors).all()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_another_depth_is_refused():
    with pytest.raises(ValueError, match="50 or 101"):
        DOLGResNet(152)
