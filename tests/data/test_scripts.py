"""Cleaning in any script: what belongs to a letter stays with it and counts with it."""

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from moec_fairseq.data.cleaning import Pair, first_broken_rule, normalise, placeholders, tidy
from moec_fairseq.data.formats.text import normalise_space
from moec_fairseq.data.languages import default_coverage
from moec_fairseq.data.scripts import bare, length, letters, spaced
from moec_fairseq.data.splits import fingerprint

ZWNJ, ZWJ, LRM, RLM = "\u200c\u200d\u200e\u200f"
# letters, signs that make others of them, and what nobody sees but the script needs
SCRIPTS = {
    "Latin": ("abcdeéßø", "", ""),
    "Cyrillic": ("абвгдежйіў", "", ""),
    "Greek": ("αβγδέώ", "", ""),
    "Hebrew": ("אבגדהםש", "", LRM + RLM),
    "Arabic": ("ابتثجحپگیة", "", ZWNJ + LRM + RLM),
    "Devanagari": ("कखगघतनपमयरलह", "ािीुूेैोौंः्", ZWNJ + ZWJ),
    "Tamil": ("கஙசஞடணதநப", "ாிீுூெேைொோௌ்", ""),
    "Thai": ("กขคงจชดตนบปมยรลวส", "ัิีึืุู็่้๊๋์", ""),
    "Khmer": ("កខគឃងចឆជ", "ាិីឹឺុូំះ្", ""),
    "Hangul": ("가나다라한글말", "", ""),
    "Japanese": ("あいうかきアカ日本語", "", ""),
    "Chinese": ("我喜欢红色的大房子", "", ""),
}


def words(alphabet: str, signs: str, joiners: str) -> st.SearchStrategy[str]:
    """Return words whose letters may have a sign, or something invisible between them."""
    behind = st.sampled_from(["", *signs, *joiners])
    syllables = st.tuples(st.sampled_from(alphabet), behind).map("".join)
    return st.lists(syllables, min_size=1, max_size=6).map("".join)


TEXTS = st.sampled_from(sorted(SCRIPTS)).flatmap(
    lambda name: st.lists(words(*SCRIPTS[name]), min_size=1, max_size=6).map(" ".join)
)


@given(TEXTS)
def test_nothing_of_a_script_is_lost(text):
    composed = unicodedata.normalize("NFC", text)
    assert normalise(text) == composed == tidy(text)
    assert normalise_space(text) == text


@given(TEXTS)
def test_marks_and_joiners_count_with_their_letters(text):
    joined = text.replace(" ", "")
    assert all(char.isalpha() for char in bare(joined))
    wide = sum(2 * ("一" <= char <= "鿿") + ("가" <= char <= "힣") for char in joined)
    assert length(text) == len(bare(text)) + wide
    assert first_broken_rule(Pair("x" * length(text) + " x", text)) is None


@given(st.sampled_from([name for name, (_, signs, _) in SCRIPTS.items() if signs]), st.data())
def test_another_sign_is_another_sentence(name, data):
    alphabet, signs, joiners = SCRIPTS[name]
    text = data.draw(words(alphabet, signs, joiners)) + alphabet[0]
    one, other = data.draw(st.lists(st.sampled_from(signs), min_size=2, max_size=2, unique=True))
    assert len({fingerprint(text), fingerprint(text + one), fingerprint(text + other)}) == 3
    if joiners:
        assert fingerprint(text) == fingerprint(joiners.join(text)) == fingerprint(f"{text}!")


@given(TEXTS, st.sampled_from("\u0301\u0308\u0327"))
def test_an_accent_is_none(text, accent):
    assume("ß" not in text)  # of which fingerprints make ss
    assert letters(text + accent) == letters(text)


@pytest.mark.parametrize("pair", ["كِتَاب كتاب", "שָׁלוֹם שלום", "Ёлка елка", "naïve NAIVE", "أمل امل"])
def test_points_and_accents_may_be_left_out(pair):
    with_points, without = pair.split()
    assert fingerprint(with_points) == fingerprint(without)


