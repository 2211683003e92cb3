from __future__ import annotations

import logging

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app


@pytest.mark.parametrize(
    ("words", "level"),
    [
        pytest.param(["models", "list"], logging.WARNING, id="not given"),
        pytest.param(["-v", "models", "list"], logging.INFO, id="before"),
        pytest.param(["models", "list", "-v", "--json"], logging.INFO, id="behind"),
        pytest.param(["models", "list", "--json", "--verbose"], logging.INFO, id="last"),
        pytest.param(["models", "info", "--", "-v"], logging.WARNING, id="a value"),
    ],
)
def test_verbose_is_taken_before_and_behind_the_command(words, level, monkeypatch):
    levels: list[int] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **given: levels.append(given["level"]))

    result = CliRunner().invoke(build_app(), words)

    assert levels == [level]
    assert result.exit_code == (1 if "--" in words else 0)
