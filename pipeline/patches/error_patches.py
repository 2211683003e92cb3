"""What Ray prints by itself on the driver's terminal, in a line each."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.patches.patches import SHORT_ERRORS

logger = logging.getLogger(__name__)

# As Ray announces the death of a node.
_LOST_NODE = re.compile(r"node with node id: (\w+) and address: \S+ and node name: (\S+) has been marked dead")


@contextmanager
def short_errors() -> Iterator[None]:
    """Have the death of a node logged in a line, and what Ray says beside that only with --verbose: it prints pages.

    `log_to_driver=False` does not cover them, and there is no option (2.60). Takes effect when Ray is joined.
    """
    with SHORT_ERRORS.applied(lambda _: _log_briefly):
        yield


def _log_briefly(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    text = " ".join(str(line) for line in data.get("lines", ())).strip()
    lost = _LOST_NODE.search(text)
    if lost is not None:
        logger.warning("node=%s (%s) is lost; what it had is done again by others", lost[1][:8], lost[2])
    else:
        logger.info("Ray says: %s", text.partition("Possible reasons")[0].partition("\n")[0][:300])
