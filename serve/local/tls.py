"""The certificate that HAProxy shows to clients, checked before anything is started, and watched for a newer one."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from models.errors import ConfigError


class Certificate:
    """A certificate and its key in files, which may be renewed there.

    Args:
        cert: PEM of the certificate, and of those between it and its root.
        key: PEM of its private key, without a passphrase.

    Raises:
        ConfigError: They cannot be used as they are; says what to do.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._known = self._stamps()
        self._check()

    def renewed(self) -> str | None:
        """Return the new certificate and key, as PEM; None where they are as they were.

        Raises:
            ConfigError: What is there now cannot be used; not said again before it changes.
            OSError: It is being replaced at this moment.
        """
        now = self._stamps()
        if now == self._known:
            return None
        self._known = now
        self._check()
        # Both may be one file; what stands around the PEM may be in any encoding.
        return "\n".join(path.read_text(errors="replace") for path in dict.fromkeys((self._cert, self._key)))

    def _stamps(self) -> list[tuple[int, int]]:
        # Not what they hold: the key stays where it is. A file that is away, since it is being replaced, is a change too.
        stamps = []
        for path in (self._cert, self._key):
            with contextlib.suppress(OSError):
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_ino))
        return stamps

    def _check(self) -> None:
        """Raise ConfigError unless a client that trusts this certificate could connect now."""
        cert, key = self._cert, self._key
        for option, path in (("--tls-cert", cert), ("--tls-key", key)):
            try:
                path.read_bytes()
            except OSError as err:
                raise ConfigError(f"{option} {path} cannot be read: {err.strerror}") from err
        try:
            _shake_hands(cert, key)
        except ssl.SSLCertVerificationError as err:
            raise ConfigError(f"--tls-cert {cert} is refused by clients: {err.verify_message}; renew it") from err
        except ssl.SSLError as err:
            if err.reason == "KEY_VALUES_MISMATCH":
                raise ConfigError(f"--tls-key {key} is not the key of --tls-cert {cert}: give the pair") from err
            raise ConfigError(
                f"--tls-cert {cert} and --tls-key {key} cannot be used ({err.reason or err}): give PEM files, the server's "
                "own certificate first"
            ) from err


def _shake_hands(cert: Path, key: Path) -> None:
    """Raise SSLError where a client that trusts the certificate, whoever has signed it, refuses it; in memory."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server.load_cert_chain(cert, key, password=_no_passphrase)
    client.load_verify_locations(cert)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    asked = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, asked, asking):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()


def _no_passphrase() -> str:
    raise ConfigError("--tls-key has a passphrase: give one without, as `openssl pkey -in KEY -out PLAIN` writes it")
