"""The processes of a job, and what they tell each other."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moec_fairseq.moe.shards import Shard


@dataclass(frozen=True)
class Ranks:
    """The process groups of one number of experts.

    Attributes:
        shard: the experts of this rank.
        partners: group of the ranks that exchange tokens.
        holders: group of the ranks that own the same experts; None if this is the only one.
    """

    shard: Shard
    partners: dist.ProcessGroup
    holders: dist.ProcessGroup | None

    @classmethod
    def of_job(cls, num_experts: int) -> "Ranks | None":
        """Make the groups; every process of the job must call this. None where there is one process only.

        Raises:
            ValueError: the experts cannot be shared by this number of processes.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return None
        world_size, rank = dist.get_world_size(), dist.get_rank()
        shard = Shard(num_experts, world_size, rank)
        if shard.num_copies == 1:
            assert dist.group.WORLD is not None
            return cls(shard, dist.group.WORLD, None)
        own: dict[str, Any] = {}
        for name in ("partners", "holders"):
            # every process takes part in making every group, in the same order
            for ranks in sorted({tuple(getattr(Shard(num_experts, world_size, r), name)) for r in range(world_size)}):
                group = dist.new_group(list(ranks))
                if rank in ranks:
                    own[name] = group
        return cls(shard, **own)

    def __deepcopy__(self, memo: object) -> "Ranks":
        """Copies of a model (averages of its parameters) talk to the same processes."""
        return self

    def own_gradients(self, experts: nn.Module) -> None:
        """Make the gradients of this rank's experts mean what those of shared parameters mean.

        An expert's gradient holds the tokens of all partners; those of other holders are added here. Shared gradients
        are averaged over the W ranks, by DistributedDataParallel, before the trainer multiplies all by W / sample
        size, so those of the experts are divided by W.
        """
        for parameter in experts.parameters():
            # fairseq's legacy_ddp leaves out parameters with this mark; clipping reads its value
            parameter.expert = self.shard.num_copies  # type: ignore[attr-defined]
            parameter.register_hook(self._average)

    def _average(self, gradient: Tensor) -> Tensor:
        gradient = gradient / self.shard.world_size
        if self.holders is not None:
            dist.all_reduce(gradient, group=self.holders)
        return gradient

    def gather(self, own: Tensor) -> Tensor:
        """Return the experts of all partners, (N, …), from those of this rank."""
        everyone = own.new_empty(self.shard.num_experts, *own.shape[1:])
        dist.all_gather(list(everyone.chunk(self.shard.num_ranks)), own.contiguous(), group=self.partners)
        return everyone


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum over all processes of the job, without gradient."""
    total = values.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return total


def max_over(group: dist.ProcessGroup, value: int, device: torch.device) -> int:
    """Return the largest value of the processes in a group."""
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return int(largest)
