"""Sub-center ArcFace whose classes are split over processes: each holds, and learns, the centers of its own classes."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from landmark_retrieval.heads.chunked import Split
from landmark_retrieval.heads.sub_center_arcface import SubCenterArcFace


class ShardedSubCenterArcFace(SubCenterArcFace):
    """`SubCenterArcFace` over the processes of a group.

    Every process gives the embeddings and labels of its own batch, all batches of one size, and gets the mean loss of
    its own rows. What travels per step is embeddings, labels, the softmax statistics of each row, and the gradients of
    the embeddings: batch times dimension, whatever the number of classes. The gradient of the weight stays where it is,
    so keep `weight` out of DistributedDataParallel (`_ddp_params_and_buffers_to_ignore`); it is scaled as that would.

    `state_dict()` holds the whole weight and `load_state_dict()` takes the whole weight, so a checkpoint does not know
    how many processes wrote it. Both, and `full_weight`, have to be called by all processes of the group.

    Source: An et al. 2020 (Partial FC, arXiv 2010.05222), sections 3 and 4.

    Args:
        head: the whole head, the same in every process; each keeps the rows of its own classes.
        sample_rate: in (0, 1]; the share of its classes that a process compares a batch with. Those of the batch are
            always among them.
        group: of processes; all of them if None. Without any, one process holds all classes.

    Attributes:
        weight: (own classes * sub_centers, embedding_dim).
        first: number of the first class of this process.

    Raises:
        ValueError: fewer classes than processes, another sample rate; see also `SubCenterArcFace`.
    """

    def __init__(self, head: SubCenterArcFace, sample_rate: float = 1.0, group: Any = None) -> None:
        nn.Module.__init__(self)
        if not 0 < sample_rate <= 1:
            raise ValueError(f"sample_rate is in (0, 1], not {sample_rate}.")
        self.__dict__.update({key: value for key, value in vars(head).items() if not key.startswith("_")})
        self._margins_in_use, self._ease = None, head._ease
        self.sample_rate = sample_rate
        together = dist.is_available() and dist.is_initialized()
        self.group = (group or dist.group.WORLD) if together else None
        self.world = dist.get_world_size(self.group) if together else 1
        self.rank = dist.get_rank(self.group) if together else 0
        if self.num_classes < self.world:
            raise ValueError(
                f"{self.num_classes} classes cannot be split over {self.world} processes: use fewer, or a head that is "
                "not sharded."
            )
        self.first = self._bound(self.rank)
        own = head.full_weight()[self._rows(self.rank)].clone()
        self.weight = nn.Parameter(own, requires_grad=head.weight.requires_grad)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:  # noqa: D102
        self._check(embeddings, labels)
        unit = self._unit(embeddings)
        if self.group is not None:
            unit = _GatherRows.apply(unit, self.group, self.world)
            labels = _gathered(labels, self.group, self.world)
        split = Split(self.first, self.group, self.world, self.rank)
        if self.sample_rate == 1:
            return self._loss(unit, labels, split)
        weight, places = self._sample(labels)
        return self._loss(unit, labels, split._replace(first=0), weight, places)

    def cosine(self, embeddings: Tensor) -> Tensor:
        """As `SubCenterArcFace.cosine`, not differentiable; every process sends its whole weight to the others."""
        return self._cosine(embeddings, self.full_weight())

    @torch.no_grad()
    def nearest_class(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """As `SubCenterArcFace.nearest_class`, of the same embeddings in every process."""
        cosine, label = super().nearest_class(embeddings)
        label = label + self.first
        if self.group is None:
            return cosine, label
        best = cosine.clone()
        dist.all_reduce(best, dist.ReduceOp.MAX, self.group)
        label = torch.where(cosine == best, label, torch.full_like(label, self.num_classes))
        dist.all_reduce(label, dist.ReduceOp.MIN, self.group)
        return best, label

    def full_weight(self) -> Tensor:
        """The weight of all classes, (num_classes * sub_centers, embedding_dim), on the CPU; called by all."""
        return self.gather(self.weight.detach())

    @torch.no_grad()
    def gather(self, own: Tensor) -> Tensor:
        """What belongs to the rows of the whole weight, on the CPU, from what belongs to those of each process."""
        own = own.to(_device_of(self.group, own))
        whole = own.new_empty(self.num_classes * self.sub_centers, *own.shape[1:], device="cpu")
        for rank in range(self.world):  # not all of one size, which all_gather would want
            part = own if rank == self.rank else torch.empty_like(whole[self._rows(rank)], device=own.device)
            if self.group is not None:
                dist.broadcast(part, dist.get_global_rank(self.group, rank), self.group)
            whole[self._rows(rank)] = part.cpu()
        return whole

    def own(self, whole: Tensor) -> Tensor:
        """The rows of this process, a copy."""
        return whole[self._rows(self.rank)].clone()

    def _bound(self, rank: int) -> int:
        return self.num_classes * rank // self.world

    def _rows(self, rank: int) -> slice:
        return slice(self._bound(rank) * self.sub_centers, self._bound(rank + 1) * self.sub_centers)

    def _sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The weight of some of the own classes, and where among them each label stands; -1 for foreign ones."""
        classes = len(self.weight) // self.sub_centers
        count = min(classes, max(math.ceil(self.sample_rate * classes), len(labels)))
        places = labels - self.first
        own = (places >= 0) & (places < classes)
        # random numbers in [0, 1), and more than that for the classes of the batch; no look at values, so no waiting
        chance = torch.rand(classes + 1, device=labels.device)
        chance[torch.where(own, places, classes)] = 2.0
        chosen = chance[:classes].topk(count).indices.sort().values
        weight = self.weight.view(classes, self.sub_centers, -1)[chosen].flatten(0, 1)
        return weight, torch.where(own, torch.searchsorted(chosen, places), -1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.full_weight()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        key = f"{prefix}weight"
        self._check_rows(state_dict, prefix)
        own = {**state_dict, key: self.own(state_dict[key])} if key in state_dict else state_dict
        nn.Module._load_from_state_dict(self, own, prefix, *arguments)

    def extra_repr(self) -> str:  # noqa: D102
        return f"{super().extra_repr()}, process {self.rank} of {self.world}"


class _GatherRows(torch.autograd.Function):
    """(B, D) of each process -> (world * B, D) in every one; the gradients of all processes add up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any, world: int) -> Tensor:
        ctx.group, ctx.shape = group, rows.shape
        return _gathered(rows, group, world)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        own = grad.new_empty(ctx.shape)
        dist.reduce_scatter_tensor(own, grad.contiguous(), group=ctx.group)
        return own, None, None


def _device_of(group: Any, tensor: Tensor) -> torch.device:
    """Where collectives of the group take the tensor: NCCL takes none of the host, where it lies after a training."""
    if group is None or tensor.device.type != "cpu" or "cpu" in dist.get_backend_config(group):
        return tensor.device
    return torch.device("cuda", torch.cuda.current_device())


def _gathered(rows: Tensor, group: Any, world: int) -> Tensor:
    whole = rows.new_empty(world * len(rows), *rows.shape[1:])
    dist.all_gather_into_tensor(whole, rows.contiguous(), group=group)
    return whole
