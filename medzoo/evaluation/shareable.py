"""What may leave the place where it was made: texts without paths and without names of images and patients."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from medzoo.evaluation.scores import Scores

__all__ = ["Redactor", "map_texts", "shareable"]

_T = TypeVar("_T")
_SCHEME = r"(?:file|s3|gs|az|abfss?|hdfs|dbfs|sftp|ssh|smb)://"
_BEGIN = rf"(?:{_SCHEME}|[A-Za-z]:[\\/]|\\\\|~[\w.-]*/|/)"
_BEFORE = r"(?<![\w./\\<>*~])"  # what a path does not begin after
_PLAIN = re.compile(rf"{_BEFORE}{_BEGIN}[^\s'\"`’”,;<>|)\]}}]*[^\s'\"`’”,;:<>|)\]}}.!?]")
_TYPES = (
    r"(?:csv|tsv|parquet|npz|npy|jsonl?|ya?ml|xlsx?|txt|log|pdf|html?|h5|hdf5|zip|tar|gz|tgz|pt|pth|ckpt|safetensors|onnx|pkl"
    r"|png|jpe?g|bmp|gif|tiff?|dcm|dicom|nii|mha|mhd|nrrd|webp)"
)
_OURS = r"(?:dropped|table|log|report|run|config|fingerprint|recipe)\.(?:csv|json|yaml)"  # files that every run has
_FILE = re.compile(
    rf"(?<![\w./\\…@+-])(?!{_OURS}(?![\w/\\]))(?:[\w.@+-]*[/\\])*[\w@+-][\w.@+-]*\.{_TYPES}(?![\w/\\])", re.IGNORECASE
)
_LETTER = r"(?:[^'\"`‘’“”\n]|(?<=\w)['’](?=\w))"  # an apostrophe may be in a name, as in O'Hara
# In quotes a path ends at the closing one, as names may have spaces.
_QUOTED = re.compile(
    rf"(?<!\w)(?P<quote>['\"`‘“])(?:{_BEGIN}{_LETTER}*|{_LETTER}*[/\\]{_LETTER}*\.{_TYPES})(?=['\"`’”])", re.IGNORECASE
)
# Otherwise it may go on after a space: to the end of a file, to a colon, or to the word after the last separator.
_INSIDE = rf"(?:(?!:\s|;\s|\s-|\s+{_BEGIN}){_LETTER})"
_SPACED = re.compile(
    rf"{_BEFORE}{_BEGIN}(?=\S)(?:{_INSIDE}*?\.{_TYPES}(?![\w/\\])"
    rf"|(?={_INSIDE}*[/\\]){_INSIDE}++(?=:\s)|{_INSIDE}*[/\\][^\s'\"`’”,;:<>|)\]}}]*)",
    re.IGNORECASE,
)
_DOI = re.compile(r"https?://(?:dx\.)?doi\.org/[^\s'\"<>?]+")
_WEB = re.compile(rf"(?<!\w)(?!{_SCHEME})[A-Za-z][\w+.-]*://[^\s'\"<>]*[^\s'\"<>.,;:!?)\]]", re.IGNORECASE)
_WORD = re.compile(r"[\w.@+/\\#^=-]+")


def shareable(text: str, scores: Scores | None = None) -> str:
    """Return a text in which paths are "…", and the images and patients of the scores have no name.

    >>> print(shareable("/data/a.csv: 'data/my study/x.png' and b/c.png were left out and/or not found"))
    …: '…' and … were left out and/or not found
    """
    return Redactor(scores)(text)


class Redactor:
    """Removes paths, and the names of the images and patients of some scores, from texts.

    Words of fewer than five digits, or fewer than three characters, are kept: they are counts more often than names.

    Args:
        scores: whose ids and patients have no name in what is returned; ``None`` removes paths alone.
        keep: texts that are returned as they are, such as labels.
    """

    def __init__(self, scores: Scores | None = None, keep: Iterable[str] = ()) -> None:
        self._names: dict[str, str] = {}
        self._keep = frozenset(keep)
        self._spaced: dict[str, dict[str, str]] = {}  # names of several words, by their first one
        if scores is None:
            return
        if scores.patients is not None:
            self._add(np.unique(np.asarray(scores.patients)).tolist(), "a patient")
        self._add(np.asarray(scores.ids).tolist(), "an image")
        folders = {one.replace("\\", "/").rpartition("/")[0] for one in map(str, scores.ids)}
        self._add((one for one in folders if "/" in one), "a folder")

    def _add(self, names: Iterable[str], instead: str) -> None:
        for name in map(str, names):
            last = name.replace("\\", "/").rpartition("/")[2]
            forms = {name, last, last.partition(".")[0]} if instead != "a folder" else {name}
            for form in forms:
                if not _is_name(form, whole=form == name) or form in self._keep:
                    continue
                if _WORD.fullmatch(form):
                    self._names.setdefault(form, instead)
                else:
                    first = re.search(r"\w+", form)
                    self._spaced.setdefault(first[0] if first else "", {}).setdefault(form, instead)

    def __call__(self, text: str) -> str:
        """Return the text without them."""
        if text in self._keep:
            return text
        text = text.replace("\0", "")  # marks what is kept
        kept: list[str] = []  # addresses of papers stay, with what looks like a path in them

        def hide(match: re.Match[str]) -> str:
            kept.append(match[0])
            return f"\0{len(kept) - 1}\0"

        text = _WEB.sub("…", _DOI.sub(hide, text))
        # Names come first, as no pattern knows where one with spaces ends; one that stands alone may be part of a path.
        for name, instead in self._found(text):
            before = rf"(?:{_BEFORE}{_BEGIN}{_INSIDE}*?[/\\]|(?<!\S)[^\s'\"`:=(]*[/\\])?"
            text = re.sub(rf"{before}(?<!\w){re.escape(name)}(?![\w/\\])", instead, text)
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, text)
        text = _WORD.sub(lambda match: self._names.get(match[0], match[0]), text)
        text = _QUOTED.sub(lambda match: f"{match['quote']}…", text)
        for pattern in (_SPACED, _PLAIN, _FILE):
            text = pattern.sub("…", text)
        text = _WORD.sub(self._word, text)
        return re.sub("\0(\\d+)\0", lambda match: kept[int(match[1])], text)

    def _found(self, text: str) -> list[tuple[str, str]]:
        """Return the names of several words that are in a text, the longest first."""
        found = [
            pair for word in {"", *re.findall(r"\w+", text)} for pair in self._spaced.get(word, {}).items()
            if pair[0] in text
        ]  # fmt: skip
        return sorted(found, key=lambda pair: (-len(pair[0]), pair))

    def _word(self, match: re.Match[str]) -> str:
        word = match[0]
        core = word.rstrip(".")
        for name in (word, core, *re.split(r"[=/\\]", core)):
            if name in self._names:
                return self._names[name] + word[len(core) :] if name in (word, core) else self._parts(word)
        return word

    def _parts(self, word: str) -> str:
        """Return a word such as a path, of which a part is a name."""
        return "".join(self._names.get(part, part) for part in re.split(r"([=/\\])", word))


def _is_name(text: str, *, whole: bool) -> bool:
    if text.isdigit():
        return len(text) >= 5
    return len(text) >= 3 and (whole or any(c.isdigit() for c in text))


def map_texts(value: _T, change: Callable[[str], str]) -> _T:
    """Return a value, and all that it holds, with each text changed: of dataclasses, mappings, tuples and lists."""
    return _map(value, change)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map(key, change): _map(each, change) for key, each in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_map(each, change) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        changed = {name: _map(each, change) for name, each in given.items()}
        return replace(value, **{name: new for name, new in changed.items() if new is not given[name]})
    return value
