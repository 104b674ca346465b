"""The rows with a target, each in a process of its own.

What ran before leaves its mark: on a machine whose memory has just been used, fresh pages come cheaply, which helps
whoever asks for much memory. A process for each row is what a user's program is like.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medzoo.bench.cases import select
from medzoo.bench.targets import TARGETS

__all__ = ["run_alone", "target_rows"]

# What the growth of cost with batch and volume is read from, besides the rows with a target.
SCALING = (
    "swin_encoder_mlp-64x64x64-b8-float32-forward",
    "swin_encoder_mlp-128x128x128-b1-float32-forward",
)


def target_rows(models: list[str]) -> list[str]:
    """Return the ids of the rows that a target of some models, or of any, is about."""
    wanted = {target.row for target in TARGETS} | set(SCALING)
    return [case.id for case in select(models) if case.id in wanted]


def run_alone(rows: list[str], report: Callable[[str, dict[str, Any] | None], None]) -> dict[str, Any]:
    """Run each row by ``python -m medzoo.bench --row`` and join the results; the ceilings are the best of all.

    Raises:
        RuntimeError: a process ended without a result.
    """
    whole: dict[str, Any] = {}
    for row in rows:
        report(row, None)
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "medzoo.bench", "--row", row, "--results", folder]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            files = list(Path(folder).glob("*.json"))
            if len(files) != 1:
                raise RuntimeError(f"{row}: no result ({done.returncode}): {done.stderr[-2000:]}")
            found = json.loads(files[0].read_text(encoding="utf-8"))
        if not whole:
            whole = found
            whole["environment"]["alone"] = True
        else:
            whole["rows"] += found["rows"]
            for key in ("skipped", "failed"):
                whole[key] |= found[key]
            for name, value in found["ceilings"].items():
                whole["ceilings"][name] = max(value, whole["ceilings"].get(name, value))
        report(row, {})
    return whole
