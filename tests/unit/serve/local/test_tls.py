"""A certificate that clients would refuse is found before anything is started."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from models.errors import ClusterError, ConfigError
from serve.config import ServeOptions
from serve.local import running
from serve.local.haproxy import TLS_BUNDLE
from serve.local.tls import checked
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
        checked(cert, key)


def test_a_good_one_passes_alone_and_in_one_file_with_its_key(tmp_path):
    cert, key = write_certificate(tmp_path)
    assert checked(cert, key) == f"{cert.read_text()}\n{key.read_text()}"
    cert.write_bytes("C = MÜNCHEN\n".encode("latin-1") + cert.read_bytes() + key.read_bytes())

    assert checked(cert, cert).count("PRIVATE KEY") == 2  # its two ends


def test_a_renewed_one_is_given_once_and_a_bad_one_is_told_once(tmp_path, monkeypatch):
    cert, key = write_certificate(tmp_path / "tls")
    socket = tmp_path / "node" / "admin.sock"
    socket.parent.mkdir()
    socket.touch()
    asked = []
    monkeypatch.setattr(
        running, "_console", lambda path: nullcontext(lambda command: asked.append((path, command)) or "Success!")
    )
    endpoint = running.Endpoint(ServeOptions(tls_cert=cert, tls_key=key), tmp_path)
    assert not endpoint.renew_certificate()

    write_certificate(tmp_path / "tls")
    cert.write_text(f"of the server:\n\n{cert.read_text()}")
    assert endpoint.renew_certificate()
    assert not endpoint.renew_certificate()
    name = socket.with_name(TLS_BUNDLE)
    content = "".join(path.read_text() for path in (cert, key)).replace("\n\n", "\n")
    assert asked == [(socket, f"set ssl cert {name} <<\n{content}"), (socket, f"commit ssl cert {name}")]

    key.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        endpoint.renew_certificate()
    assert not endpoint.renew_certificate()


def test_one_that_haproxy_does_not_take_is_an_error_with_its_words(tmp_path, monkeypatch):
    cert, key = write_certificate(tmp_path / "tls")
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "admin.sock").touch()
    monkeypatch.setattr(running, "_console", lambda path: nullcontext(lambda command: "unable to load\n"))
    endpoint = running.Endpoint(ServeOptions(tls_cert=cert, tls_key=key), tmp_path)
    write_certificate(tmp_path / "tls")

    with pytest.raises(ClusterError, match="does not take the new certificate: unable to load"):
        endpoint.renew_certificate()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has a file that root cannot read either")
def test_one_that_cannot_be_read_is_told_once_and_at_the_start_as_any_other_mistake(tmp_path):
    cert, key = write_certificate(tmp_path)
    endpoint = running.Endpoint(ServeOptions(tls_cert=cert, tls_key=key), tmp_path)
    key.unlink()
    key.symlink_to("/proc/self/mem")

    with pytest.raises(ConfigError, match=r"--tls-key .* cannot be read"):
        endpoint.renew_certificate()
    assert not endpoint.renew_certificate()
    with pytest.raises(ConfigError, match=r"--tls-key .* cannot be read"):
        checked(cert, key)


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
