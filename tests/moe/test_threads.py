import os
from threading import current_thread, main_thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.moe.threads import MIN_TOKENS_PER_THREAD, for_each_expert

from .stubs import quick

CPU = torch.device("cpu")


def test_every_expert_with_tokens_is_called_once(threads):
    @quick
    @given(st.lists(st.integers(0, 200), max_size=20))
    def check(counts):
        called = []
        for_each_expert(called.append, counts, CPU)
        assert sorted(called) == [i for i, count in enumerate(counts) if count]

    check()


def test_small_experts_share_the_threads_and_a_large_one_gets_all_of_them(threads):
    if threads == 1:
        pytest.skip("nothing to share")
    workers, inner = {}, {}

    def work(i):
        workers[i], inner[i] = current_thread(), torch.get_num_threads()

    small = 10 * MIN_TOKENS_PER_THREAD
    for_each_expert(work, [small, 0, 100 * small, small], CPU)
    assert workers[2] is main_thread() and inner[2] == threads
    assert {i: (workers[i] is main_thread(), inner[i]) for i in (0, 3)} == {0: (False, 1), 3: (False, 1)}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("counts, device", [([1] * 10, CPU), ([1000] * 10, torch.device("meta"))])
def test_few_tokens_and_other_devices_stay_in_this_thread(counts, device):
    def work(i):
        assert current_thread() is main_thread()

    for_each_expert(work, counts, device)


def test_an_error_of_an_expert_reaches_the_caller(threads):
    def work(i):
        raise RuntimeError(f"expert {i}")

    with pytest.raises(RuntimeError, match="expert"):
        for_each_expert(work, [500] * 8, CPU)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(threads):
    def count():
        called = []
        for_each_expert(called.append, [500] * 8, CPU)
        return len(called)

    assert count() == 8
    child = os.fork()
    if child == 0:
        # OpenMP does not stay active under a fork either: as in a data-loading worker, one thread per product
        os._exit(0 if count() == 8 else 1)
    assert os.waitpid(child, 0)[1] == 0
