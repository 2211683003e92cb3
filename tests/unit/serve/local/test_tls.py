"""A certificate that clients would refuse is found before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ConfigError
from serve.local.tls import Certificate
from tests.support.certificates import write_certificate


def other_key(folder: Path) -> tuple[Path, Path]:
    return write_certificate(folder / "a")[0], write_certificate(folder / "b")[1]


def no_pem(folder: Path) -> tuple[Path, Path]:
    cert, key = write_certificate(folder / "a")
    cert.write_text("no certificate")
    return cert, key


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda f: (f / "none.pem", f / "none.pem"), "No such file", id="not there"),
        pytest.param(other_key, "is not the key of", id="of another"),
        pytest.param(no_pem, "give PEM files", id="no PEM"),
        pytest.param(lambda f: write_certificate(f / "a", days=(-3, -1)), "has expired; renew it", id="expired"),
        pytest.param(lambda f: write_certificate(f / "a", days=(1, 3)), "not yet valid", id="too early"),
        pytest.param(lambda f: write_certificate(f / "a", passphrase=b"x"), "has a passphrase", id="passphrase"),
    ],
)
def test_a_certificate_that_clients_would_refuse_is_an_error_that_says_what_to_do(tmp_path, make, says):
    cert, key = make(tmp_path)

    with pytest.raises(ConfigError, match=says):
        Certificate(cert, key)


def test_a_good_one_passes_alone_and_in_one_file_with_its_key(tmp_path):
    cert, key = write_certificate(tmp_path)
    Certificate(cert, key)
    cert.write_text(cert.read_text() + key.read_text())

    Certificate(cert, cert)


def test_a_renewed_one_is_given_once_and_a_bad_one_is_told_once(tmp_path):
    cert, key = write_certificate(tmp_path)
    certificate = Certificate(cert, key)
    assert certificate.renewed() is None

    write_certificate(tmp_path)
    given = certificate.renewed()
    assert given is not None
    assert cert.read_text().strip() in given
    assert key.read_text().strip() in given
    assert certificate.renewed() is None

    cert.write_bytes("C = MÜNCHEN\n".encode("latin-1") + cert.read_bytes() + key.read_bytes())
    given = certificate.renewed()
    assert given is not None
    assert key.read_text().strip() in given
    together = Certificate(cert, cert)
    cert.write_bytes(cert.read_bytes() + b"\n")
    assert (together.renewed() or "").count("PRIVATE KEY") == 2  # its two ends

    key.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        certificate.renewed()
    assert certificate.renewed() is None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has a file that root cannot read either")
def test_one_that_cannot_be_read_is_told_once_and_at_the_start_as_any_other_mistake(tmp_path):
    cert, key = write_certificate(tmp_path)
    certificate = Certificate(cert, key)
    key.unlink()
    key.symlink_to("/proc/self/mem")

    with pytest.raises(ConfigError, match=r"--tls-key .* cannot be read"):
        certificate.renewed()
    assert certificate.renewed() is None
    with pytest.raises(ConfigError, match=r"--tls-key .* cannot be read"):
        Certificate(cert, key)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["--tls-cert", "a.pem"], "belong together", id="half"),
        pytest.param(["--no-haproxy"], "needs HAProxy", id="no HAProxy"),
        pytest.param(["--address", "auto"], "SHARDLABEL_TLS_CERT", id="cluster"),
    ],
)
def test_where_there_is_no_tls_it_is_refused_and_not_left_out(tmp_path, words, says):
    cert, key = write_certificate(tmp_path)
    pair = [] if "--tls-cert" in words else ["--tls-cert", str(cert), "--tls-key", str(key)]

    done = CliRunner().invoke(build_app(), ["serve", *words, *pair])

    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)
