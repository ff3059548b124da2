import pytest

from moec_fairseq.corpus.cleaning import RULES, Pair, first_broken_rule, tidy
from moec_fairseq.corpus.placeholders import placeholders, without_placeholders


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
