import re
from types import SimpleNamespace

import pytest

from moec_fairseq.compat import resuming
from tests.conftest import CRITERION, DATA, TINY

# A rate of 0 learns nothing: no validation is better than the first, so patience ends the training after epoch 1 + N.
FLAGS = (*TINY, *CRITERION, "--optimizer", "sgd", "--lr", "0", "--lr-scheduler", "fixed", "--dropout", "0", *DATA)


@pytest.fixture
def train(fairseq, reversal_data, tmp_path):
    """Train into one folder; return the epochs that were validated, and all that was said."""

    def run(*flags):
        folder = tmp_path / "model"
        done = fairseq("train", reversal_data, *FLAGS, "--save-dir", folder, "--log-format", "simple", *flags)
        said = done.stdout + done.stderr
        return [int(epoch) for epoch in re.findall(r"epoch (\d+) \| valid on", done.stdout)], said

    run.last = tmp_path / "model" / "checkpoint_last.pt"
    return run


def test_a_training_that_is_started_again_keeps_its_patience(train):
    assert train("--patience", 3, "--max-epoch", 2)[0] == [1, 2]
    assert train("--patience", 3)[0] == [3, 4]
    at_its_end = train.last.read_bytes()
    epochs, said = train("--patience", 3)
    assert epochs == [] and "was at its end (--patience 3, checkpoint.patience)" in said
    assert train.last.read_bytes() == at_its_end
    # another training that begins with its model
    assert train("--patience", 2, "--reset-lr-scheduler")[0] == [5, 6, 7]


def test_a_training_that_has_made_its_updates_stays_as_it_is(train):
    train("--max-update", 4)
    at_its_end = train.last.read_bytes()
    epochs, said = train("--max-update", 4)
    assert epochs == [] and "was at its end (--max-update 4, optimization.max_update)" in said and "at update 4" in said
    assert train.last.read_bytes() == at_its_end
    assert "num_updates 6" in train("--max-update", 6)[1]


@pytest.fixture
def loop(monkeypatch):
    """What the module of fairseq-train looks like from outside."""

    def should_stop_early():
        pass

    module = SimpleNamespace(should_stop_early=should_stop_early, train=lambda *_: "trained")
    monkeypatch.setattr(resuming, "training_loop", lambda: module)
    return module


def trainer(patience, updates=10):
    optimization, checkpoint = SimpleNamespace(max_update=0), SimpleNamespace(patience=patience, save_dir="x")
    return SimpleNamespace(
        cfg=SimpleNamespace(optimization=optimization, checkpoint=checkpoint), get_num_updates=lambda: updates
    )


GOES_ON = SimpleNamespace(
    restore_file="checkpoint_last.pt", reset_optimizer=False, reset_lr_scheduler=False, reset_dataloader=False,
    reset_meters=False, save_dir="x",
)  # fmt: skip


def load(loop, trainer, saved):
    resuming.go_on_as_if_never_stopped(lambda *_: (saved, None))(GOES_ON, trainer)
    return vars(loop.should_stop_early)


def save(loop, trainer):
    state = {}
    resuming.save_patience(lambda trainer, name, extra: None)(trainer, "x.pt", state)
    return state


def test_epochs_without_patience_do_not_count(loop):
    ended = {"patience": {"best": 3.0, "runs": 2}}
    assert load(loop, trainer(patience=3), ended) == {"best": 3.0, "num_runs": 2}
    assert save(loop, trainer(patience=3)) == ended
    load(loop, trainer(patience=-1), ended)
    assert save(loop, trainer(patience=-1)) == {}
    assert load(loop, trainer(patience=3), {}) == {}


def test_the_next_training_of_the_same_process(loop):
    load(loop, trainer(patience=2), {"patience": {"best": 3.0, "runs": 2}})
    assert loop.train() == ([None], True) and loop.train() == "trained"
    assert load(loop, trainer(patience=2, updates=0), None) == {}


def test_a_training_of_several_processes_is_not_begun_anew_by_one(fairseq, reversal_data, tmp_path):
    (tmp_path / "checkpoint_last-rank-1.pt").touch()
    done = fairseq("train", reversal_data, *FLAGS, "--save-dir", tmp_path, "--max-update", 1, ok=False)
    assert done.returncode == 1 and "is there in 2 file(s), one for" in done.last_line
    assert len(list(tmp_path.iterdir())) == 1
