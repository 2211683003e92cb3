"""What Ray prints by itself."""

from __future__ import annotations

import logging

from pipeline.patches.patch import SWITCH_VARIABLE
from pipeline.patches.start_patches import short_errors

LOST = (
    "The node with node id: 16bbb191332d21c708ce20c3 and address: 10.0.0.7 and node name: gpu-3 has been marked dead "
    "because the detector has missed too many heartbeats from it.\n[state-dump] pages\n[state-dump] of it"
)
ENDED = "Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL\n[state-dump] pages"


def test_a_lost_node_is_one_line_and_the_rest_of_what_ray_prints_is_for_verbose(caplog, capsys, monkeypatch):
    from ray._private import worker

    monkeypatch.delenv(SWITCH_VARIABLE, raising=False)
    caplog.set_level(logging.INFO, logger="pipeline.patches.start_patches")

    with short_errors():
        worker.print_to_stdstream({"lines": [LOST], "pid": "raylet", "is_err": False}, ignore_prefix=False)
        worker.print_to_stdstream({"lines": [ENDED], "pid": "raylet", "is_err": False}, ignore_prefix=False)

    lost, ended = caplog.records
    assert (lost.levelname, lost.getMessage()) == (
        "WARNING",
        "node=16bbb191 (gpu-3) is lost; other nodes redo its work",
    )
    assert (ended.levelname, ended.getMessage()) == (
        "INFO",
        "Ray says: Raylet is terminated. Termination is unexpected. ",
    )
    assert "state-dump" not in capsys.readouterr().out
