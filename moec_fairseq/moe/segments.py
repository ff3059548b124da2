"""Which tokens of a batch grouped by expert belong to which expert, in the forms that kernels need."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slots:
    """A place for each token in a larger tensor, of which the remaining rows are zeros.

    Attributes:
        slot_A: row of each token, int64, no two alike.
        num_slots: rows of the larger tensor.
    """

    slot_A: Tensor
    num_slots: int

    def place(self, rows_AD: Tensor) -> Tensor:
        """Return the rows in their slots, (num_slots, D)."""
        return _Place.apply(rows_AD, self)

    def take(self, slots_XD: Tensor) -> Tensor:
        """Return the rows of the tokens, (A, D)."""
        return _Take.apply(slots_XD, self)


@dataclass(frozen=True)
class SpacedSlots(Slots):
    """Slots in which the tokens of each expert are followed by one row of zeros.

    Attributes:
        expert_X: expert of each slot, int32.
        ends_N: end of each expert's slots, int32.
    """

    expert_X: Tensor
    ends_N: Tensor


@dataclass(frozen=True)
class Segments:
    """The tokens of each expert in a batch that is grouped by expert.

    What follows from them is computed when it is first asked for, and only once: all blocks of a layer share it. On a
    device, ``counts`` is the only thing that the host waits for; ``equal`` needs it, ``spaced`` does not.

    Attributes:
        expert_A: expert of each token, ascending, int64.
        num_experts: N.
        known: tokens of each expert, where the host has them already.
    """

    expert_A: Tensor
    num_experts: int
    known: list[int] | None = None

    @cached_property
    def counts_N(self) -> Tensor:
        """Tokens of each expert, int64."""
        return self._start_M.diff()

    @cached_property
    def counts(self) -> list[int]:
        """Tokens of each expert, on the host."""
        if self.known is not None:
            return self.known
        # all of them cost no more than the largest one: the time is that of waiting for the device
        return self.counts_N.tolist() if len(self.expert_A) else [0] * self.num_experts

    @property
    def largest(self) -> int:
        """Tokens of the fullest expert."""
        return max(self.counts)

    @cached_property
    def position_in_expert_A(self) -> Tensor:
        """Position of each token among those of its expert, from 0."""
        return self._position_A - self._start_M.index_select(0, self.expert_A)

    @cached_property
    def equal(self) -> Slots:
        """As many slots for each expert as the fullest one has tokens, and at least one."""
        size = max(1, self.largest)
        return Slots(torch.add(self.position_in_expert_A, self.expert_A, alpha=size), self.num_experts * size)

    @cached_property
    def spaced(self) -> SpacedSlots:
        """One slot more for each expert than it has tokens."""
        ends_N = self._start_M[1:] + self._id_M[1:]
        num_slots = len(self.expert_A) + self.num_experts
        expert_X = torch.searchsorted(ends_N, self._numbers[:num_slots], right=True, out_int32=True)
        return SpacedSlots(self._position_A + self.expert_A, num_slots, expert_X, ends_N.to(torch.int32))

    @cached_property
    def _start_M(self) -> Tensor:
        """Position of the first token of each expert, and of one expert more: A."""
        # bincount would wait for a GPU
        return torch.searchsorted(self.expert_A, self._id_M)

    @property
    def _id_M(self) -> Tensor:
        return self._numbers[: self.num_experts + 1]

    @property
    def _position_A(self) -> Tensor:
        return self._numbers[: len(self.expert_A)]

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.arange(len(self.expert_A) + self.num_experts + 1, device=self.expert_A.device)


class _Place(torch.autograd.Function):
    """Rows to their slots. No slot has two rows, so that neither direction adds anything up: there are no atomics."""

    @staticmethod
    def forward(ctx: Any, rows_AD: Tensor, slots: Slots) -> Tensor:
        """Return (num_slots, D)."""
        ctx.slots = slots
        full = len(rows_AD) == slots.num_slots  # then there is nothing to fill with zeros
        slots_XD = (rows_AD.new_empty if full else rows_AD.new_zeros)((slots.num_slots, rows_AD.shape[1]))
        return slots_XD.index_copy_(0, slots.slot_A, rows_AD)

    @staticmethod
    def backward(ctx: Any, gradient_XD: Tensor) -> tuple[Tensor, None]:
        """Return the gradients of the rows."""
        return ctx.slots.take(gradient_XD), None


class _Take(torch.autograd.Function):
    """Slots to rows, the inverse of ``_Place``; the backward of ``index_select`` itself would add by atomics."""

    @staticmethod
    def forward(ctx: Any, slots_XD: Tensor, slots: Slots) -> Tensor:
        """Return (A, D)."""
        ctx.slots = slots
        return slots_XD.index_select(0, slots.slot_A)

    @staticmethod
    def backward(ctx: Any, gradient_AD: Tensor) -> tuple[Tensor, None]:
        """Return the gradients of the slots."""
        return ctx.slots.place(gradient_AD), None
