import gc
import itertools
import os

import pytest
import torch
from fairseq.data import iterators

from moec_fairseq.checkpoint.state import BUFFER, load_state
from tests.parallel.ranks import on_ranks
from tests.texts import MASKED_LM, SPARSE, write_text
from tests.whole_trainings import Seen, train, train_with_stops, vars_of_training, write_corpus

EPOCH = 6  # updates, of the first corpus
UPDATES = 5 * EPOCH
SHORT = ("--dropout", 0.1, "--attention-dropout", 0.1, "--max-tokens", 110)
PLATEAU = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-shrink", 0.5, "--lr-threshold", 0.9)

# what the batches and rates of later epochs depend on; an epoch of some has other numbers of updates
KINDS = {
    "plain": (),
    "curriculum": ("--curriculum", 2),
    "accumulation and random groups":
        ("--update-freq", "2,3,1", "--max-tokens", 60, "--moec-variance-groups", "random"),
    "whole groups": ("--skip-remainder-batch", "--update-freq", 2, "--max-tokens", 60),
    "ordered anew": ("--update-ordered-indices-seed",),
    "batched anew": ("--update-epoch-batch-itr", "True"),
    "moving average": ("--store-ema", "--ema-decay", 0.9, "--ema-update-freq", 3),
    "plateau": (*PLATEAU, "--lr-patience", 1),
    "other validations": (*PLATEAU, "--lr-patience", 0, "--validate-interval", 2),
    "rate by epoch": ("--lr-scheduler", "fixed", "--lr", "0.003,0.002,0.001", "--force-anneal", 3, "--lr-shrink", 0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Two folders of data, 50 and 40 pairs."""
    folder = tmp_path_factory.mktemp("corpora")
    return write_corpus(folder / "one", 50), write_corpus(folder / "two", 40, seed=1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Train without a stop, once for each kind; return what was seen, and where it is."""
    done = {}

    def of(data, *flags):
        key = (str(data), flags)
        if key not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            done[key] = train(data, folder, *SHORT, *flags, max_update=UPDATES), folder
        return done[key]

    return of


def check_same(seen, expected):
    assert seen.sentences == expected.sentences
    assert seen.rates == expected.rates
    for name, value in expected.parameters.items():
        assert torch.equal(seen.parameters[name], value), name


def average(folder):
    """Return the moving average of the parameters in the last checkpoint of a training, if it has one."""
    saved = load_state(folder / "checkpoint_last.pt")["extra_state"].get("ema", {})
    return {name: value for name, value in saved.items() if not BUFFER.fullmatch(name)}


@pytest.mark.parametrize("kind", KINDS)
def test_stops_within_and_at_the_end_of_epochs_change_nothing(corpora, undisturbed, tmp_path, kind):
    expected, folder = undisturbed(corpora[0], *KINDS[kind])
    stops = [EPOCH, 9, 3 * EPOCH, UPDATES]
    check_same(train_with_stops(corpora[0], tmp_path, stops, *SHORT, *KINDS[kind]), expected)
    for name, value in average(folder).items():
        assert torch.equal(average(tmp_path)[name], value)


def test_stops_of_a_training_on_several_folders_of_data(corpora, undisturbed, tmp_path):
    data = os.pathsep.join(map(str, corpora))
    expected, _ = undisturbed(data)
    check_same(train_with_stops(data, tmp_path, [EPOCH, 7, 12, UPDATES], *SHORT), expected)


@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
def test_a_training_in_bfloat16_goes_on_as_if_never_stopped(corpora, tmp_path, flag):
    flags = (*SHORT, flag, "--optimizer", "fused_adam", "--share-all-embeddings")
    train(corpora[0], tmp_path / "whole", *flags, max_update=9)
    train_with_stops(corpora[0], tmp_path / "parts", [4, 9], *flags)
    whole, parts = (load_state(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    # as precise as the optimizer has them
    rounded = all(torch.equal(value.bfloat16().float(), value) for value in whole.values())
    assert rounded == (flag == "--memory-efficient-bf16")


def test_masks_are_those_of_the_epoch(once, tmp_path, monkeypatch):
    """Of which workers must hear before they begin, and they begin at once where nothing is read ahead."""
    monkeypatch.setattr(
        "torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1
    )  # seconds to wait for each worker's end
    text, flags = once("text", write_text), (*MASKED_LM, "--num-workers", 1, "--data-buffer-size", 0)
    expected = train(text, tmp_path / "whole", *flags, max_update=12, base=SPARSE)
    seen = train_with_stops(text, tmp_path / "parts", [8, 12], *flags, base=SPARSE)
    assert seen.sentences == expected.sentences and len(set(map(str, expected.sentences[:5]))) == 5
    check_same(seen, expected)
    gc.collect()  # ends the workers


def test_stops_of_two_processes_change_nothing(corpora, tmp_path):
    flags = (*SHORT, "--curriculum", 1, "--max-tokens", 60)

    def ranks(name, *stops):
        return on_ranks(2, vars_of_training, corpora[0], tmp_path / name, stops, *flags)

    for expected, seen in zip(ranks("whole", 28), ranks("parts", 7, 11, 19, 28), strict=True):
        check_same(Seen(**seen), Seen(**expected))


def test_stops_of_two_processes_without_experts_change_nothing(corpora, tmp_path):
    """Whose first rank loads one file for all."""
    dense = ("--moe-expert-count", 0, "--criterion", "label_smoothed_cross_entropy")

    def ranks(name, *stops):
        return on_ranks(2, vars_of_training, corpora[0], tmp_path / name, stops, *SHORT, *dense)

    for expected, seen in zip(ranks("whole", 8), ranks("parts", 5, 8), strict=True):
        check_same(Seen(**seen), Seen(**expected))


def test_sentences_are_shuffled_after_the_curriculum(undisturbed, corpora):
    seen = undisturbed(corpora[0], *KINDS["curriculum"])[0].sentences
    epochs = [seen[start : start + EPOCH] for start in range(0, UPDATES, EPOCH)]
    assert epochs[0] == epochs[1]
    for epoch in epochs[2:]:
        assert epoch != epochs[0] and sorted(epoch) == sorted(epochs[0])
    assert epochs[2] != epochs[3]


class Numbers(torch.utils.data.Dataset):
    """Sentence n is n."""

    def __getitem__(self, number):
        return number


def ranks_in_epoch(world_size, batches, state=None, **options):
    """Return the iterators of all ranks, at the position ``state``, and of each its batches that are left."""
    made = [
        iterators.EpochBatchIterator(
            Numbers(), list, [[number] for number in range(batches)], num_shards=world_size, shard_id=rank, **options
        )
        for rank in range(world_size)
    ]
    for iterator in made if state else ():
        iterator.load_state_dict(state)
    return made, [iterator.next_epoch_itr(shuffle=True) for iterator in made]


def consume(left, iterations):
    """Return the sentences of so many iterations of all ranks."""
    return [sentence for _ in range(iterations) for batches in left for sentence in next(batches)]


@pytest.mark.parametrize("batches", [29, 40])
def test_the_place_in_an_epoch_is_that_of_all_ranks(batches):
    """Every batch is seen once, in one order, however often the number of ranks changes within an epoch."""
    (whole,) = ranks_in_epoch(1, batches)[1]
    whole = consume([whole], batches)
    assert sorted(whole) == list(range(batches)) != whole
    for worlds in itertools.permutations((1, 2, 3, 8), 3):
        state, seen = None, []
        for world_size in worlds:
            made, left = ranks_in_epoch(world_size, batches, state)
            seen += consume(left, 1)
            state = made[0].state_dict()
            assert all(iterator.state_dict() == state for iterator in made)
            assert state["batches_in_epoch"] == len(seen) and seen == whole[: len(seen)]
        seen += consume(left, len(left[0]) - left[0].n)
        assert seen == whole and all(iterator.end_of_epoch() for iterator in made)
        assert made[0].state_dict()["batches_in_epoch"] == 0
        following = [iterator.next_epoch_itr(shuffle=True) for iterator in made]
        assert sorted(consume(following, len(following[0]))) == list(range(batches))


@pytest.mark.parametrize("world_size, warned", [(2, 0), (4, 4)])
def test_an_order_that_depends_on_the_ranks_is_said_to(world_size, warned, caplog):
    made, left = ranks_in_epoch(2, 30, grouped_shuffling=True)
    consume(left, 5)
    ranks_in_epoch(world_size, 30, made[0].state_dict(), grouped_shuffling=True)
    assert caplog.text.count("epoch 1 repeats some batches and leaves out others") == warned


# A rate of 0 learns nothing: no validation is better than the first, so patience ends the training after epoch 1 + N.
IDLE = ("--optimizer", "sgd", "--lr", 0)


def test_patience_counts_the_validations_of_the_undisturbed_training(corpora, tmp_path, caplog):
    flags = (*SHORT, *IDLE, "--patience", 3)
    whole = train(corpora[0], tmp_path / "whole", *flags)
    assert len(whole.sentences) == 4 * EPOCH
    folder = tmp_path / "parts"
    parts = train_with_stops(corpora[0], folder, [3, EPOCH + 3, 2 * EPOCH, 2 * EPOCH + 1, 100], *flags)
    assert parts.sentences == whole.sentences
    at_its_end = (folder / "checkpoint_last.pt").read_bytes()
    assert train(corpora[0], folder, *flags).sentences == []
    assert "was finished (--patience 3, checkpoint.patience)" in caplog.text
    assert (folder / "checkpoint_last.pt").read_bytes() == at_its_end
    # another training that begins with its model
    assert len(train(corpora[0], folder, *flags, "--patience", 2, "--reset-lr-scheduler").sentences) == 3 * EPOCH


def test_epochs_without_patience_do_not_count(corpora, tmp_path):
    train(corpora[0], tmp_path, *SHORT, *IDLE, "--max-epoch", 3)
    assert len(train(corpora[0], tmp_path, *SHORT, *IDLE, "--patience", 2).sentences) == 3 * EPOCH


def test_a_training_that_has_made_its_updates_stays_as_it_is(corpora, tmp_path, caplog):
    train(corpora[0], tmp_path, *SHORT, max_update=4)
    at_its_end = (tmp_path / "checkpoint_last.pt").read_bytes()
    assert train(corpora[0], tmp_path, *SHORT, max_update=4).sentences == []
    assert "was finished (--max-update 4, optimization.max_update)" in caplog.text and "at update 4" in caplog.text
    assert (tmp_path / "checkpoint_last.pt").read_bytes() == at_its_end
    assert len(train(corpora[0], tmp_path, *SHORT, max_update=6).sentences) == 2


def test_trainings_of_one_process_do_not_see_each_other(corpora, tmp_path):
    """The second learns nothing, and is worse than the first; the third begins where the first had ended."""
    logs = ("--tensorboard-logdir", "--log-file")

    def run(name, *flags, max_update=0):
        outputs = [part for log in logs for part in (log, tmp_path / f"{name}{log}")]
        return train(corpora[0], tmp_path / name, *SHORT, *outputs, "--max-epoch", 2, *flags, max_update=max_update)

    run("first", "--patience", 1)
    assert run("first", max_update=1).sentences == []
    first_log = (tmp_path / "first--log-file").read_bytes()
    assert len(run("second", "--lr", 0, "--optimizer", "sgd", "--patience", 2).sentences) == 2 * EPOCH
    assert (tmp_path / "second" / "checkpoint_best.pt").exists()
    assert (tmp_path / "first--log-file").read_bytes() == first_log
    for name in ("first", "second"):
        assert list((tmp_path / f"{name}--tensorboard-logdir" / "train").iterdir())


def test_a_training_of_several_processes_is_not_begun_anew_by_one(corpora, tmp_path):
    (tmp_path / "checkpoint_last-rank-1.pt").touch()
    with pytest.raises(ValueError, match=r"consists of 2 file\(s\), one for"):
        train(corpora[0], tmp_path, *SHORT, max_update=1)
    assert len(list(tmp_path.iterdir())) == 1
