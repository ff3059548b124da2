import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.prepare.cleaning import Limits, normalise


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
    (0, 1, "a side without pieces"), (251, 250, "more than 250 pieces"), (2, 4, "length ratio above 1.5"),
])  # fmt: skip
def test_limits(source, target, rule):
    assert Limits().broken(source, target) == rule
