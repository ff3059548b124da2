from types import SimpleNamespace

import pytest
import torch

from moec_fairseq.compat.ranks import watch_batches
from moec_fairseq.moe.records import RecordBook


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_a_dummy_batch_is_one_until_its_step_ends(error):
    book, seen = RecordBook(), []
    task = SimpleNamespace(moec_model=SimpleNamespace(book=book))

    def train_step(*args):
        seen.append(book.is_dummy)
        if error:
            raise error
        return torch.tensor(1.0), 1, {}

    for ignore_grad in (True, False, True):
        try:
            watch_batches(train_step)(task, {}, None, None, None, 0, ignore_grad)
        except RuntimeError:
            assert error
        assert not book.is_dummy  # validation may come next
    assert seen == [True, False, True]


def test_a_loss_that_is_not_finite_is_noted():
    task = SimpleNamespace()
    for loss, noted in ((1.0, False), (float("nan"), True), (1.0, True)):
        watch_batches(lambda *_, loss=loss: (torch.tensor(loss), 1, {}))(task, {}, None, None, None, 0)
        assert task.any_loss_not_finite == noted
