"""Shuffling between ranks: tokens spread evenly, and come back."""

import pytest
import torch

from tests.parallel.ranks import on_ranks


def there_and_back(rank, world_size, lengths):
    """Shuffle numbered tokens, negate them where they are, send them back; return what was where, and the gradient."""
    from moec_fairseq.moe.expert_parallel import ExpertParallelGroups
    from moec_fairseq.moe.shuffle import TokenShuffle

    torch.manual_seed(1 + rank)
    shuffle = TokenShuffle(ExpertParallelGroups.of_job(2))
    tokens = (100.0 * rank + torch.arange(lengths[rank])).unsqueeze(-1).requires_grad_()
    shuffled = shuffle.scatter(tokens)
    values = shuffle.gather(-shuffled.tokens_TD, shuffled)
    (values.flatten() * torch.arange(lengths[rank])).sum().backward()
    return [t.flatten().tolist() for t in (tokens, shuffled.tokens_TD, values, tokens.grad)]


@pytest.mark.parametrize(
    "lengths, received",
    # each rank sends (almost) half of its tokens to each rank that has some itself
    [([5, 2], [3 + 1, 2 + 1]), ([1, 1], [1 + 1, 0]), ([4, 0], [4, 0]), ([0, 0], [0, 0])],
)
def test_every_token_is_somewhere_once_and_comes_back(lengths, received):
    first, second = on_ranks(2, there_and_back, lengths)
    assert sorted(first[1] + second[1]) == first[0] + second[0]
    assert [len(first[1]), len(second[1])] == received
    for tokens, _, values, gradient in (first, second):
        assert values == [-token for token in tokens]
        assert gradient == [-position for position in range(len(tokens))]


def test_tokens_are_shuffled():
    first, _ = on_ranks(2, there_and_back, [50, 50])
    own, others = first[1][:25], first[1][25:]
    assert own != sorted(own) and others != sorted(others) and min(others) >= 100
