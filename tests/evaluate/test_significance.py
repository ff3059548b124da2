import logging

from moec_fairseq.corpus.metrics import metrics
from moec_fairseq.evaluate.significance import compare

REFERENCES = [f"the {animal} number {n} sat on the old mat" for n in range(20) for animal in ("cat", "dog")]
CHOSEN = {name: make for name, make in metrics("en", False).items() if name != "TER"}


def test_a_system_against_itself(caplog):
    caplog.set_level(logging.ERROR)
    worse = [line.replace("old", "new") for line in REFERENCES]
    found = compare(worse, worse, [REFERENCES], CHOSEN)
    assert list(found) == ["BLEU", "chrF"]
    for comparison in found.values():
        assert comparison.ours == comparison.other and comparison.p_value > 0.9
        assert "bs:1000" in comparison.signature and "seed:12345" in comparison.signature


def test_a_clear_difference():
    worse = [line.replace("old", "new") for line in REFERENCES]
    found = compare(REFERENCES, worse, [REFERENCES], CHOSEN)["BLEU"]
    assert found.ours.score == 100.0 and found.ours.margin == 0.0
    assert found.other.score < 80 and found.p_value < 0.01
