"""Gradient checkpointing changes what is kept in memory and nothing else."""

import copy
import os
import pickle
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from landmark_retrieval.models import DOLGNet, DOLGResNet, GeMNet, HybridSwinNet, checkpointing

HYBRID = {"cnn": "tf_efficientnet_lite0", "transformer": "swin_tiny_patch4_window7_224", "embedding_dim": 16}
NETS = {  # name -> (how it is made, px, blocks)
    "dolg mobilenet": (lambda: DOLGNet("mobilenetv3_small_050", embedding_dim=16), 64, 11),
    "dolg lite0": (lambda: DOLGNet("tf_efficientnet_lite0", embedding_dim=16), 64, 16),
    "dolg resnet": (lambda: DOLGResNet(50, embedding_dim=16), 64, 16),
    "gem lite0": (lambda: GeMNet("tf_efficientnet_lite0", embedding_dim=16), 64, 16),
    "gem resnet18": (lambda: GeMNet("resnet18", embedding_dim=16), 64, 8),
    "gem regnet": (lambda: GeMNet("regnety_002", embedding_dim=16), 64, 13),
    "gem convnext": (lambda: GeMNet("convnext_atto", embedding_dim=16), 64, 12),
    "hybrid token": (lambda: HybridSwinNet(**HYBRID), 224, 15),
    "hybrid mean": (lambda: HybridSwinNet(**HYBRID, aggregation="mean"), 224, 15),
}


def made(name):
    make, side, _ = NETS[name]
    torch.manual_seed(0)
    return make().train(), torch.randn(2, 3, side, side)


def small():
    return made("dolg mobilenet")


def with_checkpointing(net):
    net = copy.deepcopy(net)
    net.set_grad_checkpointing()
    return net


def step(net, images, dtype=None):
    """Everything that a training step leaves behind."""
    net.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        output = net(images)
    output.float().square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {"output": output.detach(), "random": torch.rand(3), **gradients, **dict(net.named_buffers())}


def assert_same_steps(net, images, dtype=None):
    other = with_checkpointing(net)
    expected, found = step(net, images, dtype), step(other, images, dtype)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert (value is None) == (found[name] is None), name
        if value is not None:
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


def kept(net, images):
    """Bytes that autograd keeps for backward, besides the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(images)
    return sum(storage.nbytes() for address, storage in storages.items() if address not in parameters)


@pytest.fixture
def calls(monkeypatch):
    """Blocks that were checkpointed, one after the other."""
    seen = []

    def counted(function, block, *inputs, **how):
        seen.append(block)
        return torch.utils.checkpoint.checkpoint(function, block, *inputs, **how)

    monkeypatch.setattr(checkpointing, "checkpoint", counted)
    return seen


# --- the same step ---


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("hybrid")) for name in NETS]
)
def test_a_training_step_is_the_same(name, calls):
    net, images = made(name)
    assert_same_steps(net.double(), images.double())
    assert len(calls) == NETS[name][2]


def test_statistics_move_once_a_step():
    net, images = small()
    net.set_grad_checkpointing()
    counts = {name: value for name, value in net.named_buffers() if name.endswith("num_batches_tracked")}
    for expected in (1, 2):
        step(net, images)
        assert {int(value) for value in counts.values()} == {expected}


def test_random_numbers_are_drawn_once():
    net, images = small()
    for block in net.backbone.modules():
        if hasattr(block, "drop_path"):
            block.drop_path = nn.Dropout(0.3)
    assert_same_steps(net.double(), images.double())


@pytest.mark.parametrize("name", ["dolg mobilenet", "hybrid token"])
def test_under_autocast(name):
    assert_same_steps(*made(name), torch.bfloat16)


def test_after_frozen_layers():
    net, images = small()
    net.backbone.conv_stem.requires_grad_(False)
    net.backbone.blocks[:2].requires_grad_(False)
    for module in net.backbone.blocks[:3].modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert_same_steps(net.double(), images.double())


def test_gradients_accumulate():
    net, images = small()
    other = with_checkpointing(net)
    for one in (net, other):
        for part in (images, 2 * images):
            one(part).sum().backward()
    for expected, found in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=0)


def test_compiled():
    net, images = small()
    other = with_checkpointing(net)
    expected, found = step(net, images), step(torch.compile(other, backend="aot_eager"), images)
    for name, value in expected.items():
        torch.testing.assert_close(found.get(name, found.get(f"_orig_mod.{name}")), value, rtol=1e-4, atol=1e-4)


# --- what it saves, and what it leaves alone ---


@pytest.mark.parametrize(("name", "share"), [("dolg lite0", 0.5), ("dolg resnet", 0.5), ("hybrid token", 0.3)])
def test_less_is_kept(name, share):
    net, images = made(name)
    assert kept(with_checkpointing(net), images) < share * kept(net, images)


def test_nothing_is_checkpointed_without_training(calls):
    net, images = small()
    net.set_grad_checkpointing()
    with torch.no_grad():
        net(images)
    net.eval()(images).sum().backward()
    assert not calls


def test_names_stay_and_it_can_be_switched_off(calls):
    net, images = small()
    names = [*net.state_dict()], [name for name, _ in net.named_parameters()], repr(net)
    net.set_grad_checkpointing()
    net.set_grad_checkpointing()  # twice is once
    assert ([*net.state_dict()], [name for name, _ in net.named_parameters()], repr(net)) == names
    net(images)
    assert len(calls) == 11
    net.set_grad_checkpointing(False)
    net(images)
    assert len(calls) == 11


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_is_checkpointed_on_its_own(copied, calls):
    net, images = small()
    net.set_grad_checkpointing()
    other = copied(net)
    other(images).sum().backward()
    assert len(calls) == 11
    assert not {*map(id, calls)} & {*map(id, net.modules())}
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.grad is not None for parameter in other.parameters())


def test_surgery_keeps_it(calls):
    net = HybridSwinNet(**{**HYBRID, "cnn": None})
    net.set_grad_checkpointing()
    net(torch.randn(2, 3, 224, 224))
    assert len(calls) == 12
    calls.clear()
    net.eval().replace_patch_embedding("tf_efficientnet_lite0", cnn_blocks=1)
    net.train()(torch.randn(2, 3, 224, 224))
    assert len(calls) == 15
    calls.clear()
    net.insert_cnn_block()
    net(torch.randn(2, 3, 448, 448))
    assert len(calls) == 17
    net.set_grad_checkpointing(False)
    calls.clear()
    net.replace_patch_embedding("tf_efficientnet_lite0", cnn_blocks=1)
    net(torch.randn(2, 3, 224, 224))
    assert not calls


def test_a_backbone_without_known_blocks_is_refused():
    net = GeMNet("ghostnet_050", embedding_dim=16)
    with pytest.raises(ValueError, match=r"no blocks to checkpoint in GhostNet.*EfficientNet"):
        net.set_grad_checkpointing()
    net.set_grad_checkpointing(False)


# --- two processes ---


def process(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    net, _ = small()
    torch.manual_seed(2 + rank)
    images = torch.randn(2, 3, 64, 64).double()
    found = []
    for one in (net.double(), with_checkpointing(net)):
        wrapped = DistributedDataParallel(one)
        for _ in range(2):
            wrapped.zero_grad()
            wrapped(images).square().sum().backward()
        found.append([*(parameter.grad for parameter in one.parameters()), *one.buffers()])
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_in_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (port, str(tmp_path)), nprocs=2)
    for rank in (0, 1):
        plain, checkpointed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for expected, found in zip(plain, checkpointed, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
