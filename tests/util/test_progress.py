"""What is shown of fairseq's log."""

import io
import json

from moec_fairseq.util.progress import Headlines, follow, history

LOG = "2026-01-01 | INFO | fairseq.trainer | "


def shown(*lines: str) -> str:
    log, screen = io.StringIO(), io.StringIO()
    follow([f"{line}\n" for line in lines], "train", 10, log, screen)
    assert log.getvalue().splitlines() == list(lines)
    return screen.getvalue()


def statistics(tag: str, **values: str) -> str:
    return f"2026-01-01 | INFO | {tag} | {json.dumps(values)}"


def test_measures_of_translation():
    valid = {"valid_num_updates": "4", "epoch": "1", "valid_loss": "5.1", "valid_ppl": "30", "valid_best_loss": "5"}
    found = shown(statistics("valid", **valid))
    assert "update 4, epoch 1: validation loss 5.1 (best 5), ppl 30\n" in found


def test_measures_of_fine_tuning_have_no_perplexity():
    train = {"num_updates": "3", "wps": "1234.5", "loss": "0.7", "accuracy": "60"}
    valid = {"valid_num_updates": "4", "epoch": "1", "valid_loss": "0.6", "valid_mcc": "12", "valid_best_mcc": "13"}
    found = shown(statistics("train_inner", **train), statistics("valid", **valid))
    assert "update 4, epoch 1: validation loss 0.6, Matthews correlation 12 (best 13)\n" in found
    assert "loss 0.7, accuracy 60, 1 234 tokens/s" in found


def test_only_a_training_that_goes_on_is_resumed():
    loaded = LOG + "Loaded checkpoint x/checkpoint_last.pt (epoch 2 @ {} updates)"
    assert "resuming from update 7" in shown(loaded.format(7))
    assert "resuming" not in shown(loaded.format(0))  # fine-tuning begins


def test_headlines(capsys):
    headlines = Headlines(2)
    headlines.show("first")
    headlines.show("second")
    assert capsys.readouterr().out == "\n[1/2] first (0 s)\n\n[2/2] second (0 s)\n"


TRAINING = "{} | INFO | train_inner | epoch 001:      5 / 30 loss={}, ppl=1.5, wps=5023.4, num_updates={}, lr=4.1e-05"
VALIDATION = "{} | INFO | valid | epoch 001 | valid on 'valid' subset | loss {} | moe_unused 3 | num_updates {}"


def test_the_history_of_a_log_in_json():
    lines = [
        statistics("train_inner", num_updates="2", loss="5", gnorm=None),
        statistics("valid", valid_num_updates="3", valid_loss="4"),
        statistics("train_inner", num_updates="4", loss="3"),
    ]
    assert history(lines) == (
        {2: {"num_updates": 2, "loss": 5}, 4: {"num_updates": 4, "loss": 3}},
        {3: {"valid_num_updates": 3, "valid_loss": 4}},
    )


def test_the_history_of_a_simple_log():
    train, valid = history([TRAINING.format("2026", 5, 2), "| valid | something else", VALIDATION.format("2026", 4, 3)])
    assert train == {2: {"loss": 5, "ppl": 1.5, "wps": 5023.4, "num_updates": 2, "lr": 4.1e-05}}
    assert valid == {3: {"valid_loss": 4, "valid_moe_unused": 3, "valid_num_updates": 3}}


def test_the_history_of_a_log_in_the_format_of_python():
    json = '{"epoch": 1, "loss": "6.5", "num_updates": "3"}'
    assert history([f"INFO:train_inner:{json}"])[0] == history([f"2026 | INFO | train_inner | {json}"])[0] != {}


def test_what_was_done_again_counts_as_it_was_the_last_time():
    resumed = LOG + "Loaded checkpoint x/checkpoint_last.pt (epoch 2 @ 2 updates)"
    lines = [TRAINING.format("2026", loss, update) for loss, update in ((5, 2), (4, 4), (3, 6))]
    train, _ = history([*lines, resumed, TRAINING.format("2026", 2, 4)])
    assert {update: values["loss"] for update, values in train.items()} == {2: 5, 4: 2}
