"""The certificate that HAProxy shows to clients, checked before HAProxy gets it."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

from models.errors import ConfigError


def checked(cert: Path, key: Path) -> str:
    """Return the PEM of both, if a client that trusts the certificate could connect now.

    Args:
        cert: PEM of the certificate, and of those between it and its root.
        key: PEM of its private key, without a passphrase; may be the same file.

    Raises:
        ConfigError: They cannot be used as they are; says what to do.
        OSError: They are being replaced at this moment.
    """
    texts = {}
    for option, path in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            # What stands around the PEM may be in any encoding.
            texts[path] = path.read_text(errors="replace")
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
    return "\n".join(texts.values())


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
