import hashlib
import io

from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.corpus.cleaning import Pair
from moec_fairseq.corpus.splits import SPLITS, Splitter, fingerprint, normalised, share_for, split_of

words = st.text(alphabet="abcdef", min_size=1, max_size=2)


def test_copies_share_a_key() -> None:
    copies = ["Delete %(n)d files", "delete 3 files!", "DELETE {count} FILES", "Délete files"]
    assert {normalised(text) for text in copies} == {"deletefiles"}
    assert normalised("12:30") == "12:30"


def test_the_fingerprint_is_stable() -> None:
    assert fingerprint("Delete 3 files") == int(hashlib.sha256(b"deletefiles").hexdigest()[:16], 16)


def test_share_of_each_split() -> None:
    assert share_for(50_000) == 0.02
    assert share_for(1_000) == share_for(0) == 0.05
    quarter = 2**62
    places = [split_of(place, 0.25) for place in (0, quarter - 1, quarter, 2 * quarter, 2**64 - 1)]
    assert places == ["valid", "valid", "test", "train", "train"]
    assert split_of(0, 0.25, held_out=()) == "train"


def split(pairs: list[Pair], share: float) -> tuple[dict[str, list[Pair]], Splitter]:
    splitter = Splitter(share)
    splitter.note(pairs)
    files = {name: (io.StringIO(), io.StringIO()) for name in SPLITS}
    splitter.write(pairs, files)
    texts = {name: [side.getvalue().splitlines() for side in sides] for name, sides in files.items()}
    return {name: [Pair(*pair) for pair in zip(*sides, strict=True)] for name, sides in texts.items()}, splitter


@given(st.lists(st.builds(Pair, words, words)), st.floats(0.01, 0.4))
def test_no_sentence_is_on_two_sides_and_none_is_lost(pairs: list[Pair], share: float) -> None:
    result, splitter = split(pairs, share)
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for side in ("source", "target"):
            keys = [{normalised(getattr(pair, side)) for pair in result[name]} for name in (one, other)]
            assert not keys[0] & keys[1]
    assert splitter.sizes.total() + splitter.drops.total() == len(pairs)
    for name in ("valid", "test"):
        assert len({normalised(pair.source) for pair in result[name]}) == len(result[name])


def test_a_shared_translation_stays_with_the_test_set() -> None:
    sources = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    result, splitter = split([Pair(source, "gleich") for source in sources], 0.2)
    assert not result["train"] and not result["valid"]
    assert result["test"]
    assert set(splitter.drops) == {
        "train: the translation is in valid or test",
        "valid: the translation is in test",
    }
