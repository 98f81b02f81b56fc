"""The certificates of the beds, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doors.beds import make_certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificates of every part."""
    folder = tmp_path_factory.mktemp("doors") / "certs"
    make_certificates(folder, "new")
    return folder
