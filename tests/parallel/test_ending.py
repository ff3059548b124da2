"""How a process of a job ends."""

import time

from .ranks import Job


def leave_early(rank, world_size):
    """Rank 0 ends while its thread still waits for rank 1."""
    import torch
    import torch.distributed as dist

    import moec_fairseq  # noqa: F401  (importing it waits for gloo at the end)

    time.sleep(0.2 * rank)
    dist.all_to_all_single(torch.empty(2), torch.ones(2), async_op=True)


def test_no_process_aborts_while_gloo_still_holds_a_tensor():
    job = Job(2)
    job.run(leave_early)
    assert job.end() == [0, 0]
