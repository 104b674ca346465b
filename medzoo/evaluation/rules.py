"""Rules that choose a threshold: their texts, and the cut between scores that each takes.

Axes: k cuts, from the lowest threshold up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medzoo.errors import ConfigError, did_you_mean

__all__ = ["KNOWN", "Rule", "rule_from_text", "rule_text", "rules_for"]

Array = NDArray[np.float64]
KNOWN = ("fixed 0.5", "youden", "sensitivity>=0.95", "specificity>=0.9", "f1", "cost fn:fp=5")
OTHERS = ("", "*")
NUMBER = r"((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)"
PATTERNS = {
    "fixed": rf"(?:fixed)?{NUMBER}",
    "Youden": r"youden",
    "sensitivity": rf"sensitivity>={NUMBER}",
    "specificity": rf"specificity>={NUMBER}",
    "F1": r"f1",
    "cost": rf"costfn:fp={NUMBER}",
}


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen.

    Attributes:
        kind: ``"fixed"``, ``"Youden"``, ``"sensitivity"``, ``"specificity"``, ``"F1"`` or ``"cost"``.
        value: the threshold, the rate to reach, or the cost of a missed positive in false alarms; 0 for none.
    """

    kind: str
    value: float = 0.0

    @classmethod
    def parse(cls, text: str | float) -> Rule:
        """Return the rule of a text, in which case and spaces do not count.

        Raises:
            ConfigError: there is no such rule.

        >>> Rule.parse("Sensitivity >= 0.95")
        Rule(kind='sensitivity', value=0.95)
        """
        given = f"{text:.15g}" if isinstance(text, (int, float)) and not isinstance(text, bool) else text
        plain = re.sub(r"\s+", "", given).lower() if isinstance(given, str) else ""
        for kind, pattern in PATTERNS.items():
            if found := re.fullmatch(pattern, plain):
                rule = cls(kind, float(found[1]) if found.groups() else 0.0)
                rule._check(text)
                return rule
        raise ConfigError(
            f"thresholds: no rule {text!r}.{did_you_mean(str(text).lower(), KNOWN)} Rules are "
            f"{', '.join(map(repr, KNOWN))}, with other numbers too."
        )

    def _check(self, text: object) -> None:
        if self.kind == "fixed" and not 1e-30 < self.value < 1 - 2**-24:
            raise ConfigError(f"thresholds: expected a fixed threshold between 0 and 1, got {text!r}.")
        if self.kind in ("sensitivity", "specificity") and not 0 < self.value <= 1:
            raise ConfigError(f"thresholds: expected a {self.kind} above 0 and up to 1, got {text!r}.")
        if self.kind == "cost" and not 0 < self.value < np.inf:
            raise ConfigError(
                f"thresholds: expected the cost of a missed positive in false alarms, above 0 and finite, got {text!r}."
            )

    def __str__(self) -> str:
        """Return the rule as :meth:`parse` reads it.

        >>> print(Rule("cost", 5), Rule("specificity", 0.9), Rule("fixed", 0.5), sep=", ")
        cost fn:fp = 5, specificity >= 0.9, fixed 0.5
        """
        number = f"{self.value:.15g}"
        texts = {"fixed": f"fixed {number}", "cost": f"cost fn:fp = {number}"}
        return texts.get(self.kind, f"{self.kind} >= {number}" if self.value else self.kind)

    @property
    def weighs(self) -> bool:
        """Whether the best cut depends on the share of positives."""
        return self.kind in ("F1", "cost")

    def best(
        self, tp: Array, fp: Array, positives: float, negatives: float, share: float | None = None
    ) -> NDArray[np.bool_]:
        """Return which cuts ``k`` are best; none if none reaches what is asked for.

        Args:
            tp: true positives of each cut, ``k``.
            fp: false positives of each cut, ``k``.
            positives: positive rows.
            negatives: negative rows.
            share: of positives where the threshold is to be the best; ``None`` is that of the rows.
        """
        sensitivity, specificity = tp / positives, 1 - fp / negatives
        if self.kind in ("sensitivity", "specificity"):
            reached = (sensitivity if self.kind == "sensitivity" else specificity) >= self.value - 1e-12
            places = np.flatnonzero(reached)
            found = np.zeros(len(tp), bool)
            found[places[-1:] if self.kind == "sensitivity" else places[:1]] = True
            return found
        if share is not None:
            rows = positives + negatives
            more, less = share * rows / positives, (1 - share) * rows / negatives
            tp, fp, positives = tp * more, fp * less, positives * more
        aim = {
            "Youden": sensitivity + specificity,
            "F1": 2 * tp / (tp + fp + positives),
            "cost": -(self.value * (positives - tp) + fp),
        }[self.kind]
        return np.asarray(aim >= aim.max(initial=-np.inf) - 1e-12 * max(1.0, np.abs(aim).max(initial=0.0)))


def rules_for(labels: Sequence[str], rule: str | float | Mapping[str, str]) -> tuple[Rule, ...]:
    """Return the rule of each label, of one rule for all or of a mapping with ``"*"`` or ``""`` for the others.

    Raises:
        ConfigError: a label that there is not, a label without a rule, or a rule that there is not.
    """
    if not isinstance(rule, Mapping):
        return (Rule.parse(rule),) * len(labels)
    for name in rule:
        if name not in labels and name not in OTHERS:
            raise ConfigError(
                f"thresholds: there is no label {name!r}.{did_you_mean(str(name), labels)} There are "
                f"{', '.join(labels)}; '*' stands for the others."
            )
    others = next((rule[name] for name in OTHERS if name in rule), None)
    chosen = [rule.get(label, others) for label in labels]
    for label, one in zip(labels, chosen, strict=True):
        if one is None:
            raise ConfigError(f"thresholds: expected a rule for each label, got none for {label!r}. Add '*': 'youden'.")
    return tuple(Rule.parse(one) for one in chosen if one is not None)


def rule_text(labels: Sequence[str], rules: Sequence[Rule]) -> str:
    """Return the rules of all labels in one line."""
    if len(set(rules)) <= 1:
        return str(rules[0]) if rules else ""
    return "; ".join(f"{label}: {rule}" for label, rule in zip(labels, rules, strict=True))


def rule_from_text(labels: Sequence[str], text: str) -> str | dict[str, str] | None:
    """Return the rule or rules that :func:`rule_text` wrote for these labels, or ``None`` if it is other text.

    >>> rule_from_text(("a", "b"), "a: Youden; b: F1")
    {'a': 'Youden', 'b': 'F1'}
    """
    parts = text.split("; ")
    found = {label: part.removeprefix(f"{label}: ") for label, part in zip(labels, parts, strict=False)}
    rule = text if len(parts) == 1 else found
    try:
        rules_for(labels, rule)
    except ConfigError:
        return None
    return rule
