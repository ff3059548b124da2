"""Placeholders in messages: the parts that a program fills in, such as `%(name)s`, `%d`, `{count}` or `{{ user }}`."""

import re
from collections import Counter

# After a digit, "%" is a per cent sign ("100%d" does not occur, "100%" and "5 % of" do).
PLACEHOLDER = re.compile(
    r"""
    %\(\w+\)[-#0+]*\d*(?:\.\d+)?[a-zA-Z]            # %(name)s  %(price).2f
    | (?<!\d)%(?:\d+\$)?[-#0+]*\d*(?:\.\d+)?[sdifgrxXc]  # %s  %d  %1$s  %.2f
    | (?<!\d)%[1-9]\b                               # %1 (Qt)
    | \$?\{\{?[^{}]*\}\}?                           # {}  {0}  {name!r}  {{ name }}  ${name}
    """,
    re.VERBOSE,
)


def placeholders(text: str) -> Counter[str]:
    """Return the placeholders of `text`, each with how often it occurs."""
    return Counter(PLACEHOLDER.findall(text))


def without_placeholders(text: str) -> str:
    """Return `text` with a space in the place of each placeholder."""
    return PLACEHOLDER.sub(" ", text)
