"""The fixture ``hub``: a server of our own, with the real clients of this process pointed at it.

A test file takes it with ``pytest_plugins = ["hub_fixtures"]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import Loopback, client_environment


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """Start a server, and point huggingface_hub, requests and medzoo at it and at folders under ``tmp_path``."""
    with Loopback() as server:
        point_here(server, tmp_path, monkeypatch)
        yield server
        from huggingface_hub.utils import close_session

        close_session()
    assert not server.errors


def point_here(server: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the environment sets, and what huggingface_hub has read from it at its import."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import close_session

    for name, value in client_environment(server, folder).items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    home = os.environ["HF_HOME"]
    for name, value in {
        "ENDPOINT": server.url(),
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url("/{repo_id}/resolve/{revision}/{filename}"),
        "HF_HOME": home,
        "HF_HUB_CACHE": os.environ["HF_HUB_CACHE"],
        "HUGGINGFACE_HUB_CACHE": os.environ["HF_HUB_CACHE"],
        "HF_TOKEN_PATH": os.environ["HF_TOKEN_PATH"],
        "HF_STORED_TOKENS_PATH": f"{home}/stored_tokens",
        "AGENT_HARNESSES_PATH": f"{home}/agent_harnesses.json",
        "HF_XET_CACHE": f"{home}/xet",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    # The functions outside of HfApi have read the endpoint, too.
    monkeypatch.setattr(hf_api.api, "endpoint", server.url())
    close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nothing in this process sleep, and return how long it would have, nap by nap."""
    naps: list[float] = []
    monkeypatch.setattr("time.sleep", naps.append)
    return naps
