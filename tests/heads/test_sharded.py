"""The split head in two and three gloo processes against the whole one in this process."""

import math
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from landmark_retrieval.heads import ShardedSubCenterArcFace, SubCenterArcFace

CLASSES, DIM, ROWS = 7, 6, 4  # rows per process


def whole_head(**arguments):
    torch.manual_seed(0)
    margins = torch.linspace(0.05, 0.5, CLASSES)
    return SubCenterArcFace(DIM, CLASSES, margins=margins, **arguments).double()


def batch(world):
    torch.manual_seed(1)
    return torch.randn(world * ROWS, DIM, dtype=torch.float64), torch.randint(0, CLASSES, (world * ROWS,))


def process(rank, world, port, folder, task):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    torch.save(TASKS[task](rank, world), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def in_processes(world, folder, task):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(process, (world, port, str(folder), task), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def step(rank, world, **arguments):
    head = ShardedSubCenterArcFace(whole_head(), **arguments)
    embeddings, labels = (part.chunk(world)[rank] for part in batch(world))
    embeddings = embeddings.clone().requires_grad_()
    loss = head(embeddings, labels)
    (3 * loss).backward()
    return {
        "loss": loss.detach(),
        "embeddings": embeddings.grad,
        "weight": head.gather(head.weight.grad),
        "state": head.state_dict()["weight"],
        "first": torch.tensor(head.first),
    }


def lookups(rank, world):
    head = ShardedSubCenterArcFace(whole_head())
    embeddings, _ = batch(world)
    return [*head.nearest_class(embeddings), head.cosine(embeddings)]


def traffic(rank, world):
    """Bytes of the tensors that this process puts into collectives in a step, for few classes and for many."""
    counted = []
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"):
        real = getattr(dist, name)
        source = 0 if name == "all_reduce" else 1

        def counting(*arguments, _real=real, _source=source, **more):
            counted.append(arguments[_source].nbytes)
            return _real(*arguments, **more)

        setattr(dist, name, counting)
    from landmark_retrieval.heads import chunked

    chunked.all_reduce = dist.all_reduce
    sums = []
    for classes in (10, 1000):
        head = ShardedSubCenterArcFace(SubCenterArcFace(DIM, classes))
        counted.clear()
        head(torch.randn(ROWS, DIM, requires_grad=True), torch.arange(ROWS)).backward()
        sums.append(torch.tensor(sum(counted)))
    return sums


TASKS = {
    "step": step,
    "sampled": lambda rank, world: [step(rank, world, sample_rate=rate) for rate in (0.999, 0.5)],
    "lookups": lookups,
    "traffic": traffic,
}


@pytest.mark.parametrize("world", [2, 3])
def test_loss_and_gradients_are_those_of_the_whole_head(world, tmp_path):
    found = in_processes(world, tmp_path, "step")
    head = whole_head()
    embeddings, labels = batch(world)
    embeddings.requires_grad_()
    # as under DistributedDataParallel: each process has the mean of its rows, gradients of weights are averaged
    losses = [head(e, y) for e, y in zip(embeddings.chunk(world), labels.chunk(world), strict=True)]
    (3 * sum(losses)).backward()
    for rank, part in enumerate(found):
        torch.testing.assert_close(part["loss"], losses[rank].detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(part["embeddings"], embeddings.grad.chunk(world)[rank], rtol=0, atol=1e-12)
        torch.testing.assert_close(part["weight"], head.weight.grad / world, rtol=0, atol=1e-12)
        assert torch.equal(part["state"], head.weight.data)
        assert part["first"] == CLASSES * rank // world


def test_lookups_are_those_of_the_whole_head(tmp_path):
    embeddings, _ = batch(2)
    cosine, label = whole_head().nearest_class(embeddings)
    for found in in_processes(2, tmp_path, "lookups"):
        torch.testing.assert_close(found[0], cosine)
        assert torch.equal(found[1], label)
        torch.testing.assert_close(found[2], whole_head().cosine(embeddings).detach())


def test_a_sample_of_all_classes_changes_nothing_and_a_smaller_one_keeps_those_of_the_batch(tmp_path):
    for found in in_processes(2, tmp_path, "sampled"):
        most, half = found
        _, labels = batch(2)
        assert torch.isfinite(most["loss"])
        # fewer negatives: a smaller sum under the logarithm
        assert half["loss"] <= most["loss"] + 1e-12
        touched = half["weight"].view(CLASSES, 3, DIM).abs().sum((1, 2)) > 0
        assert touched[labels.unique()].all()


def test_what_travels_does_not_grow_with_the_classes(tmp_path):
    for few, many in in_processes(2, tmp_path, "traffic"):
        assert few == many
        # embeddings out and their gradients (of all rows) back, labels, three statistics a row of both processes
        assert few == 4 * ROWS * DIM + 8 * ROWS + 3 * 4 * 2 * ROWS + 4 * 2 * ROWS * DIM


def test_one_process_without_a_group_is_the_whole_head():
    whole, split = whole_head(), ShardedSubCenterArcFace(whole_head())
    embeddings, labels = batch(1)
    torch.testing.assert_close(split(embeddings, labels), whole(embeddings, labels), rtol=0, atol=1e-14)
    assert split.state_dict().keys() == whole.state_dict().keys()
    whole.load_state_dict(split.state_dict())


@pytest.mark.parametrize("world", [1, 3, 7])
def test_a_checkpoint_of_the_whole_loads_into_any_number_of_parts(world):
    state = whole_head().state_dict()
    parts = []
    for rank in range(world):
        head = ShardedSubCenterArcFace(SubCenterArcFace(DIM, CLASSES).double())
        head.world, head.rank = world, rank
        head.weight = torch.nn.Parameter(torch.empty(len(head.own(state["weight"])), DIM, dtype=torch.float64))
        head.load_state_dict(state, strict=True)
        parts.append(head.weight.data)
    assert torch.equal(torch.cat(parts), state["weight"])


def test_sampling_in_one_process():
    torch.manual_seed(0)
    head = SubCenterArcFace(16, 1000, sub_centers=2, scale=2.0)  # flat: no negative stands out
    embeddings, labels = torch.randn(5, 16), torch.tensor([3, 3, 999, 0, 500])
    losses = [ShardedSubCenterArcFace(head, rate)(embeddings, labels).item() for rate in (1.0, 0.1)]
    assert losses[0] - losses[1] == pytest.approx(math.log(10), abs=0.1)  # a tenth of the negatives


def test_bad_input(monkeypatch):
    head = SubCenterArcFace(4, 3)
    with pytest.raises(ValueError, match="sample_rate"):
        ShardedSubCenterArcFace(head, sample_rate=0)
    with pytest.raises(ValueError, match="from 0 to 3"):
        ShardedSubCenterArcFace(head)(torch.randn(2, 4), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"9 centers, this one 15.*delete weight from it"):
        ShardedSubCenterArcFace(SubCenterArcFace(4, 5)).load_state_dict(head.state_dict())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 8)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    with pytest.raises(ValueError, match="3 classes cannot be split over 8 processes"):
        ShardedSubCenterArcFace(head, group=object())
