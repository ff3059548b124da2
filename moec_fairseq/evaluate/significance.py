"""Whether a difference between two systems is more than chance: paired bootstrap resampling (Koehn, 2004)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sacrebleu.significance import PairedTest

from moec_fairseq.corpus.metrics import Metrics, References

SAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A score, and half of its 95 % confidence interval."""

    score: float
    margin: float

    @classmethod
    def of(cls, result: Any) -> "Estimate":
        """Return what sacreBLEU has found for a system."""
        return cls(round(float(result.score), 2), round(float(result.ci), 2))


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same sentences.

    Attributes:
        ours: of the system that is evaluated.
        other: of the system that it is compared with.
        p_value: of the difference.
        signature: says how to get the same numbers again.
    """

    ours: Estimate
    other: Estimate
    p_value: float
    signature: str


def compare(
    hypotheses: Sequence[str], other: Sequence[str], references: References, chosen: Metrics
) -> dict[str, Comparison]:
    """Compare the translations of two systems by each metric."""
    systems: list[tuple[str, Sequence[str]]] = [("other", other), ("ours", hypotheses)]
    test = PairedTest(systems, {name: make() for name, make in chosen.items()}, references, "bs", SAMPLES)
    signatures, results = test()
    comparisons = {}
    found: dict[str, Any] = results  # of both systems, in their order
    for name, full_name in zip(chosen, signatures, strict=True):  # such as chrF, chrF2
        theirs, ours = (Estimate.of(result) for result in found[full_name])
        # sacreBLEU counts resamples that differ by more, of which there are none where nothing differs
        p_value = 1.0 if ours == theirs else round(float(found[full_name][1].p_value), 4)
        comparisons[name] = Comparison(ours, theirs, p_value, str(signatures[full_name]))
    return comparisons
