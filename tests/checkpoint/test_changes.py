from moec_fairseq.checkpoint.changes import changes
from moec_fairseq.checkpoint.loading import load_if_whole

SAVED = {
    "common": {"seed": 1, "log_interval": 100},
    "model": {"dropout": 0.3, "moec_dispatch": "exact", "seed": 1, "gone": True},
    "criterion": None,
    "optimization": {"lr": [0.1]},
}


def test_what_makes_another_model_is_named():
    now = {
        "common": {"seed": 2, "log_interval": 1},
        "model": {"dropout": 0.1, "moec_dispatch": "capacity", "seed": 2, "new": 5},
        "criterion": {"label_smoothing": 0.1},
        "optimization": {"lr": [0.2]},
    }
    assert changes(SAVED, now) == ["common.seed=1 (now 2)", "model.dropout=0.3 (now 0.1)"]


def test_nothing_has_changed():
    assert changes(SAVED, SAVED) == []
    assert changes({}, SAVED) == []


def test_files_that_are_missing_or_torn_hold_nothing(tmp_path):
    torn = tmp_path / "torn.pt"
    torn.write_bytes(b"PK\x03\x04 and then the disk was full")
    assert load_if_whole(torn) is load_if_whole(tmp_path / "missing.pt") is None
