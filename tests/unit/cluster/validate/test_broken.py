"""Manifests with one fault each, made from rendered good ones: every fault is named, with path and reason, alone."""

from __future__ import annotations

import pytest

from tests.support.broken_manifests import BROKEN
from tests.support.manifests import documents, faults_of, write
from tests.support.refused_manifests import REFUSED, SINCE_1_7


def test_there_are_at_least_thirty_of_them():
    assert len(BROKEN) >= 30


@pytest.mark.parametrize("name", [*BROKEN, *REFUSED, *SINCE_1_7])
def test_the_fault_is_named(name, tmp_path):
    target, change, path, reason = {**BROKEN, **REFUSED, **SINCE_1_7}[name]
    broken = documents(target)
    change(broken)

    faults = faults_of(tmp_path, write(broken))

    named = [line for line in faults if path in line and reason in line]
    assert named, faults
    assert len(faults) <= 2, faults  # one fault is not told over and over


@pytest.mark.parametrize("target", ["rayjob", "rayservice", "ray-up"])
def test_the_good_one_has_none(target, tmp_path):
    assert faults_of(tmp_path, write(documents(target))) == []
