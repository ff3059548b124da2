"""Experts side by side on the threads of a CPU."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch

# Below this many tokens for each thread, handing over the work costs more than it saves.
MIN_TOKENS_PER_THREAD = 32


def _one_thread_each() -> None:
    torch.set_num_threads(1)
    # a new thread takes the default of the process when it first asks, so it asks while that is 1
    torch.get_num_threads()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of workers that compute on one thread each."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="experts", initializer=_one_thread_each)
    everyone_started = Barrier(threads)
    list(pool.map(lambda _: everyone_started.wait(), range(threads)))
    # what the workers set for themselves was the default of the whole process, too
    torch.set_num_threads(threads)
    return pool


# threads do not survive a fork (data-loading workers, test runners)
os.register_at_fork(after_in_child=_pool.cache_clear)


def for_each_expert(work: Callable[[int], None], counts: Sequence[int], device: torch.device) -> None:
    """Call ``work(i)`` for every expert i that has tokens, on CPU many experts at a time, in no certain order.

    Threads that share one small product wait for each other more than they compute; threads that take one expert each
    do not. An expert with more than half a thread's share of all tokens gets all threads, so that nobody waits for it.

    Args:
        work: what to do for one expert; thread-local settings of torch (gradients, autocast) are the defaults in it.
        counts: tokens of each expert.
        device: where the tensors of ``work`` are.
    """
    threads = torch.get_num_threads()
    tokens = sum(counts)
    busy = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -counts[i])
    if device.type == "cpu" and 1 < threads and threads * MIN_TOKENS_PER_THREAD <= tokens:
        shared = [i for i in busy if 2 * threads * counts[i] <= tokens]
    else:
        shared = []
    for i in busy[: len(busy) - len(shared)]:
        work(i)
    if shared:
        rest = iter(shared)  # the workers take from it in turn, large experts first

        def take(_: int) -> None:
            for i in rest:
                work(i)

        list(_pool(threads).map(take, range(threads)))
