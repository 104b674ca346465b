"""Which of two classes is the negative one, by their names alone."""

from __future__ import annotations

import re

__all__ = ["is_negative", "negative_of"]

_NAMES = frozenset({
    "normal", "negative", "neg", "no", "none", "nil", "healthy", "benign", "control", "controls", "healthy control",
    "healthy controls", "normal control", "normal controls", "absent", "wildtype", "wild type", "no finding",
    "no findings", "uninfected", "unaffected", "unremarkable", "0",
})  # fmt: skip
"""What names a negative class whatever the other one is."""

_LEADING = frozenset({"no", "not", "without", "negative", "neg", "absent", "absence"})
_GLUED = ("non", "not", "no", "un", "in")
_SIGN = re.compile(r"([+\-\u2212\u2013])$")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# After "no" or "not", what says that the class is not known, or a kind of its own.
_UNKNOWN = frozenset({
    "applicable", "assessed", "available", "done", "evaluable", "known", "otherwise", "reported", "special",
    "specified", "sure",
})  # fmt: skip
# Words that a prefix turns into the worse of two: "unstable" is rather the finding.
_WORSE = frozenset({
    "competent", "complete", "continent", "controlled", "differentiated", "resectable", "responsive", "stable",
    "sufficient", "tolerant", "united",
})  # fmt: skip


def is_negative(name: str) -> bool:
    """Return whether a name is that of a negative class whatever the other classes are.

    >>> is_negative("No_Finding"), is_negative("Edema")
    (True, False)
    """
    return " ".join(_words(name)) in _NAMES


def negative_of(one: str, other: str) -> str | None:
    """Return the negative one of two classes, or ``None`` where their names do not say.

    >>> negative_of("Edema", "No Edema"), negative_of("infected", "uninfected"), negative_of("cat", "dog")
    ('No Edema', 'uninfected', None)
    """
    own, others, shared = _apart(_words(one), _words(other))
    if " ".join(shared) in _NAMES and not (own and others):  # a negation of what is negative: "benign", "non-benign"
        return one if others else other
    first, second = _is(one, own, others), _is(other, others, own)
    return None if first == second else one if first else other


def _is(name: str, own: list[str], others: list[str]) -> bool:
    """Return whether a name is negative, given the words that only it has and those that only the other one has."""
    if is_negative(name) or " ".join(own) in _NAMES:
        return True
    rest = "".join(others)
    if rest and rest not in _NAMES | _WORSE and "".join(own) in [prefix + rest for prefix in _GLUED] + [rest + "free"]:
        return True
    if not own or own == ["n"]:
        return own == ["n"] and others in (["y"], ["p"])
    return own == ["non"] or own[-1] == "free" or (own[0] in _LEADING and not _UNKNOWN & set(own[1:2]))


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters; a sign at its end is the word that it stands for.

    >>> _words("nonCOVID"), _words("HER2-"), _words("w/o effusion")
    (['non', 'covid'], ['her2', 'negative'], ['without', 'effusion'])
    """
    text = _SIGN.sub(lambda sign: " positive" if sign[0] == "+" else " negative", name.strip())
    text = _CAMEL.sub(" ", text).casefold().replace("w/o", "without")
    return [word for word in re.split(r"[\W_]+", text) if word]


def _apart(one: list[str], other: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the words of each without those that both begin or end with, and the latter.

    >>> _apart(["her2", "negative"], ["her2", "positive"])
    (['negative'], ['positive'], ['her2'])
    """
    least = min(len(one), len(other))
    head = next((i for i in range(least) if one[i] != other[i]), least)
    tail = next((i for i in range(least - head) if one[-1 - i] != other[-1 - i]), least - head)
    return one[head : len(one) - tail], other[head : len(other) - tail], one[:head] + one[len(one) - tail :]
