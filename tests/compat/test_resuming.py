import re

import pytest

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
    assert train("--patience", 2, "--reset-optimizer")[0] == [5, 6, 7]


def test_a_training_that_has_made_its_updates_stays_as_it_is(train):
    train("--max-update", 4)
    at_its_end = train.last.read_bytes()
    epochs, said = train("--max-update", 4)
    assert epochs == [] and "was at its end (--max-update 4, optimization.max_update)" in said and "at update 4" in said
    assert train.last.read_bytes() == at_its_end
    assert "num_updates 6" in train("--max-update", 6)[1]


def test_a_training_of_several_processes_is_not_begun_anew_by_one(fairseq, reversal_data, tmp_path):
    (tmp_path / "checkpoint_last-rank-1.pt").touch()
    done = fairseq("train", reversal_data, *FLAGS, "--save-dir", tmp_path, "--max-update", 1, ok=False)
    assert done.returncode == 1 and "holds the training of 2 process(es), and this one has 1" in done.last_line
    assert len(list(tmp_path.iterdir())) == 1
