import os
from types import SimpleNamespace

import pytest
import torch
from fairseq.modules import LayerDropModuleList

from moec_fairseq.compat.ranks import check_before_training, seed_layer_drop, try_once, watch_batches
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


def layers_of(seed, update, passes=3, share=0.5, layers=12, **task):
    """Return which layers of two stacks run in the forward passes of an update, where torch's generator is anywhere."""
    stacks = [LayerDropModuleList(share, [torch.nn.Identity() for _ in range(layers)]) for _ in range(2)]
    trainer = SimpleNamespace(
        task=SimpleNamespace(**(task or {"moec_model": None})),
        cfg=SimpleNamespace(common=SimpleNamespace(seed=seed)),
        get_model=lambda: torch.nn.ModuleList(stacks),
        get_num_updates=lambda: update,
    )
    seed_layer_drop(lambda trainer: torch.manual_seed(seed + update))(trainer)
    torch.rand(int.from_bytes(os.urandom(1), "big"))  # what dropout draws depends on the shape of the batch
    numbers = [{layer: number for number, layer in enumerate(stack.children())} for stack in stacks]
    return [[numbers[s][layer] for layer in stack] for _ in range(passes) for s, stack in enumerate(stacks)]


def test_the_same_layers_are_dropped_on_all_ranks_and_after_a_restart():
    drawn = [layers_of(seed, update) for seed in (1, 2, -1) for update in (0, 1, 500)]
    assert drawn == [layers_of(seed, update) for seed in (1, 2, -1) for update in (0, 1, 500)]
    # but others in each stack, forward pass and update, and for each seed
    assert len({tuple(kept) for draw in drawn for kept in draw}) == sum(map(len, drawn))
    assert all(kept == sorted(kept) for draw in drawn for kept in draw)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 1.0])
def test_the_share_that_is_asked_for_is_dropped(share):
    kept = layers_of(3, 4, passes=50, share=share, layers=40)
    assert sum(map(len, kept)) / (100 * 40) == pytest.approx(1 - share, abs=0.03)  # four standard deviations


def test_other_models_and_evaluation_are_as_fairseq_has_them():
    drawn = [layers_of(1, 1, another_model=None) for _ in range(20)]
    assert any(draw != drawn[0] for draw in drawn)
    stack = LayerDropModuleList(1.0, [torch.nn.Identity()]).eval()
    assert len(list(stack)) == 1 and len(list(stack.train())) == 0


@pytest.mark.parametrize("shares_experts", [False, True])
def test_no_batch_of_validation_is_tried_again_where_others_have_gone_on(shares_experts):
    seen = []
    step = try_once(lambda trainer, sample, raise_oom: seen.append(raise_oom))
    for raise_oom in (False, True):
        step(SimpleNamespace(shares_experts=shares_experts), {}, raise_oom)
    assert seen == [shares_experts, True]


def test_nothing_is_built_where_trainings_were_started_side_by_side(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = SimpleNamespace(distributed_training=SimpleNamespace(distributed_world_size=1))
    with pytest.raises(ValueError, match="torchrun has started 2 processes"):
        check_before_training(lambda *_: pytest.fail("built"))(SimpleNamespace(), config, None, torch.nn.Linear(1, 1))
