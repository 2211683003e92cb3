"""URIs with secrets in them: none is in what is shown, and those without stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import ConfigError, SourceError
from pipeline.config import SourceFormat, build_config
from pipeline.sources.source import open_source
from pipeline.storage.storage import open_storage
from pipeline.storage.uris import display_uri, has_secrets, without_secrets

WITH = {
    "s3://KEYID:W0RDOFMOUTH@bucket/a/b.tar": "s3://bucket/a/b.tar",
    "s3://KEYID:W0RD%2FOFMOUTH@bucket/{0..9}.tar": "s3://bucket/{0..9}.tar",
    "s3://KEYID:/W0RDOFMOUTH@bucket/a": "s3://...@bucket/a",
    "s3://KEYID:W0RD/OF/W0RDOFMOUTH@bucket/a": "s3://...@bucket/a",  # not escaped: the slash is taken for the end
    "s3://bucket/a?secret_key=W0RDOFMOUTH&region=r": "s3://bucket/a",
    "s3://bucket/a?region=r&session_token=W0RDOFMOUTH": "s3://bucket/a",
    "abfss://cont@acc.dfs.core.windows.net/a?sas_token=W0RDOFMOUTH": "abfss://cont@acc.dfs.core.windows.net/a",
    "abfss://acc:W0RDOFMOUTH@cont/a": "abfss://cont/a",
    "az://acc:W0RDOFMOUTH@cont/a": "az://cont/a",
    "https://user:W0RDOFMOUTH@host:8443/a.tar": "https://host:8443/a.tar",
    "https://b.s3.amazonaws.com/a.tar?X-Amz-Date=1&X-Amz-Signature=W0RDOFMOUTH": "https://b.s3.amazonaws.com/a.tar",
    "https://acc.blob.core.windows.net/c/a?sv=1&sig=W0RDOFMOUTH": "https://acc.blob.core.windows.net/c/a",
}
WITHOUT = [
    "s3://b/0?.tar",
    "abfss://cont@acc.dfs.core.windows.net/a",
    "az://acc@cont/a",
    "/a@b:c/d",
    "a?key=1",
    "s3://b/a@1:2/x",
]


@pytest.mark.parametrize(("uri", "shown"), WITH.items())
def test_a_secret_is_seen_and_is_not_shown(uri: str, shown: str) -> None:
    assert has_secrets(uri)
    assert display_uri(uri) == shown
    assert without_secrets(f"SOURCE @{uri} and '{uri}', or {uri}") == f"SOURCE @{shown} and '{shown}', or {shown}"


@pytest.mark.parametrize("uri", WITHOUT)
def test_what_holds_no_secret_stays(uri: str) -> None:
    assert not has_secrets(uri)
    assert display_uri(uri) == uri
    assert without_secrets(f"all of {uri} is gone") == f"all of {uri} is gone"


@pytest.mark.parametrize(
    "text",
    [
        "cannot open s3://b: no answer", "nothing answers at http://127.0.0.1:8265: refused", "(see http://[::1]:80)",
        "give http://127.0.0.1:8265; or another", "s3://b/a, s3://b/{b,c}.tar and s3://b/c.", "no URI: a://b",
    ],
)  # fmt: skip
def test_a_sentence_without_secrets_stays(text: str) -> None:
    assert without_secrets(text) == text


def failure(source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises((SourceError, ConfigError)) as raised:
        open_source([source], SourceFormat.AUTO)
    seen, err = "", raised.value
    while err is not None:  # what a log with the causes would show
        seen, err = f"{seen}\n{err!r}", err.__cause__
    return seen


@pytest.mark.parametrize(
    "source",
    [
        "s3://KEYID:W0RD/OFMOUTH@b/x.tar", "s3://KEYID:W0RDOFMOUTH@b/x?region=r&colour=W0RDOFMOUTH", "s3://KEYID:W0RDOFMOUTH@",
        "file://KEYID:W0RDOFMOUTH@host/x", "https://KEYID:W0RDOFMOUTH@host/x.tar", "s3://KEYID:W0RDOFMOUTH@b/x?region=r&scheme=W0RDOFMOUTH",
        "abfss://acc:W0RDOFMOUTH@[bad/x",
    ],
)  # fmt: skip
def test_no_error_of_a_source_shows_its_secret(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = failure(source, monkeypatch)

    assert "OFMOUTH" not in seen
    assert "KEYID" not in seen


def test_no_error_of_a_list_shows_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list").write_text(
        "s3://KEYID:W0RDOFMOUTH@b/x.tar\ns3://KEYID:W0RDOFMOUTH@other/x.tar?endpoint_override=h:1\n"
    )

    seen = failure(f"@{tmp_path}/list", monkeypatch)

    assert "all of SOURCE must be in one storage and bucket, got s3://b and s3://other/x.tar" in seen
    assert "OFMOUTH" not in seen


def test_no_error_of_a_setting_shows_a_secret() -> None:
    with pytest.raises(ConfigError) as raised:
        build_config({"source": ["in"], "output": ["s3://KEYID:W0RDOFMOUTH@b/x"]})

    assert "W0RDOFMOUTH" not in str(raised.value)


def test_a_place_is_the_same_whoever_comes_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    places = {open_storage(f"s3://{who}b/x").uri for who in ("", "KEYID:W0RDOFMOUTH@", "OTHER:0TH3R@")}

    assert places == {"s3://b/x"}
