"""How a process of a job ends."""

import time

from .ranks import on_ranks


def leave_early(rank, world_size):
    """Rank 0 ends while its thread still waits for rank 1."""
    import torch
    import torch.distributed as dist

    import moec_fairseq  # noqa: F401  (importing it waits for gloo at the end)

    time.sleep(0.2 * rank)
    sent = torch.ones(2)
    work = dist.all_to_all_single(torch.empty(2), sent, async_op=True)
    return bool(work)


def test_no_process_aborts_while_gloo_still_holds_a_tensor(tmp_path):
    assert on_ranks(tmp_path / "job", 2, leave_early, meet_at_end=False) == [True, True]
