"""The certificate that HAProxy shows to clients, looked at before anything is started, and watched for a newer one."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from models.errors import ConfigError


def check_certificate(cert: Path, key: Path) -> None:
    """Raise ConfigError, with what to do, unless a client that trusts this certificate could connect now.

    Args:
        cert: PEM of the certificate, and of those between it and its root.
        key: PEM of its private key, without a passphrase.
    """
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as err:
            raise ConfigError(f"{option} {path} cannot be read: {err.strerror}") from err
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # This very certificate is what the client trusts, whoever has signed it.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        server.load_cert_chain(cert, key, password=_no_passphrase)
        client.load_verify_locations(cert)
        _shake_hands(server, client)
    except ssl.SSLCertVerificationError as err:
        raise ConfigError(f"--tls-cert {cert} is refused by clients: {err.verify_message}; renew it") from err
    except ssl.SSLError as err:
        if err.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--tls-key {key} is not the key of --tls-cert {cert}: give the pair") from err
        raise ConfigError(
            f"--tls-cert {cert} and --tls-key {key} cannot be used ({err.reason or err}): give PEM files, the server's own "
            "certificate first"
        ) from err


def _no_passphrase() -> str:
    raise ConfigError("--tls-key has a passphrase: give one without, as `openssl pkey -in KEY -out PLAIN` writes it")


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Raise SSLError where the client does not take the server's certificate; in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    asked = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, asked, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


class Renewal:
    """Tells when a certificate was renewed in its files.

    Args:
        cert: See `check_certificate`.
        key: See `check_certificate`.

    Raises:
        ConfigError: They cannot be used as they are.
    """

    def __init__(self, cert: Path, key: Path) -> None:
        self._files = (cert, key)
        self._known = self._stamps()
        check_certificate(cert, key)

    def take(self) -> str | None:
        """Return the new certificate and key, as PEM; None where they are as they were.

        Raises:
            ConfigError: What is there now cannot be used; not said again before it changes.
            OSError: It is being replaced at this moment.
        """
        now = self._stamps()
        if now == self._known:
            return None
        self._known = now
        check_certificate(*self._files)
        # Both may be one file; what stands around the PEM may be in any encoding.
        return "\n".join(path.read_text(errors="replace") for path in dict.fromkeys(self._files))

    def _stamps(self) -> list[tuple[int, int]]:
        # Not what they hold: the key stays where it lies, and a file that cannot be read, or that is away since it is being
        # replaced, is a change that `check_certificate` tells.
        stamps = []
        for path in self._files:
            with contextlib.suppress(OSError):
                found = path.stat()
                stamps.append((found.st_mtime_ns, found.st_ino))
        return stamps
