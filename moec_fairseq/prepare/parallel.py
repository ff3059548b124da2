"""Work on chunks of a stream in several processes, results in order, memory bounded."""

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

from moec_fairseq.cli.child import end_with

Item = TypeVar("Item")
Result = TypeVar("Result")


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield ``function(item)`` for each item in order; at most ``ahead`` items are under way at any time.

    Raises:
        ValueError: a process of the pool was killed.
    """
    running: deque[Future[Result]] = deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenExecutor as error:
        raise ValueError("a worker was killed, probably because the memory ran out; give fewer --workers") from error


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def processes(workers: int) -> ProcessPoolExecutor:
    """Return workers that are there already: forked while this process has one thread, they need not import torch."""
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, _begin, (os.getpid(),))
    pool.submit(int)
    return pool
