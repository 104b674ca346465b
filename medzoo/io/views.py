"""DICOM's view positions: what a written view means, and which of its words are terms rather than free text."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["OTHER_VIEW", "view_positions", "view_words"]

OTHER_VIEW = "other"
"""The view of a file whose own text holds no known word."""

# PS3.3 C.8.7.1.1.1 and C.8.3.1.2, mammography's views, and longer forms. A lateral of unknown side may be either.
_VIEWS = {
    **{code: {code} for code in ("AP", "PA", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LPO", "RPO", "LAO", "RAO")},
    **{code: {code} for code in ("CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM", "SIO", "FB", "AX", "OBL")},
    "POSTEROANTERIOR": {"PA"}, "POSTERIORANTERIOR": {"PA"}, "POSTERIOANTERIOR": {"PA"},
    "ANTEROPOSTERIOR": {"AP"}, "ANTERIORPOSTERIOR": {"AP"}, "ANTERIOPOSTERIOR": {"AP"},
    "FRONTAL": {"AP", "PA"}, "LATERAL": {"LL", "RL"}, "LAT": {"LL", "RL"}, "LATERO": {"LL", "RL"},
    "LEFTLATERAL": {"LL"}, "RIGHTLATERAL": {"RL"}, "LLAT": {"LL"}, "RLAT": {"RL"}, "LEFTLAT": {"LL"},
    "RIGHTLAT": {"RL"}, "LATERALLEFT": {"LL"}, "LATERALRIGHT": {"RL"}, "LATERALDECUBITUS": {"LLD", "RLD"},
    "LEFTLATERALDECUBITUS": {"LLD"}, "RIGHTLATERALDECUBITUS": {"RLD"}, "DECUBITUS": {"LLD", "RLD"},
    "LEFTANTERIOROBLIQUE": {"LAO"}, "RIGHTANTERIOROBLIQUE": {"RAO"}, "LEFTPOSTERIOROBLIQUE": {"LPO"},
    "RIGHTPOSTERIOROBLIQUE": {"RPO"}, "OBLIQUE": {"OBL", "LLO", "RLO", "LPO", "RPO", "LAO", "RAO"},
    "AXIAL": {"AX"}, "PAERECT": {"PA"}, "APSUPINE": {"AP"},
}  # fmt: skip

# Words beside a view that do not change it.
_BESIDE = frozenset({
    "BEDSIDE", "CHEST", "ERECT", "EXPIRATION", "INSPIRATION", "LORDOTIC", "MOBILE", "PORTABLE", "PRONE", "SEATED",
    "SEMIERECT", "SITTING", "STANDING", "SUPINE", "THORAX", "UPRIGHT", "VIEW",
})  # fmt: skip


def view_positions(term: str) -> frozenset[str]:
    """Return the view positions that a term may mean; empty if it has no known word, or words for different views.

    The order of the words does not matter.

    >>> sorted(view_positions("POSTERO_ANTERIOR")), sorted(view_positions("AP SUPINE")), sorted(view_positions("LAT"))
    (['PA'], ['AP'], ['LL', 'RL'])
    >>> view_positions("PA LAT") == view_positions("LAT PA") == view_positions("MILLER") == frozenset()
    True
    """
    known = [frozenset(_VIEWS[run]) for _, run in _known_runs(term) if run in _VIEWS]
    return frozenset.intersection(*known) if known else frozenset()


def view_words(term: str) -> str:
    """Return the known words of a term in capitals; ``"other"`` if there is none, ``""`` for an empty term.

    What is left out may be a name.

    >>> view_words("ap supine"), view_words("DOE^JOHN PA"), view_words("DOE^JOHN")
    ('AP SUPINE', 'PA', 'other')
    """
    return " ".join(words for words, _ in _known_runs(term)) or (OTHER_VIEW if term.strip() else "")


def _known_runs(term: str) -> Iterator[tuple[str, str]]:
    """Yield the known runs of up to three words, the longest first, as written and as one word."""
    words = re.findall(r"[^\W\d_]+", term.upper())
    at = 0
    while at < len(words):
        for count in (3, 2, 1):
            written = words[at : at + count]
            if (run := "".join(written)) in _VIEWS or run in _BESIDE:
                yield " ".join(written), run
                break
        at += count