@pytest.mark.parametrize("one, other", [
    ("कि", "की"), ("มา", "ม้า"), ("かき", "かぎ"), ("ক", "কি"), ("ကို", "ကူ"), ("하", "한"), ("பல", "பலா"),
])  # fmt: skip
def test_words_that_differ_in_a_sign(one, other):
    assert fingerprint(one) != fingerprint(other)


# "Please enter a valid email address.", with a placeholder behind it, as messages have it
MESSAGES = {
    "ru": "Введите корректный адрес электронной почты {name}.",
    "ar": "يُرجى إدخال عنوان بريد إلكتروني صحيح {name}.",
    "fa": "لطفاً یک نشانی ایمیل معتبر وارد کنید؛ نمی\u200cشود {name}.",
    "he": "נא להזין כתובת דוא״ל תקינה {name}.",
    "hi": "कृपया एक मान्य ईमेल पता दर्ज करें {name}।",
    "bn": "অনুগ্রহ করে একটি সঠিক ইমেল ঠিকানা লিখুন {name}।",
    "ta": "சரியான மின்னஞ்சல் முகவரியை உள்ளிடவும் {name}.",
    "th": "โปรดป้อนที่อยู่อีเมลที่ถูกต้อง{name}",
    "km": "សូមបញ្ចូលអាសយដ្ឋានអ៊ីមែលត្រឹមត្រូវ{name}",
    "zh": "请输入有效邮件地址{name}。",
    "ja": "有効なメールアドレスを入力してください{name}。",
    "ko": "올바른 이메일 주소를 입력하십시오 {name}.",
}


@pytest.mark.parametrize("language", MESSAGES)
def test_a_good_translation_stays(language):
    english = "Please enter a valid email address {name}."
    assert first_broken_rule(Pair(english, tidy(MESSAGES[language]))) is None
    assert first_broken_rule(Pair(tidy(MESSAGES[language]), english)) is None


@pytest.mark.parametrize("text, count", [
    ("我喜欢红色的大房子", 9), ("ภาษาไทย", 2), ("かな and カナ", 3), ("打开 file", 3), ("हिन्दी में", 2),
    ("zwei Wörter", 2),
])  # fmt: skip
def test_words_where_there_are_no_blanks(text, count):
    assert len(spaced(text).split()) == count


@pytest.mark.parametrize("target, rule", [
    ("房" * 80, None), ("房" * 81, "more than 80 tokens"), ("ก" * 320, None), ("ก" * 321, "more than 80 tokens"),
    ("房" * 12, None), ("房" * 11, "length ratio above 3"), ("가" * 18, None), ("가" * 17, "length ratio above 3"),
])  # fmt: skip
def test_length_where_there_are_no_blanks(target, rule):
    source = "x x " + "y" * (100 if len(target) < 100 else 300)
    broken = first_broken_rule(Pair(source, target))
    assert (broken and broken.name) == rule


def test_a_placeholder_needs_no_blank_behind_it():
    assert placeholders("第%1个，共%2个") == {"%1": 1, "%2": 1}


@pytest.mark.parametrize("text, expected", [
    ("他说：“你好！”（笑）", "他说：“你好！”（笑）"),
    ("これは「本」です…", "これは「本」です…"),
    ("مرحبا، يا «عالم»", 'مرحبا، يا "عالم"'),
    ("Hello， world！", "Hello， world!"),
    ("a、b：c", "a、b:c"),
    (f"{RLM}(שלום){RLM}", f"{RLM}(שלום){RLM}"),
    (f"{RLM}(shalom){LRM}", "(shalom)"),
])  # fmt: skip
def test_punctuation_of_a_script(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize("codes, share", [
    (("en", "de"), 1.0), (("en", "zh"), 0.9995), (("zh_CN", "en"), 0.9995), (("ja",), 0.9995), (("kor_Hang",), 0.9995),
    (("en", "th", "hi"), 1.0),
])  # fmt: skip
def test_the_coverage_of_characters(codes, share):
    assert default_coverage(codes) == share
