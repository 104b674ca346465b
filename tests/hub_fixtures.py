"""The fixture ``hub``: the tests' own server, with the real clients of this process pointed at it.

A test file enables it with ``pytest_plugins = ["hub_fixtures"]``.
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
        redirect_clients(server, tmp_path, monkeypatch)
        yield server
        from huggingface_hub.utils import close_session

        close_session()
    assert not server.errors


def redirect_clients(server: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment, and the values that huggingface_hub read from it when it was imported."""
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
        monkeypatch.setattr(constants, name, value, raising=False)  # some are newer than the oldest client
    # The functions outside HfApi have read the endpoint, too.
    monkeypatch.setattr(hf_api.api, "endpoint", server.url())
    close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace ``time.sleep``, and return the list of the requested seconds."""
    seconds: list[float] = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds
