"""Make the quickstart corpus: read the wheels' catalogs, clean them, and split the pairs."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from moec_fairseq.corpus.catalogs import read_wheel
from moec_fairseq.corpus.cleaning import RULES, Pair, first_broken_rule, tidy
from moec_fairseq.corpus.fetch import WHEELS_LIST
from moec_fairseq.corpus.languages import check_languages
from moec_fairseq.corpus.pins import Pin, find_wheels, read_pins
from moec_fairseq.corpus.splits import Splitter, fingerprint, share_for, write_corpus

REPEATED = "repeated source"


def build(wheels: Path, tier: str, source: str, target: str, out: Path) -> None:
    """Write {train,valid,test}.{source,target} and report.json into `out`; the same wheels give the same bytes."""
    check_languages(source, target)
    if source != "en":
        raise ValueError(f"source {source!r} is not possible: the messages in the wheels are English; use en")
    pairs, counts = _collect(_present_wheels(wheels, tier), target)
    if not pairs:
        raise ValueError(f"the wheels hold no translations into {target!r}; well covered are de, es, fr and nl")
    _print_counts(counts)
    about = {"tier": tier, "distinct pairs": len(pairs), "packages": counts}
    sources = {fingerprint(pair.source) for pair in pairs}
    write_corpus(lambda: pairs, Splitter(share_for(len(sources))), source, target, out, about)


def _present_wheels(folder: Path, tier: str) -> dict[Pin, Path]:
    if not (folder / WHEELS_LIST).is_file():
        raise ValueError(f"{folder} holds no wheels yet; run the command fetch with --out {folder} first")
    pins = read_pins(folder / WHEELS_LIST, tier)
    wheels = find_wheels(folder, pins)
    if missing := [pin.name for pin in pins if pin not in wheels]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of the {len(pins)} wheels of tier {tier!r} ({', '.join(missing)});"
            f" run the command fetch with --tier {tier} again"
        )
    return {pin: wheels[pin] for pin in pins}


def _collect(wheels: Mapping[Pin, Path], target: str) -> tuple[list[Pair], dict[str, Counter[str]]]:
    """Return the good pairs, distinct by lower-cased source, and for each package what became of its messages."""
    pairs: dict[str, Pair] = {}
    counts: dict[str, Counter[str]] = {}
    with tqdm(wheels.items(), desc="clean", unit="wheel") as bar:
        for pin, wheel in bar:
            bar.set_postfix_str(pin.name)
            count = counts.setdefault(pin.name, Counter())
            for raw in read_wheel(wheel, target):
                pair = Pair(tidy(raw.source), tidy(raw.target))
                rule = first_broken_rule(pair)
                key = pair.source.lower()
                fate = rule.name if rule else REPEATED if key in pairs else "kept"
                count[fate] += 1
                if fate == "kept":
                    pairs[key] = pair
    return list(pairs.values()), counts


def _print_counts(counts: Mapping[str, Counter[str]]) -> None:
    print(f"\n{'package':24}{'messages':>10}{'kept':>10}")
    for name, count in counts.items():
        print(f"{name:24}{count.total():10}{count['kept']:10}")
    total = sum(counts.values(), Counter[str]())
    print(f"{'all':24}{total.total():10}{total['kept']:10}\n\n{'dropped because':24}{'messages':>10}")
    for reason in (*(rule.name for rule in RULES), REPEATED):
        print(f"{reason:24}{total[reason]:10}")
    print()
