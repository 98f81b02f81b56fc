"""What the folder of files removes: what it made, and nothing else."""

from pathlib import Path

import pytest

from gateway.files.folder import Folder


def test_one_that_was_never_opened_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway whose start failed closes what it has not opened, in whatever folder it runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("x")
    Folder(None).close()
    assert (tmp_path / "mine").read_text() == "x"


def test_a_temporary_one_is_gone_at_the_end(tmp_path: Path) -> None:
    folder = Folder(None, within=tmp_path)
    folder.open(1)
    assert folder.path.parent == tmp_path.resolve()
    folder.close()
    folder.close()
    assert list(tmp_path.iterdir()) == []
