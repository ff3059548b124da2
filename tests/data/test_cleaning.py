import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.data.cleaning import (
    RULES,
    Limits,
    Pair,
    first_broken_rule,
    normalise,
    placeholders,
    tidy,
    without_placeholders,
)


@pytest.mark.parametrize(
    ("raw", "tidied"),
    [
        ("&File", "File"),
        ("E&xit", "Exit"),
        ("Save &as", "Save as"),
        ("R&D and Q&A", "R&D and Q&A"),
        ("one&nbsp;word", "one&nbsp;word"),
        ("Bang & Olufsen", "Bang & Olufsen"),
        ("Gru\u0308ße\n\nan  alle", "Grüße an alle"),
        ("read _and_ write", "read _and_ write"),
    ],
)
def test_tidy(raw: str, tidied: str) -> None:
    assert tidy(raw) == tidied


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("%(name)s has %d files", {"%(name)s": 1, "%d": 1}),
        ("{} and {} or {0!r}", {"{}": 2, "{0!r}": 1}),
        ("{{ user }} and ${total}", {"{{ user }}": 1, "${total}": 1}),
        ("%1$s %(price).2f", {"%1$s": 1, "%(price).2f": 1}),
        ("100% sure, 5 % of all", {}),
    ],
)
def test_placeholders(text: str, found: dict[str, int]) -> None:
    assert placeholders(text) == found


def test_placeholders_leave_a_space() -> None:
    assert without_placeholders("a{b}c").split() == ["a", "c"]


@pytest.mark.parametrize(
    ("source", "target", "rule"),
    [
        ("The file is open", "", "empty"),
        ("Body Text", "body text", "untranslated"),
        ("A <b>bold</b> word", "Ein fettes Wort", "html"),
        ("One &nbsp; word", "Ein Wort", "html"),
        ("A **bold** word", "Ein fettes Wort", "markdown"),
        ("See [the page](x)", "Siehe Seite", "markdown"),
        ("See http://example.org now", "Siehe dort nach", "url"),
        ("Write to me@example.org now", "Schreibe mir jetzt", "url"),
        ("Delete {count} files", "Lösche {number} Dateien", "placeholders differ"),
        ("Open a brace {", "Öffne eine Klammer {", "placeholders differ"),
        ("{name} files", "{name} Dateien", "fewer than 2 words"),
        ("word " * 81, "Wort " * 81, "more than 80 tokens"),
        ("Do it now, please do it now", "Mach es", "length ratio above 3"),
        ("Born on 2026-11-23 12:00", "Geboren am 2026-11-23 12:00", "less than 70% letters"),
        ("Delete {count} files", "Lösche {count} Dateien", None),
        ("Battery state of charge", "Batterieladezustand", None),
    ],
)
def test_rules(source: str, target: str, rule: str | None) -> None:
    broken = first_broken_rule(Pair(tidy(source), tidy(target)))
    assert (broken.name if broken else None) == rule


def test_rule_names_are_distinct() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("text, expected", [
    ("plain  text ", "plain text"),
    ("„Haus“ – it’s «new»…", '"Haus" - it\'s "new"...'),
    ("a—b", "a - b"),
    ("u\u0308ber", "über"),
    ("u\u00ad\u0308ber", "über"),
    ("a\u2028b\u00a0c\td", "a b c d"),
    ("`quoted´", "'quoted'"),
])  # fmt: skip
def test_normalise(text, expected):
    assert normalise(text) == expected


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    once = normalise(text)
    assert normalise(once) == once and "\n" not in once


@pytest.mark.parametrize("source, target, rule", [
    (1, 1, None), (250, 250, None), (2, 3, None), (3, 2, None),
    (0, 1, "a side without subwords"), (251, 250, "more than 250 subwords"), (2, 4, "length ratio above 1.5"),
])  # fmt: skip
def test_limits(source, target, rule):
    assert Limits(250, 1.5).broken(source, target) == rule
