"""List the sockets on which processes listen, with their addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

_LISTENING = "0A"


def listening(pids: Iterable[int]) -> dict[tuple[str, int], str]:
    """Return the command of the listening process, by (address, port)."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING:
                host, _, port = fields[1].rpartition(":")
                sockets[f"socket:[{fields[9]}]"] = (_address(host), int(port, 16))
    found = {}
    for pid in pids:
        try:
            targets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # the process has ended
            continue
        found.update({sockets[target]: command for target in targets & sockets.keys()})
    return found


def beyond_loopback(pids: Iterable[int]) -> dict[tuple[str, int], str]:
    """Return the entries of `listening` that another machine can reach."""
    return {place: line for place, line in listening(pids).items() if not ipaddress.ip_address(place[0]).is_loopback}


def _address(text: str) -> str:
    # Words of four bytes, each in the machine's byte order.
    raw = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    address = ipaddress.ip_address(raw)
    return str(getattr(address, "ipv4_mapped", None) or address)
