"""Why figures of a run say nothing about new patients, as its ``run.json`` states it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["caution_of_file", "stated_caution"]


def stated_caution(facts: Mapping[str, Any]) -> str:
    """Return the caution in ``run.json``; empty for all runs but those of a reproduction that are not honest."""
    return str(facts.get("caution") or ("its split leaks on purpose." if facts.get("leaks_on_purpose") else ""))


def caution_of_file(path: Path) -> tuple[Path, str]:
    """Return the folder of the run that a file is in, or that of the file, and the caution of the run; else empty."""
    for folder in path.resolve().parents:
        if (folder / "run.json").is_file():
            try:
                facts = json.loads((folder / "run.json").read_text("utf-8"))
            except (OSError, ValueError):
                return folder, ""
            return folder, stated_caution(facts) if isinstance(facts, dict) else ""  # else that of another program
    return path.parent, ""
