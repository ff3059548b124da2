from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moec_fairseq.data import messages, splits
from moec_fairseq.data.cleaning import Pair
from moec_fairseq.data.corpora import choose_corpus
from moec_fairseq.data.languages import SPLITS
from moec_fairseq.data.messages import write_messages
from moec_fairseq.data.multilingual import MANY, Languages, read_languages, sampled_sizes, write_together
from moec_fairseq.data.splits import normalised

INTO_MANY = Languages("en", MANY, ("de", "fr"))
FROM_MANY = Languages(MANY, "en", ("de", "fr"))


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_directions():
    assert read_languages(None, None, "en", "de") is None
    assert read_languages(None, "de,fr", None, None) == INTO_MANY and INTO_MANY.tags == ("<2de>", "<2fr>")
    assert read_languages("de,fr", None, None, None) == FROM_MANY and FROM_MANY.tags == ("<2en>",)
    assert read_languages("de,pt-BR", None, None, "nl").direction("pt-BR") == ("pt-BR", "nl")
    assert INTO_MANY.choose(None, None) == [("en", "de"), ("en", "fr")] == INTO_MANY.choose("en", None)
    assert INTO_MANY.choose(None, "fr") == [("en", "fr")] and FROM_MANY.choose("fr", None) == [("fr", "en")]
    with pytest.raises(ValueError, match=r"^the model translates en to de, fr, but not en to es$"):
        INTO_MANY.choose(None, "es")
    with pytest.raises(ValueError, match=r"^the model translates de, fr to en, but not en to en$"):
        FROM_MANY.choose("en", None)


sizes = st.dictionaries(st.sampled_from(["de", "fr", "es", "nl"]), st.integers(1, 10**6), min_size=1)


@given(sizes, st.floats(1, 100))
def test_shares_are_in_proportion_to_a_power(sizes, temperature):
    sampled = sampled_sizes(sizes, temperature)
    largest = max(sizes, key=sizes.__getitem__)
    assert sampled[largest] == sizes[largest] and all(sampled[language] >= sizes[language] for language in sizes)
    for language, size in sizes.items():
        expected = size ** (1 / temperature) / sizes[largest] ** (1 / temperature)
        assert sampled[language] == pytest.approx(sizes[largest] * expected, abs=0.51)
    assert sampled_sizes(sizes, 1) == sizes and set(sampled_sizes(sizes, float("inf")).values()) == {sizes[largest]}


def write(folder: Path, languages: Languages) -> dict[str, Counter[str]]:
    """Write 8 training pairs of German and 2 of French, and one of each elsewhere."""
    for language, size in {"de": 8, "fr": 2}.items():
        (folder / language).mkdir()
        for split, count in {"train": size, "valid": 1, "test": 1}.items():
            for side in (languages.one, language):
                text = "".join(f"{split} {side} {n}\n" for n in range(count))
                (folder / language / f"{split}.{side}").write_text(text)
    kept = {"train: why not": 3, "valid: kept": 1, "test: kept": 1}
    return {"de": Counter({"train: kept": 8, **kept}), "fr": Counter({"train: kept": 2, **kept})}


@pytest.mark.parametrize("temperature, times", [(1, [1, 1]), (2, [2, 2]), (3, [2, 3])])
def test_small_languages_are_repeated(tmp_path, temperature, times):
    counts = write_together(INTO_MANY, temperature, tmp_path, write(tmp_path, INTO_MANY))
    expected = {"de": [1] * 8, "fr": times}  # 8 (2/8)^(1/T) pairs of French: 2, 4, 5
    pairs = [(code, n) for code, often in expected.items() for n, count in enumerate(often) for _ in range(count)]
    assert read(tmp_path / "train.en") == [f"<2{code}> train en {n}" for code, n in pairs]
    assert read(tmp_path / "train.mul") == [f"train {code} {n}" for code, n in pairs]
    assert (counts["train: de: pairs"], counts["train: fr: pairs"], counts["train: fr: why not"]) == (8, 2, 3)
    assert (counts["train: de: repeated"], counts["train: fr: repeated"]) == (0, sum(times) - 2)


