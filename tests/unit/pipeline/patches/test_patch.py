"""A patch looks at what it replaces; where Ray differs, one for speed leaves it alone and one for safety refuses."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest
import ray

from models.errors import ClusterError, ConfigError
from pipeline.patches.patch import SWITCH_VARIABLE, Patch, Place, check_switch
from pipeline.patches.patches import PATCHES


def theirs(command: str, count: int = 1) -> str:
    return f"{command} by Ray, {count}"


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of Ray's with a function and a constant."""
    module = ModuleType("fake_ray")
    module.start, module.LIMIT = theirs, 7
    monkeypatch.setitem(sys.modules, "fake_ray", module)
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)
    return module


def patch(kind: str, *places: Place) -> Patch:
    return Patch("lean_start", kind, "it is slow", "1 s", places or (Place("fake_ray", "start", ("command", "count")),))


def with_ours(original):
    return lambda command, count=1: original(command, count).replace("Ray", "us")


def test_what_is_as_expected_is_replaced_and_put_back(fake_ray):
    both = patch("speed", Place("fake_ray", "start", ("command",)), Place("fake_ray", "LIMIT"))

    with both.applied(with_ours, lambda limit: limit + 1):
        assert (fake_ray.start("x"), fake_ray.LIMIT) == ("x by us, 1", 8)

    assert (fake_ray.start, fake_ray.LIMIT) == (theirs, 7)


def test_a_place_behind_those_that_are_replaced_is_looked_at_too(fake_ray):
    with patch("speed", Place("fake_ray", "start"), Place("fake_ray", "gone")).applied(with_ours):
        assert fake_ray.start is theirs


DIFFERENCES = {
    "no such module": (Place("fake_ray_of_old", "start"), "fake_ray_of_old.start is missing"),
    "no such attribute": (Place("fake_ray", "begin"), "fake_ray.begin is missing"),
    "a parameter less": (
        Place("fake_ray", "start", ("command", "count", "kind")),
        r"takes \(command, count\), expected",
    ),
    "another order": (Place("fake_ray", "start", ("count", "command")), r"takes \(command, count\), expected"),
    "no function": (Place("fake_ray", "LIMIT", ("command",)), "cannot be inspected"),
    "other words": (Place("logging", words="bind everything"), "does not contain 'bind everything'"),
}


@pytest.mark.parametrize(("place", "words"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_where_ray_differs_speed_leaves_its_own_way_and_says_so_with_verbose(fake_ray, caplog, place, words):
    caplog.set_level(logging.INFO)

    with patch("speed", Place("fake_ray", "start"), place).applied(with_ours):
        assert fake_ray.start is theirs

    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("patch=lean_start is skipped")


@pytest.mark.parametrize(("place", "words"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_where_ray_differs_safety_refuses_and_says_which_and_why(fake_ray, place, words):
    with pytest.raises(ClusterError, match=rf"`lean_start` is needed for safety \(it is slow\): .*{words}"):
        patch("safety", place).apply(with_ours)


def test_another_release_of_ray_is_another_ray(fake_ray, monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.61.0")

    assert not patch("speed").fits()
    with pytest.raises(ClusterError, match=r"this is Ray 2\.61\.0, expected 2\.60"):
        patch("safety").fits()


@pytest.mark.parametrize(
    ("switch", "is_on"),
    [
        ("", True),
        ("off", False),
        ("-lean_start", False),
        ("-other", True),
        ("off,lean_start", True),
        ("off, -other", False),
    ],
)
def test_the_switch_has_all_off_or_some_and_verbose_says_which(fake_ray, monkeypatch, caplog, switch, is_on):
    monkeypatch.setenv(SWITCH_VARIABLE, switch)
    caplog.set_level(logging.INFO)

    assert patch("speed").fits() is is_on
    assert patch("words").fits() is is_on
    assert ("patch=lean_start is switched off" in caplog.text) is not is_on
    assert patch("safety").fits()


def test_a_word_that_names_no_patch_is_an_error_that_names_them(monkeypatch):
    for right in ("", "off", "off,agents", "-agents,-monitors"):
        monkeypatch.setenv(SWITCH_VARIABLE, right)
        check_switch(PATCHES)
    for wrong in ("on", "-agent", "-loopback"):
        monkeypatch.setenv(SWITCH_VARIABLE, wrong)
        with pytest.raises(ConfigError, match=rf"^{SWITCH_VARIABLE}: .*of agents, api_server, .*got '{wrong}'"):
            check_switch(PATCHES)


@pytest.mark.parametrize("each", PATCHES, ids=[each.name for each in PATCHES])
def test_the_ray_that_is_installed_is_the_one_that_each_patch_expects(each, monkeypatch):
    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)

    assert [place.difference() for place in each.places] == [None] * len(each.places)
    assert each.fits()


def test_the_patches_have_names_of_their_own_reasons_and_gains():
    assert len({each.name for each in PATCHES}) == len(PATCHES)
    assert all(each.why and each.gain and each.places for each in PATCHES)
