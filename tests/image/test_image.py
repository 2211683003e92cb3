"""The image, built and run: `make test-image`. Its first run makes a base and builds for minutes; later ones change layers.

Only when asked for (SHARDLABEL_TEST_IMAGE): they want root, buildah, debootstrap, a package index, and 6 GB in `.image`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pods import run_in_image

ROOT = Path(__file__).parents[2]
WORK = ROOT / ".image"
BASE = "localhost/debian-python"
IMAGE = "localhost/shardlabel"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")
SITE = "/opt/shardlabel/lib/python3*/site-packages"
MODEL = "efficientnet-lite0"
LAYERS = 7

pytestmark = [
    pytest.mark.timeout(3600),
    pytest.mark.skipif("SHARDLABEL_TEST_IMAGE" not in os.environ, reason="builds an image: make test-image"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make the namespaces that the image runs in"),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed (Debian's package {package})")
        for tool, package in (("buildah", "buildah"), ("debootstrap", "debootstrap"), ("setpriv", "util-linux"))
    ),
]


def storage() -> dict[str, str]:
    """Return an environment in which buildah keeps all it has in a folder of the tests."""
    WORK.mkdir(exist_ok=True)
    conf = WORK / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{WORK}/storage"\nrunroot = "{WORK}/run"\n')
    return {**os.environ, "CONTAINERS_STORAGE_CONF": str(conf), "BUILDAH_ISOLATION": "chroot"}


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    """Run a command, and return what it prints."""
    done = subprocess.run(words, cwd=cwd, env=storage(), check=False, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout.strip()


def make(target: str, context: Path) -> list[str]:
    """Build a target from a folder with `make`, and return its layers."""
    run("make", f"--directory={context}", target, f"IMAGE={IMAGE}", "TAG=test", f"BASE={BASE}")
    device = "cuda" if target == "image-cuda" else "cpu"
    return list(
        json.loads(run("buildah", "inspect", "--type=image", f"{IMAGE}:test-{device}"))["OCIv1"]["rootfs"]["diff_ids"]
    )


def build_base() -> None:
    """Make the base by debootstrap: no registry of images has to be reached."""
    if BASE in run("buildah", "images", "--format={{.Name}}").split():
        return
    folder = WORK / "base"
    shutil.rmtree(folder, ignore_errors=True)
    run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder)
    # It trusts whom this machine trusts, where that is an index behind a certificate of one's own.
    if (Path("/") / CERTIFICATES).exists():
        shutil.copy(Path("/") / CERTIFICATES, folder / CERTIFICATES)
        (folder / "etc/pip.conf").write_text(f"[global]\ncert = /{CERTIFICATES}\n")
    box = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", box, folder, "/")
    run("buildah", "commit", "--quiet", "--rm", box, BASE)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def layers():
    build_base()
    return make("image", ROOT)


@pytest.fixture(scope="module")
def image(layers):
    """Return the image's file system."""
    box = run("buildah", "from", f"{IMAGE}:test-cpu")
    yield Path(run("buildah", "mount", box))
    run("buildah", "rm", box)


def test_it_cannot_be_written_to_by_whom_it_runs_as(image):
    done = run_in_image(image, "id -u; grep CapEff /proc/self/status; touch /x || touch /home/ray/x || echo no", 60)

    assert done.stdout.splitlines()[0] == "1000"
    assert "CapEff:\t0000000000000000" in done.stdout
    assert done.stdout.splitlines()[-1] == "no"


def test_a_login_shell_finds_ray_and_the_command(image):
    done = run_in_image(image, "env --ignore-environment bash -lc 'ray --version && shardlabel --version'", 120)

    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("ray, version 2.")


def test_it_labels(image):
    done = run_in_image(
        image, f"shardlabel label {SITE}/models/samples/photos.tar --output /tmp/out --model {MODEL} --json", 300
    )

    assert done.returncode == 0, done.stdout
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["images"], said["ok"]) == (8, 8)


ASK = """
import glob, tarfile, urllib.request
tar = tarfile.open(glob.glob("/opt/shardlabel/lib/python3*/site-packages/models/samples/photos.tar")[0])
image = tar.extractfile(next(m for m in tar if m.name.endswith(".jpg"))).read()
request = urllib.request.Request("http://127.0.0.1:8000/v1/classify", image, {"Content-Type": "image/jpeg"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def test_it_serves(image):
    done = run_in_image(
        image,
        f"shardlabel serve --model {MODEL} --device cpu --port 8000 > /tmp/log 2>&1 &\n"
        "for second in $(seq 240); do wget -qO /dev/null http://127.0.0.1:8000/v2/health/ready && break; sleep 1; done\n"
        f"python -c '{ASK}' || cat /tmp/log\nkill %1; wait %1; echo ended $?",
        400,
    )

    answer, ended = done.stdout.splitlines()[-2:]
    assert json.loads(answer)["results"][0]["status"] == "ok", done.stdout
    assert ended == "ended 0"


def test_a_cluster_of_it_takes_a_submission_and_needs_no_code_sent(image):
    done = run_in_image(
        image,
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(printf '%064d' 7)\n"
        "ray start --head --num-cpus 2 --object-store-memory 100000000 > /tmp/log 2>&1\n"
        f"shardlabel submit --address http://127.0.0.1:8265 -- label {SITE}/models/samples/photos.tar"
        f" --output /tmp/out --model {MODEL}",
        400,
    )

    assert "nothing is sent" in done.stdout, done.stdout
    assert done.stdout.rstrip().endswith("succeeded")


def test_a_change_of_code_changes_the_last_layer_alone(layers, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("models", "pipeline", "serve", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "pipeline" / "__init__.py").open("a") as file:
        file.write("# changed\n")

    changed = make("image", tmp_path)

    assert len(layers) == LAYERS
    assert changed[:-1] == layers[:-1]
    assert changed[-1] != layers[-1]