def test_from_many_languages_and_each_alone(tmp_path):
    write_together(FROM_MANY, 5, tmp_path, write(tmp_path, FROM_MANY))
    for split in ("valid", "test"):
        assert read(tmp_path / f"{split}.mul") == [f"<2en> {split} de 0", f"<2en> {split} fr 0"]
        assert read(tmp_path / f"{split}.en") == [f"{split} en 0"] * 2
        for language in ("de", "fr"):
            assert read(tmp_path / f"{split}-{language}.mul") == [f"<2en> {split} {language} 0"]
            assert read(tmp_path / f"{split}-{language}.en") == [f"{split} en 0"]
    assert not list(tmp_path.glob("train-*"))


words = st.text("abcdefgh", min_size=4, max_size=4)


@settings(max_examples=15, deadline=None)
@given(st.lists(words, min_size=150, max_size=150, unique=True), st.randoms(use_true_random=False))
def test_what_is_held_out_in_one_language_is_held_out_in_all(tmp_path_factory, english, chance):
    covered = {"de": english, "fr": chance.sample(english, 80), "nl": chance.sample(english, 50)}
    pairs = {code: [Pair(chance.choice([text, text.upper()]), f"{code}{text}") for text in texts]
             for code, texts in covered.items()}  # fmt: skip
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "HELD_OUT_SIZE", 15)  # so that the share depends on the size, as that of a large corpus
        patch.setattr(splits, "MAX_SHARE", 0.4)
        patch.setattr(messages, "_collect", lambda _, code: (pairs[code], {}))
        counts = write_messages({}, "en", {code: out / code for code in pairs})
    found = {split: {normalised(text) for code in pairs for text in read(out / code / f"{split}.en")}
             for split in SPLITS}  # fmt: skip
    assert not found["train"] & found["valid"] and not found["train"] & found["test"]
    assert not found["valid"] & found["test"] and set.union(*found.values()) == set(english)
    for code, texts in covered.items():
        assert counts[code] == Counter({f"{split}: kept": len(read(out / code / f"{split}.en")) for split in SPLITS})
        assert counts[code].total() == len(texts)


@pytest.mark.parametrize("options, sentence", [
    ({"targets": "de,de"}, "--targets names de more than once"),
    ({"targets": "de"}, "--targets is de; give two languages or more, such as de,fr, or use --target"),
    ({"targets": "de,fr", "target": "de"}, "--targets and --target were both given; give one of them"),
    ({"sources": "de,fr", "source": "de"}, "--sources and --source were both given; give one of them"),
    ({"targets": "de,fr", "sources": "de,fr"}, "--sources and --targets were both given; one model has many"),
    ({"targets": "de,fr", "source": "fr"}, "source and target are both 'fr'"),
    ({"targets": "de,"}, "language '' is not a language code"),
    ({"targets": "de,mul"}, "mul is the name of all languages together"),
    ({"targets": "de,fr", "source": "nl"}, "--source is nl, but the messages are in English; give en"),
    ({"sources": "de,fr", "target": "nl"}, "--target is nl, but the messages are in English; give en"),
    ({"targets": "de,fr", "corpus": "wmt14_en_de"}, "are for quickstart and your own text; a recipe has a single"),
    ({"targets": "de,fr", "sampling_temperature": 0.5}, "--sampling-temperature is 0.5, but must be 1"),
    ({"targets": "de,fr", "sampling_temperature": float("nan")}, "--sampling-temperature is nan, but must be 1"),
    ({"sampling_temperature": 5.0}, "--sampling-temperature is for several languages; give --targets or --sources"),
])  # fmt: skip
def test_bad_input_is_one_sentence(options, sentence):
    defaults = dict.fromkeys(("source", "target", "sources", "targets"))
    defaults |= {
        "corpus": "quickstart",
        "recipes": Path(),
        "prefixes": {},
        "files": {},
        "tier": "small",
        "distinct": False,
    }
    with pytest.raises(ValueError, match=sentence) as error:
        choose_corpus(**defaults | {"sampling_temperature": 1.0} | options)
    assert "\n" not in str(error.value)
