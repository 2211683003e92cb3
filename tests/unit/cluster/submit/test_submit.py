"""What `submit` checks before it asks any cluster, and what it says of clusters that are made up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import build_app
from cluster.submit.arguments import check_arguments
from cluster.submit.jobs_client import auth_headers, dashboard_url
from cluster.submit.package import LIMIT_BYTES, build_package
from cluster.submit.probe import code_digest, code_files, installed_root
from models.errors import ConfigError

ROOT = Path(__file__).parents[4]


def test_arguments_come_out_whole_with_local_paths_from_the_root_and_the_config_merged_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("top-k: 3\nmodel: efficientnet-lite0\ncarry: [a, b]\n")

    found = check_arguments(
        ["label", "in/{00..09}.tar", "s3://b/x y.tar", "@list.txt", "--output", "out", "--config", "run.yaml",
         "--top-k", "4", "--embeddings", "--json", "--dry-run", "7", "--decode", "exact", "--max-error-rate", "0.5"]
    )  # fmt: skip

    again = check_arguments(["label", *found.words])
    assert again == found.__class__(found.words, (f"{tmp_path}/in/{{00..09}}.tar", f"@{tmp_path}/list.txt",
                                                  f"{tmp_path}/out"), False)  # fmt: skip
    assert found.local == ("in/{00..09}.tar", "@list.txt", "out")
    words = " ".join(found.words)
    assert "--top-k=4" in words
    assert "--model=efficientnet-lite0" in words
    assert "--carry=a,b" in words
    assert "--decode=exact" in words
    assert "--max-error-rate=0.5" in words
    assert "--embeddings" in found.words
    assert "--json" in found.words
    assert "--dry-run 7" in words
    assert "--config" not in words
    assert found.words[-4:] == ("--", f"{tmp_path}/in/{{00..09}}.tar", "s3://b/x y.tar", f"@{tmp_path}/list.txt")


def test_a_simulated_device_comes_out_as_it_was_written():
    found = check_arguments(["label", "s3://b/in", "--output", "s3://b/out", "--device", "simulated:20"])

    assert "--device=simulated:20" in found.words


def test_a_calibration_is_a_path_like_source_and_dest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["label", "s3://b/in", "--output", "s3://b/out", "--calibration"]

    local, remote = (check_arguments([*words, place]) for place in ("c.json", "s3://b/c.json"))

    assert local.local == ("c.json",)
    assert f"--calibration={tmp_path}/c.json" in local.words
    assert remote.local == ()
    assert "--calibration=s3://b/c.json" in remote.words
    with pytest.raises(ConfigError, match="has credentials in it"):
        check_arguments([*words, "s3://KEY:secret@b/c.json"])


def test_uris_are_no_local_paths():
    found = check_arguments(["label", "s3://b/in", "@s3://b/list.txt", "gs://c/in", "--output", "s3://b/out"])

    assert found.local == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing came after"),
        (["verify", "x"], "submit runs `label`"),
        (["label", "--output", "s3://b/o"], "SOURCE"),
        (["label", "s3://b/x", "--output", "s3://b/o", "--top-k", "0"], "--top-k"),
        (["label", "s3://b/x", "--output", "s3://b/o", "--address", "auto"], "before `--`"),
        (["label", "s3://b/x", "--output", "s3://b/o", "--config", "/no/such.yaml"], "--config"),
    ],
)
def test_arguments_that_label_would_refuse_are_refused_before_anything_is_sent(words, message):
    with pytest.raises(ConfigError, match=message):
        check_arguments(words)


def test_an_option_that_label_does_not_have_is_refused():
    words = ["submit", "--address", "http://127.0.0.1:1", "--", "label", "s3://b/x", "--output", "s3://b/o", "--topk=3"]

    done = CliRunner().invoke(build_app(), words)

    assert done.exit_code == 2
    assert "No such option: --topk" in done.output


def test_the_package_has_all_code_no_model_and_the_same_name_for_the_same_code():
    first, second = build_package(), build_package()

    names = list(code_files(ROOT))
    assert first == second
    assert len(first.content) < LIMIT_BYTES / 2
    assert "cluster/cli.py" in names
    assert "models/entries/synset.txt" in names
    assert not [name for name in names if name.endswith((".onnx", ".npz", ".pyc", ".tar"))]


def test_code_that_differs_in_a_byte_has_another_digest(tmp_path):
    for package in ("cluster", "models", "pipeline", "serve"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("x = 1\n")
    before = code_digest(tmp_path)

    (tmp_path / "serve" / "__init__.py").write_text("x = 2\n")

    assert code_digest(tmp_path) != before


def test_a_package_over_the_limit_names_the_file_that_makes_it_so(tmp_path):
    for package in ("cluster", "models", "pipeline", "serve"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / "models" / "weights.bin").write_bytes(bytes(range(256)) * 400)

    with pytest.raises(ConfigError, match=r"over the limit of 300: models/weights.bin alone has 102400"):
        build_package(tmp_path, limit_bytes=300)


def test_the_probe_finds_this_very_installation():
    assert installed_root() == ROOT


@pytest.mark.parametrize(
    ("address", "environment", "url"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("head:8265", {}, "http://head:8265"),
        ("https://ray.example.org/", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "https://ray.example.org"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "http://other:1"),
        (None, {"RAY_ADDRESS": "http://other:2"}, "http://other:2"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
    ],
)
def test_the_dashboard_is_found_as_rays_own_command_finds_it(address, environment, url):
    assert dashboard_url(address, environment) == url


@pytest.mark.parametrize(
    "words",
    [
        ["s3://KEYID:S3CRET@b/in", "--output", "s3://b/out"],
        ["@s3://b/list.txt?secret_key=S3CRET&access_key=KEYID", "--output", "s3://b/out"],
        ["s3://b/in", "--output", "s3://b/out?session_token=S3CRET"],
    ],
)
def test_credentials_in_a_uri_are_not_submitted_and_the_error_says_how_to_pass_them(words):
    with pytest.raises(ConfigError, match=r"has credentials in it.*--env AWS_ACCESS_KEY_ID") as raised:
        check_arguments(["label", *words])

    assert "S3CRET" not in str(raised.value)


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "head:port", "http://head:99999"])
def test_what_is_no_dashboard_is_refused(address):
    with pytest.raises(ConfigError, match="--address must be the URL"):
        dashboard_url(address, {})


def test_a_token_comes_from_the_environment_a_named_file_or_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / "token"
    token.write_text("from-file\n")

    assert auth_headers({"RAY_AUTH_TOKEN": "given"}) == {"Authorization": "Bearer given"}
    assert auth_headers({"RAY_AUTH_TOKEN_PATH": str(token)}) == {"Authorization": "Bearer from-file"}
    assert auth_headers({}) == {}
    assert auth_headers({"RAY_JOB_HEADERS": '{"X-A": "1"}'}) == {"X-A": "1"}
    with pytest.raises(ConfigError, match="cannot be read"):
        auth_headers({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="RAY_JOB_HEADERS"):
        auth_headers({"RAY_JOB_HEADERS": "[]"})


@contextmanager
def made_up_dashboard(answers: dict[str, tuple[int, object]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            status, content = answers.get(self.path.partition("?")[0], (404, "no"))
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def versions(ray: str, python: str) -> dict[str, tuple[int, object]]:
    return {
        "/api/version": (200, {"version": "4", "ray_version": ray, "session_name": "s"}),
        "/api/v0/cluster_metadata": (200, {"data": {"rayVersion": ray, "pythonVersion": python}}),
    }


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (versions("2.51.1", "3.11.9"), "the cluster runs Ray 2.51.1, but shardlabel"),
        (versions("2.60.0", "3.9.18"), "the cluster runs Python 3.9.18, but shardlabel needs 3.11 or newer"),
        ({"/api/version": (200, "<html>")}, "is not a Ray dashboard"),
        ({"/api/version": (401, "Unauthorized")}, "needs a token"),
    ],
    ids=["ray", "python", "no-ray", "token"],
)
def test_a_cluster_that_does_not_fit_is_one_line_and_exit_2(answers, message, tmp_path):
    with made_up_dashboard(answers) as url:
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", "submit", "--address", url, "--", "label", "s3://b/i",
             "--output", "s3://b/o"],
            capture_output=True, text=True, timeout=60, check=False, env={"PATH": "", "HOME": str(tmp_path)}, cwd=ROOT,
        )  # fmt: skip

    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--submission-id", "a/b", "--", "label", "s3://b/i", "--output", "s3://b/o"], "--submission-id must be"),
        (["--no-wait", "--retries", "2", "--", "label", "s3://b/i", "--output", "s3://b/o"], "--no-wait"),
        (["--env", "A-B=1", "--", "label", "s3://b/i", "--output", "s3://b/o"], "--env must be NAME"),
        (["--env", "NOT_SET_HERE", "--", "label", "s3://b/i", "--output", "s3://b/o"], "not set here"),
        ([], "nothing to run"),
    ],
    ids=["id", "no-wait", "env-name", "env-unset", "nothing"],
)
def test_bad_usage_of_submit_is_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        build_app()(["submit", *options], standalone_mode=False)


def test_code_that_was_sent_finds_the_bundled_model_where_the_cluster_has_it(tmp_path, monkeypatch):
    from models.catalog import load_spec
    from models.errors import ArtifactError
    from models.spec import Precision
    from models.store import locate

    installed = locate.BUNDLED
    spec = load_spec("efficientnet-lite0")
    monkeypatch.setattr(locate, "BUNDLED", tmp_path)  # what was sent has no models

    with pytest.raises(ArtifactError, match="in the cluster's image"):
        locate.locate(spec, Precision.INT8, download=False)
    monkeypatch.setenv(locate.ARTIFACTS_VARIABLE, str(installed))

    assert locate.locate(spec, Precision.INT8, download=False).is_relative_to(installed)
