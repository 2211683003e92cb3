"""Bearer keys: who may use the endpoint, where it was told to ask."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from pathlib import Path

from models.errors import ConfigError
from serve.http.asgi import Rejected

logger = logging.getLogger(__name__)

RELOAD_S = 2.0  # a changed file is noticed within this: keys can be added and withdrawn without a restart
MIN_KEY_CHARS = 8


class ApiKeys:
    """The keys of a file, one a line; empty lines and those that begin with # are left out.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, or holds no key, or one that is too short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests = _read(path)
        self._checked = time.monotonic()

    def check(self, authorization: str | None) -> None:
        """Accept an `Authorization` header, or raise Rejected with 401."""
        if time.monotonic() - self._checked >= RELOAD_S:
            self._checked = time.monotonic()
            try:
                self._digests = _read(self._path)
            except ConfigError as err:
                logger.warning("the keys stay as they were: %s", err)
        scheme, _, key = (authorization or "").encode("latin-1").strip().partition(b" ")
        text = "this endpoint wants a key: send the header Authorization: Bearer KEY"
        if scheme.lower() == b"bearer" and key:
            # Of digests, and all of them: how long it takes tells neither a key's length nor how much of it was right.
            digest = hashlib.sha256(key.strip()).digest()
            if sum(hmac.compare_digest(digest, known) for known in self._digests) > 0:
                return
            text = "the key is not known here"
        raise Rejected(401, text, headers=[(b"www-authenticate", b'Bearer realm="shardlabel"')])


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"--api-keys-file {path} cannot be read: {err}") from err
    keys = {n: line.strip() for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")}
    if not keys:
        raise ConfigError(f"--api-keys-file {path} holds no key; expected one a line")
    if short := next((number for number, key in keys.items() if len(key) < MIN_KEY_CHARS), None):
        raise ConfigError(f"--api-keys-file {path}: the key in line {short} has fewer than {MIN_KEY_CHARS} characters")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys.values())
