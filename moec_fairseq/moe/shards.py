"""Which rank owns which experts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shard:
    """The experts of one of W ranks.

    With at most as many ranks as experts, rank r owns the experts r·N/W … (r+1)·N/W − 1. With more ranks than experts
    rank r owns a copy of expert r mod N; N neighbouring ranks hold each expert once and send tokens to each other.

    Raises:
        ValueError: neither N is divisible by W nor W by N.
    """

    num_experts: int
    world_size: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        assert 0 <= self.rank < self.world_size
        if self.num_experts % self.world_size and self.world_size % self.num_experts:
            fewer = [str(w) for w in range(1, self.num_experts + 1) if self.num_experts % w == 0]
            raise ValueError(
                f"{self.num_experts} experts (--moe-expert-count) cannot be shared by {self.world_size} processes; "
                f"use {', '.join(fewer)} processes, or a multiple of {self.num_experts}."
            )

    @property
    def num_ranks(self) -> int:
        """R: ranks that together hold each expert once."""
        return min(self.num_experts, self.world_size)

    @property
    def num_copies(self) -> int:
        """Ranks that hold the same expert."""
        return self.world_size // self.num_ranks

    @property
    def experts(self) -> range:
        """Numbers of the experts that this rank owns."""
        size = self.num_experts // self.num_ranks
        first = self.rank % self.num_ranks * size
        return range(first, first + size)

    @property
    def partners(self) -> range:
        """Ranks that this one exchanges tokens with, itself included."""
        first = self.rank - self.rank % self.num_ranks
        return range(first, first + self.num_ranks)

    @property
    def holders(self) -> range:
        """Ranks that own the same experts, this one included."""
        return range(self.rank % self.num_ranks, self.world_size, self.num_ranks)
