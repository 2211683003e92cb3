"""What a run says of the cluster that it joins."""

from __future__ import annotations

import logging

import pytest

from models.errors import ConfigError
from pipeline.session.connect import _shorten_errors, connect

LOST = (
    "The node with node id: 16bbb191332d21c708ce20c3 and address: 10.0.0.7 and node name: gpu-3 has been marked dead "
    "because the detector has missed too many heartbeats from it.\n[state-dump] pages\n[state-dump] of it"
)
ENDED = "Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL\n[state-dump] pages"


def test_a_dashboard_is_no_address_of_a_driver():
    with pytest.raises(ConfigError, match=r"is a cluster's dashboard: .*shardlabel submit --address http://head:8265"):
        connect("http://head:8265")


def test_a_lost_node_is_one_line_and_the_rest_of_what_ray_prints_is_for_verbose(monkeypatch, caplog, capsys):
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # put back afterwards
    caplog.set_level(logging.INFO, logger="pipeline.session.connect")

    _shorten_errors()
    worker.print_to_stdstream({"lines": [LOST], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    worker.print_to_stdstream({"lines": [ENDED], "pid": "raylet", "is_err": False}, ignore_prefix=False)

    lost, ended = caplog.records
    assert (lost.levelname, lost.getMessage()) == (
        "WARNING",
        "node=16bbb191 (gpu-3) is lost; what it had is done again by others",
    )
    assert (ended.levelname, ended.getMessage()) == (
        "INFO",
        "Ray says: Raylet is terminated. Termination is unexpected. ",
    )
    assert "state-dump" not in capsys.readouterr().out
