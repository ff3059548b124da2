"""Pairs in other languages, by the real py3langid."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moec_fairseq.data import identification
from moec_fairseq.data.corpora import choose_corpus
from moec_fairseq.data.identification import drop_other_languages, is_other, names_of

ENGLISH = "The bus to the old harbour leaves every twenty minutes from the square in front of the church."
GERMAN = "Der Bus zum alten Hafen fährt alle zwanzig Minuten auf dem Platz vor der Kirche ab."
FRENCH = "Le bus pour le vieux port part toutes les vingt minutes de la place devant l'église."
SHORT = "Anna, 12"
PAIRS = [
    (ENGLISH, GERMAN), (ENGLISH, FRENCH), (GERMAN, GERMAN), (SHORT, SHORT), ("1 + 1 = 2", "1 + 1"), (FRENCH, FRENCH),
]  # fmt: skip
KEPT = [0, 3, 4]  # of them

try:
    names_of("en")
except ValueError:
    there = False
else:
    there = True
needs_py3langid = pytest.mark.skipif(not there, reason="py3langid 0.4 is not installed")


@needs_py3langid
@pytest.mark.parametrize("code, text, other", [
    ("en", ENGLISH, False), ("en", GERMAN, True), ("de_AT", GERMAN, False), ("de", FRENCH, True), ("de", SHORT, False),
    ("zh-Hans", "我喜欢红色的大房子和小花园。", False), ("yue_Hant", "我喜歡紅色的大房子和小花園。", False),
    ("ja", "我喜欢红色的大房子和小花园。", True), ("th", "ฉันชอบบ้านหลังใหญ่สีแดงและสวนเล็กๆ", False),
    ("hi", "मुझे बड़ा लाल घर और छोटा बगीचा पसंद है।", False), ("en", "मुझे बड़ा लाल घर और छोटा बगीचा पसंद है।", True),
    ("ar", "أحب البيت الأحمر الكبير والحديقة الصغيرة.", False),
    ("nb", "Jeg liker det store røde huset og hagen.", False),
    ("de", "12:30 – 14:45 (3)", False), ("de", "", False),
])  # fmt: skip
def test_a_text_is_surely_in_another_language(code, text, other):
    assert is_other(text, names_of(code)) == other


def write(folder: Path, pairs: list[tuple[str, str]], name: str = "train") -> None:
    for language, side in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        (folder / f"{name}.{language}").write_text("".join(f"{line}\n" for line in side))


@needs_py3langid
def test_pairs_in_other_languages_go(tmp_path, monkeypatch):
    monkeypatch.setattr(identification, "CHUNK", 2)
    for name in ("train", "valid", "test"):
        write(tmp_path, PAIRS, name)
    before = {"train: kept": 6, "valid: kept": 6, "test: kept": 6, "train: why not": 1}
    with ThreadPoolExecutor(1) as pool:
        counts = drop_other_languages(tmp_path, "en", "de", before, pool, 2)
    for name, kept in {"train": KEPT, "valid": KEPT, "test": range(6)}.items():
        for side, language in enumerate(("en", "de")):
            assert (tmp_path / f"{name}.{language}").read_text().splitlines() == [PAIRS[n][side] for n in kept]
    lost = {"train: another language": 3, "valid: another language": 3, "train: kept": 3, "valid: kept": 3}
    assert counts == Counter(before | lost)


@needs_py3langid
def test_exchanged_sides_leave_nothing(tmp_path):
    write(tmp_path, [(GERMAN, ENGLISH)] * 3)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(ValueError, match="leaves nothing of train: .*; are the two side"),
    ):
        drop_other_languages(tmp_path, "en", "de", {}, pool, 2)
    assert (tmp_path / "train.en").read_text() == f"{GERMAN}\n" * 3


def corpus(folder: Path, **options):
    defaults = dict.fromkeys(("corpus", "source", "target", "sources", "targets")) | {"files": {}}
    prefixes = {name: str(folder / name) for name in ("train", "valid", "test")}
    others = {"recipes": Path(), "tier": "full", "distinct": False, "sampling_temperature": 1.0}
    return choose_corpus(**{**defaults, **others, "prefixes": prefixes, "identify_language": True, **options})


@needs_py3langid
@pytest.mark.parametrize("options, prefix, text", [({}, "", "train.en"), ({"targets": "de,nl"}, "de: ", "de/train.en")])
def test_they_are_counted_like_those_of_other_rules(tmp_path, options, prefix, text):
    for name in ("train", "valid", "test"):
        write(tmp_path, [(f"{one} {n}", f"{other} {n}") for n, (one, other) in enumerate(PAIRS)], name)
        (tmp_path / f"{name}.nl").write_text("Het boek dat daar op de tafel ligt, is van mijn broer.\n" * len(PAIRS))
    chosen, out = corpus(tmp_path, **options), tmp_path / "out"
    assert chosen.settings != corpus(tmp_path, **options, identify_language=False).settings
    with ThreadPoolExecutor(1) as pool:
        counts = chosen.write(tmp_path, out, pool, 2)
    assert counts[f"train: {prefix}another language"] == 3 and counts[f"test: {prefix}another language"] == 0
    assert len((out / text).read_text().splitlines()) == 3


@needs_py3langid
@pytest.mark.parametrize("options", [{"target": "tlh"}, {"targets": "de,tlh"}])
def test_a_language_that_is_not_known(tmp_path, options):
    for name in ("train", "valid", "test"):
        write(tmp_path, PAIRS, name)
        (tmp_path / f"{name}.tlh").write_text("nuqneH\n" * len(PAIRS))
    with pytest.raises(ValueError, match="^--identify-language cannot be used for tlh, which py3langid does not know"):
        corpus(tmp_path, **options)


@pytest.mark.parametrize("package", [None, object()])  # none, and an older one
def test_without_py3langid(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", package)
    identification._identifier.cache_clear()
    with pytest.raises(ValueError, match=r'0\.4 or later; install it with: pip install --no-deps "py3langid>=0\.4"$'):
        names_of("en")
