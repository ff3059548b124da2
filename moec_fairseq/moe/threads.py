"""Experts in parallel on the threads of a CPU."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier

import torch

# Below this many tokens per thread, distributing the work costs more than it saves.
MIN_TOKENS_PER_THREAD = 32


def _one_thread_each() -> None:
    torch.set_num_threads(1)
    # a new thread adopts the default of the process when it first asks, so it asks while that is 1
    torch.get_num_threads()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of workers that use one thread each."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="experts", initializer=_one_thread_each)
    everyone_started = Barrier(threads)
    list(pool.map(lambda _: everyone_started.wait(), range(threads)))
    # the workers' setting also changed the default of the whole process
    torch.set_num_threads(threads)
    return pool


# threads do not survive a fork (data-loading workers, test runners)
os.register_at_fork(after_in_child=_pool.cache_clear)


def for_each_expert(work: Callable[[int], None], counts: Sequence[int], device: torch.device) -> None:
    """Call ``work(i)`` for every expert i that has tokens, in no particular order; on CPU, many experts at a time.

    Threads that share one small product spend more time waiting than computing; threads with one expert each do not.
    An expert with more than half a thread's share of all tokens gets all threads, so that no thread waits for it.

    Args:
        work: computes one expert; in it, thread-local settings of torch (gradients, autocast) have their defaults.
        counts: tokens of each expert.
        device: device of the tensors used by ``work``.
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
        rest = iter(shared)  # the workers take turns, large experts first

        def take(_: int) -> None:
            for i in rest:
                work(i)

        list(_pool(threads).map(take, range(threads)))
