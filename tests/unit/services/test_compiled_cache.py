"""Where engines keep what they have compiled, and when they had better not."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrara_services.compiled_cache import compiled_cache


def test_the_folder_is_made_and_is_this_users_alone(tmp_path: Path):
    folder = compiled_cache(tmp_path / "new")
    assert folder == tmp_path / "new" / "compiled"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert compiled_cache(tmp_path / "new") == folder


def test_without_a_setting_it_is_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled_cache(None) == tmp_path / "carrara" / "compiled"


def test_where_it_cannot_be_made_another_stands_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    in_the_way = tmp_path / "a-file"
    in_the_way.touch()
    folder = compiled_cache(in_the_way)
    assert folder.is_dir()
    assert "not kept for the next start" in caplog.text


def test_what_others_may_have_written_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = compiled_cache(tmp_path)
    folder.chmod(0o777)
    assert compiled_cache(tmp_path) != folder
    assert "others can write into" in caplog.text
