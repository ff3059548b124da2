"""Experts spread over the processes of a job: which rank owns which experts, and the process groups they need."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """The experts of one of W ranks.

    With at most as many ranks as experts, rank r owns the experts r·N/W … (r+1)·N/W − 1. With more ranks than experts,
    rank r owns a replica of expert r mod N; N neighbouring ranks hold each expert once and exchange tokens.

    Raises:
        ValueError: neither N is divisible by W nor W by N.
    """

    num_experts: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        """Reject numbers that do not divide."""
        assert 0 <= self.rank < self.world_size
        if self.num_experts % self.world_size and self.world_size % self.num_experts:
            fewer = [str(w) for w in range(1, self.num_experts + 1) if self.num_experts % w == 0]
            raise ValueError(
                f"{self.num_experts} experts (--moe-expert-count) cannot be shared by {self.world_size} processes; "
                f"use {', '.join(fewer)} processes, or a multiple of {self.num_experts}."
            )

    @property
    def num_ranks(self) -> int:
        """R: size of an expert-parallel group, whose ranks together hold each expert once."""
        return min(self.num_experts, self.world_size)

    @property
    def num_replicas(self) -> int:
        """Ranks that hold the same expert."""
        return self.world_size // self.num_ranks

    @property
    def experts(self) -> range:
        """IDs of the experts that this rank owns."""
        size = self.num_experts // self.num_ranks
        first = self.rank % self.num_ranks * size
        return range(first, first + size)

    @property
    def parallel_ranks(self) -> range:
        """Ranks of the expert-parallel group: those that this rank exchanges tokens with, itself included."""
        first = self.rank - self.rank % self.num_ranks
        return range(first, first + self.num_ranks)

    @property
    def replica_ranks(self) -> range:
        """Ranks of the expert-replica group: those that own the same experts, this rank included."""
        return range(self.rank % self.num_ranks, self.world_size, self.num_ranks)


@dataclass(frozen=True)
class ExpertParallelGroups:
    """The process groups of this rank for a given number of experts.

    Attributes:
        shard: the experts of this rank.
        parallel: the expert-parallel group, whose ranks exchange tokens.
        replicas: the expert-replica group, whose ranks own the same experts; None if no other rank does.
    """

    shard: Shard
    parallel: dist.ProcessGroup
    replicas: dist.ProcessGroup | None

    @classmethod
    def of_job(cls, num_experts: int) -> "ExpertParallelGroups | None":
        """Create the groups; every process of the job must call this. None in a job of a single process.

        Raises:
            ValueError: the experts cannot be shared by this number of processes.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        world_size, rank = dist.get_world_size(), dist.get_rank()
        shards = [Shard(num_experts, world_size, r) for r in range(world_size)]
        if shards[rank].num_replicas == 1:
            assert dist.group.WORLD is not None
            return cls(shards[rank], dist.group.WORLD, None)
        own: list[Any] = []
        for members in ([s.parallel_ranks for s in shards], [s.replica_ranks for s in shards]):
            # every process takes part in creating every group, in the same order
            for ranks in sorted({tuple(m) for m in members}):
                group = dist.new_group(list(ranks))
                if rank in ranks:
                    own.append(group)
        return cls(shards[rank], *own)

    def __deepcopy__(self, memo: object) -> "ExpertParallelGroups":
        """Share the groups with copies of a model, such as the average of its parameters."""
        return self

    def own_gradients(self, experts: nn.Module) -> None:
        """Give the gradients of this rank's experts the same meaning as those of shared parameters.

        The gradient of an expert comes from the tokens of the whole expert-parallel group; ``add_replicas`` adds those
        of its replicas. Gradients of shared parameters are averaged over the W ranks by DistributedDataParallel before
        the trainer multiplies all gradients by W / sample size, so the gradients of experts are divided by W.
        """
        for parameter in experts.parameters():
            # fairseq's legacy_ddp skips parameters with this mark; gradient clipping reads its value
            parameter.expert = self.shard.num_replicas  # type: ignore[attr-defined]
            # of each micro-batch: the sum of the undivided ones would overflow earlier in float16
            parameter.register_hook(self._divide)

    def _divide(self, gradient: Tensor) -> Tensor:
        return gradient / self.shard.world_size

    @torch.no_grad()
    def add_replicas(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of the replicas of each expert, once the gradients of an update are complete.

        One message for each dtype, as DistributedDataParallel makes one of the gradients of shared parameters; those of
        experts are views of it afterwards.

        Args:
            parameters: of the model; those of experts are the ones that ``own_gradients`` has marked.
        """
        if self.replicas is None:
            return
        by_dtype = defaultdict(list)
        for parameter in parameters:
            if hasattr(parameter, "expert"):
                by_dtype[parameter.dtype].append(parameter)
        for same in by_dtype.values():
            # zeros for None, so that messages are equally long on all ranks, whatever their batches
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            message = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(message, group=self.replicas)
            for parameter, part in zip(same, message.split([p.numel() for p in same]), strict=True):
                parameter.grad = part.view_as(parameter)

    def gather(self, own: Tensor) -> Tensor:
        """Return the parameters of all experts, (N, …), given those of this rank's experts."""
        everyone = own.new_empty(self.shard.num_experts, *own.shape[1:])
        dist.all_gather(list(everyone.chunk(self.shard.num_ranks)), own.contiguous(), group=self.parallel)
        return everyone


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum over all processes of the job, without gradient."""
    total = values.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def max_over(group: dist.ProcessGroup, value: int, device: torch.device) -> int:
    """Return the maximum over the processes of a group; waits for a GPU."""
    largest = torch.full((), value, device=device)  # torch.tensor would wait, too, to copy it there
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return int(largest)
