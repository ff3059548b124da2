from moec_fairseq.launch import once


def test_a_training_that_replaces_another_stays_alone(tmp_path, monkeypatch):
    """What the other has left goes, but for the lock by which commands wait for each other."""
    found = []

    def train(logs, **_):
        found.append(sorted(path.name for path in logs.iterdir()))
        (logs / "evaluation").mkdir()
        (logs / "checkpoint_best.pt").touch()

    monkeypatch.setattr(once, "train", train)
    for seed in (1, 1, 2):
        once.train_once("quickstart", [f"common.seed={seed}", "task.data=bin"], tmp_path / "seed", "text")
    assert found == [[".training.lock", "settings.json"]] * 2
