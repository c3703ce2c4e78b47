from __future__ import annotations

from pathlib import Path

import pytest

from velollm import config
from velollm.config import data_dir, ensure_dir, try_lock, user_paths
from velollm.errors import VeloError


def test_everything_lies_under_a_home_that_is_set(tmp_path: Path) -> None:
    paths = user_paths({"VELOLLM_HOME": str(tmp_path)})
    places = [paths.config, paths.data, paths.cache, paths.journal, paths.engine_env, paths.engine_settings]
    places += [paths.ollama_env, paths.runner_state]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert list(tmp_path.iterdir()) == []


def test_without_one_they_lie_where_the_platform_keeps_such_things() -> None:
    paths = user_paths({})
    assert all("velollm" in str(place) for place in (paths.config, paths.data, paths.cache))
    assert paths == user_paths({"VELOLLM_HOME": ""})


def test_data_that_ships_with_the_program() -> None:
    assert (data_dir("configs") / "profiles" / "chat.yaml").is_file()
    assert any(data_dir("workloads").iterdir())


def test_missing_data_says_what_to_do() -> None:
    with pytest.raises(VeloError, match="'nothing' is missing") as caught:
        data_dir("nothing")
    assert "pipx install" in caught.value.hint


def test_an_installed_program_carries_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "velollm"
    inside = package / "_data" / "workloads"
    inside.mkdir(parents=True)
    monkeypatch.setattr(config, "_PACKAGE", package)
    assert data_dir("workloads") == inside
    with pytest.raises(VeloError):
        data_dir("configs")


def test_ensure_dir(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    assert ensure_dir(deep) == ensure_dir(deep) == deep
    assert deep.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(VeloError, match="cannot make the directory") as caught:
        ensure_dir(tmp_path / "file" / "c")
    assert "VELOLLM_HOME" in caught.value.hint


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open("r+") as one, (tmp_path / "lock").open("r+") as two:
        assert try_lock(one.fileno())
        assert not try_lock(two.fileno())
        one.close()
        assert try_lock(two.fileno())
