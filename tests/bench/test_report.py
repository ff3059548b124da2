import json

import pytest

from moec_fairseq.bench.layer import exponent
from moec_fairseq.bench.measure import Times
from moec_fairseq.bench.report import Outcome, Target, rows_of, table, target_table, write_json

TIMES = {"dense": Times([0.1, 0.1], [0.3, 0.3]), "moec 8": Times([0.2, 0.2], [0.4, 0.8])}
SIZES = {"dense": (0, 1000), "moec 8": (8, 1000)}


def test_the_first_contender_is_the_baseline():
    dense, moec = rows_of("layer", "1000 tokens", TIMES, SIZES)
    assert dense.time_ratio.median == 1
    assert (moec.experts, moec.tokens, moec.baseline) == (8, 1000, "dense")
    assert moec.time_ratio.median == pytest.approx((1.5 + 2.5) / 2)


def test_table():
    lines = table(rows_of("layer", "1000 tokens", TIMES, SIZES)).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:9]] == [
        "1000 tokens", "dense", "baseline", "400.0", "400.0–400.0", "100.0", "300.0", "2500",
    ]  # fmt: skip
    assert [cell.strip() for cell in lines[3].split("|")[1:5]] == ["1000 tokens", "moec 8", "2.00 (1.50–2.50)", "800.0"]


@pytest.mark.parametrize("value, at_most, reached", [(1.0, True, "yes"), (1.2, True, "no"), (1.2, False, "yes")])
def test_targets(value, at_most, reached):
    line = target_table([Target("time", value, 1.1, at_most)]).splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")[1:5]] == [
        "time", f"{value:.3g}", ("≤" if at_most else "≥") + " 1.1", reached,
    ]  # fmt: skip


def test_json_has_every_repeat(tmp_path):
    rows = rows_of("layer", "1000 tokens", TIMES, SIZES)
    write_json(tmp_path / "found.json", {"processor": "x"}, [Outcome("layer", rows, [Target("time", 1.0, 1.1)])])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"][1]["times"] == {"forward": [0.2, 0.2], "backward": [0.4, 0.8]}
    assert found["targets"][0]["bound"] == 1.1
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_exponent_of_a_known_law():
    rows = []
    for tokens in (10, 20, 40):
        rows += rows_of("layer", "x", {"moec 8": Times([3e-6 * tokens**1.5], [0.0])}, {"moec 8": (8, tokens)})
    assert exponent(rows, "moec 8") == pytest.approx(1.5)
