import torch

from moec_fairseq.bench.measure import Contender, Times, interleave, ratio


def test_contenders_take_turns_and_warm_up_does_not_count():
    calls = []

    def contender(name):
        return Contender(
            forward=lambda: calls.append(f"{name} forward") or torch.ones(()),
            backward=lambda result: calls.append(f"{name} backward {result.item():.0f}"),
            reset=lambda: calls.append(f"{name} reset"),
        )

    times = interleave("test", {"a": contender("a"), "b": contender("b")}, 2, 1, torch.device("cpu"))
    assert calls == 3 * [f"{name} {part}" for name in "ab" for part in ("forward", "backward 1", "reset")]
    assert [len(own.total) for own in times.values()] == [2, 2]
    assert all(seconds > 0 for own in times.values() for seconds in own.forward + own.backward)


def test_forward_and_backward_add_up():
    assert Times([1.0, 2.0], [3.0, 5.0]).total == [4.0, 7.0]


def test_ratios_are_paired_by_round():
    # a slow second round hits both; the ratio of the medians would be 3 / 2
    assert str(ratio([2.0, 20.0, 3.0], [1.0, 10.0, 2.0])) == "2.00 (1.50–2.00)"
