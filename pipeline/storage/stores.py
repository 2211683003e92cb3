"""From a path or URI to an object store and the place in it. One store per process and storage.

A storage is identified by a `root_uri`: scheme, bucket, and what is needed to reach it from any process. Credentials
come from the environment, profiles and the machine's identity, as obstore finds them, unless the URI itself has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from models.errors import SourceError
from pipeline.storage.retries import reason
from pipeline.storage.uris import QUERY, URI, display_uri, is_cut_secret

# A server that is silent for so long has stalled.
SILENCE_S = 15
CONNECT_TIMEOUT_S = 5
# obstore's retries of one request, within a second or two: resets, lost responses, throttling. `retried` takes longer.
_REQUEST_RETRIES = 3
# Maximum time of a whole request, however large: SILENCE_S ends one that stalls.
_LONGEST_REQUEST = timedelta(days=1)
_AZURE = ("az", "abfs", "abfss", "adl", "azure")
_GCS = ("gs", "gcs")
SCHEMES = ("s3", *_GCS, *_AZURE, "http", "https")
# Query options, as pyarrow's URIs have them.
_OPTIONS = {
    "s3": {"region", "scheme", "endpoint_override", "anonymous", "tls_ca_file_path", "force_virtual_addressing"},
    "gs": {"scheme", "endpoint_override", "anonymous", "retry_limit_seconds"},
    "az": {"account_name", "account_key", "anonymous", "blob_storage_authority", "blob_storage_scheme"},
}


def split_location(uri: str) -> tuple[str, str]:
    """Split a path or URI into its storage and the path in it, as written: only file:// and http:// are unescaped.

    A `?` begins the query only where a name and `=` follow: `s3://b/0?.tar` is a glob.

    Returns:
        (root_uri, path): root_uri is "" for local disks, else a URI without path, with endpoint and region where the
        environment names them; path is absolute, or begins with the bucket (container, host). No `/` at its end.

    Raises:
        SourceError: The URI is malformed, or its scheme is unknown.
    """
    match = URI.match(uri)
    if match is None:
        return "", absolute(uri)
    scheme, authority, rest = match[1].lower(), match[2], match[3]
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise SourceError(
                f"{display_uri(uri)}: a file URI is file:///folder/file, got a host: {authority.rpartition('@')[2]}"
            )
        return "", absolute(unquote(rest) or "/")
    _check_remote(uri, scheme, authority, rest)
    path, query = (*QUERY.split(rest, maxsplit=1), "")[:2]
    if scheme.startswith("http"):
        # For example a signature: the query belongs to each file of the address.
        return f"{scheme}://{authority}" + (f"?{query}" if query else ""), f"{authority}{unquote(path)}".rstrip("/")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if scheme in _AZURE:
        authority, path = _azure_container(uri, authority, path, options)
        scheme = "az"
        endpoint = os.environ.get("AZURE_STORAGE_ENDPOINT") or os.environ.get("AZURE_ENDPOINT")
        _add_endpoint(options, endpoint, "blob_storage_authority", "blob_storage_scheme")
    elif scheme == "s3":
        _add_s3_defaults(options)
    else:
        _add_endpoint(options, os.environ.get("STORAGE_EMULATOR_HOST"), "endpoint_override", "scheme")
    root_uri = f"{scheme}://{authority}" + (f"?{urlencode(options)}" if options else "")
    return root_uri, f"{authority.rpartition('@')[2]}{path}".rstrip("/")


def _check_remote(uri: str, scheme: str, authority: str, rest: str) -> None:
    if scheme not in SCHEMES:
        raise SourceError(f"{display_uri(uri)}: expected one of {', '.join(SCHEMES)}, or file, got {scheme}://")
    if is_cut_secret(authority, rest):
        raise SourceError(
            f"{display_uri(uri)}: the secret before the @ has a slash in it; write the slash as %2F, "
            "or better put the secret into the environment (AWS_SECRET_ACCESS_KEY)"
        )
    if not authority.rpartition("@")[2]:
        raise SourceError(f"{display_uri(uri)} names no bucket")
    if scheme.startswith("http") and "@" in authority:
        raise SourceError(
            f"{display_uri(uri)}: the address must not have a user name or password; expected https://HOST/PATH"
        )


def absolute(path: str) -> str:
    """Return a local path as an absolute one; `..` follows links, as in the operating system."""
    if path.startswith("/") and "/." not in path and "//" not in path:
        return path.rstrip("/") or "/"  # most paths, and a list may hold millions
    try:
        whole = Path(path).expanduser().absolute()
    except RuntimeError:  # ~nobody: not a user, but a file's name
        whole = Path(path).absolute()
    parts = whole.parts
    if ".." in parts:
        last = len(parts) - parts[::-1].index("..")
        whole = Path(*parts[:last]).resolve().joinpath(*parts[last:])
    return str(whole)


@lru_cache(maxsize=64)
def open_store(root_uri: str, silence_s: float = SILENCE_S) -> Any:  # noqa: ANN401 (obstore's stores have no common class)
    """Return the obstore store of a storage; the same one at each call. See `build_store`."""
    return build_store(root_uri, silence_s)


def build_store(root_uri: str, silence_s: float = SILENCE_S, address: str = "", *, past_proxies: bool = False) -> Any:  # noqa: ANN401
    """Return a new obstore store.

    Args:
        root_uri: See `split_location`.
        silence_s: How long its server may be silent. For an upload this counts from its beginning.
        address: A URL to request instead of the bucket's own: that of a folder in it, or of a relay (`odd_keys.py`).
        past_proxies: Whether to bypass the proxies of the environment.

    Raises:
        SourceError: An option is unknown, or the URI or the environment has a value that cannot be used.
    """
    match = URI.match(root_uri)
    assert match is not None
    scheme, authority = match[1], match[2]
    options = {} if scheme.startswith("http") else dict(parse_qsl(match[3].lstrip("?"), keep_blank_values=True))
    kind = "gs" if scheme in _GCS else scheme
    if unknown := sorted(options.keys() - _OPTIONS.get(kind, set())):
        known = ", ".join(sorted(_OPTIONS[kind]))
        raise SourceError(f"cannot open {display_uri(root_uri)}: expected options among {known}, got {unknown[0]!r}")
    for name in ("scheme", "blob_storage_scheme"):
        if options.get(name, "https") not in ("http", "https"):
            raise SourceError(f"cannot open {display_uri(root_uri)}: {name} is http or https")
    user, _, place = authority.rpartition("@")
    client: dict[str, Any] = {
        "allow_http": True,
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "read_timeout": timedelta(seconds=silence_s),
        "timeout": _LONGEST_REQUEST,
    }
    if past_proxies:  # obstore offers no other way than a proxy that excludes the only host
        client |= {"proxy_url": address, "proxy_excludes": urlsplit(address).hostname or ""}
    backoff = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=1), "base": 2}
    more = {
        "client_options": client,
        "retry_config": {"max_retries": _REQUEST_RETRIES, "backoff": backoff, "retry_timeout": timedelta(minutes=3)},
    }
    try:
        builder: Callable[..., Any] = _BUILDERS.get(kind, _http)
        return builder(root_uri, user, place, options | ({"address": address} if address else {}), more)
    except SourceError:
        raise
    except Exception as err:  # noqa: BLE001 (errors of obstore, and of the libraries that find credentials)
        # Not `from err`: the text of the cause may hold a key, and a log would show it.
        raise SourceError(f"cannot open {display_uri(root_uri)}: {_without(root_uri, reason(err))}") from None


def _s3(root_uri: str, user: str, bucket: str, options: dict[str, str], more: dict[str, Any]) -> Any:  # noqa: ANN401
    from obstore.store import S3Store

    # For one object a plain DELETE is enough and needs no extra permission; not every server supports the bulk request.
    config: dict[str, Any] = {"disable_bulk_delete": True, "region": options.get("region") or region_of_bucket(bucket)}
    if endpoint := options.get("endpoint_override"):
        config["endpoint"] = f"{options.get('scheme', 'https')}://{endpoint}"
    if is_true(options.get("force_virtual_addressing", "")):
        config["virtual_hosted_style_request"] = True
    if address := options.get("address"):  # the virtual-hosted style leaves it as it is
        config |= {"endpoint": address, "virtual_hosted_style_request": True}
    if certificate := options.get("tls_ca_file_path"):
        more["client_options"]["root_certificate"] = Path(certificate).read_text()
    if is_true(options.get("anonymous", "")):
        config["skip_signature"] = True
    elif user:
        key_id, _, secret = user.partition(":")
        config |= {"access_key_id": unquote(key_id), "secret_access_key": unquote(secret)}
    elif provider := _aws_profile(root_uri):
        return S3Store(bucket, credential_provider=provider, **config, **more)
    return S3Store(bucket, **config, **more)


def _gcs(root_uri: str, user: str, bucket: str, options: dict[str, str], more: dict[str, Any]) -> Any:  # noqa: ANN401
    from obstore.store import GCSStore

    config: dict[str, Any] = {}
    if endpoint := options.get("endpoint_override"):
        scheme = options.get("scheme", "https")
        config["base_url"] = f"{scheme}://{endpoint}"
        if scheme == "http":  # an emulator needs no token, but obstore would ask Google for one
            config["bearer_token"] = "emulator"
    if user == "anonymous" or is_true(options.get("anonymous", "")):
        config["skip_signature"] = True
    if address := options.get("address"):
        config["base_url"], _, bucket = address.rpartition("/")
    return GCSStore(bucket, **config, **more)


def _azure(root_uri: str, user: str, container: str, options: dict[str, str], more: dict[str, Any]) -> Any:  # noqa: ANN401
    from obstore.store import AzureStore

    config: dict[str, Any] = {name: options[name] for name in ("account_name", "account_key") if name in options}
    if host := options.get("blob_storage_authority"):
        # An emulator has the account in the path.
        account = "" if "/" in host else options.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        config["endpoint"] = f"{options.get('blob_storage_scheme', 'https')}://{host}/{account}".rstrip("/")
    if is_true(options.get("anonymous", "")):
        config["skip_signature"] = True
    if address := options.get("address"):
        config["endpoint"], _, container = address.rpartition("/")
    return AzureStore(container, **config, **more)


def _http(root_uri: str, user: str, host: str, options: dict[str, str], more: dict[str, Any]) -> Any:  # noqa: ANN401
    from obstore.store import HTTPStore

    return HTTPStore(root_uri, **more)


_BUILDERS: dict[str, Callable[..., Any]] = {"s3": _s3, "gs": _gcs, "az": _azure}


def is_true(text: str) -> bool:
    """Tell whether an option's value means true."""
    return text.lower() in ("true", "1", "yes")


def _add_s3_defaults(options: dict[str, str]) -> None:
    """Add the environment's endpoint and region, if any, so that other processes find them in the URI."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    _add_endpoint(options, endpoint, "endpoint_override", "scheme")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or "endpoint_override" in options:
        options.setdefault("region", region or "us-east-1")


def _add_endpoint(options: dict[str, str], found: str | None, host: str, scheme: str) -> None:
    """Add an endpoint of the environment to the options, and split one that is written as a URL."""
    if found:
        options.setdefault(host, found if "://" in found else f"http://{found}")
    before, separator, rest = options.get(host, "").partition("://")
    if separator:
        options[host] = rest.rstrip("/")
        options.setdefault(scheme, before)


@lru_cache(maxsize=64)
def region_of_bucket(bucket: str) -> str:
    """Ask AWS for a bucket's region, which is public; us-east-1 if it does not answer."""
    import requests

    try:
        answer = requests.head(f"https://{quote(bucket)}.s3.amazonaws.com", timeout=CONNECT_TIMEOUT_S)
    except requests.RequestException:
        return "us-east-1"
    return answer.headers.get("x-amz-bucket-region", "us-east-1")


def _aws_profile(root_uri: str) -> Any:  # noqa: ANN401 (boto3 may not be there)
    """Return boto3's credentials of a profile, SSO included; None if the environment has keys, or there is no profile.

    Raises:
        SourceError: AWS_PROFILE is set and boto3 is missing.
    """
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return None
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    if not os.environ.get("AWS_PROFILE") and not file.is_file():
        return None
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if not os.environ.get("AWS_PROFILE"):
            return None
        raise SourceError(
            f"cannot open {display_uri(root_uri)}: AWS_PROFILE is set, and profiles need boto3: pip install boto3"
        ) from None
    session = boto3.Session()
    return Boto3CredentialProvider(session) if session.get_credentials() else None


def _azure_container(uri: str, authority: str, path: str, options: dict[str, str]) -> tuple[str, str]:
    """Return container and path of an Azure URI in any of the forms that pyarrow and fsspec know.

    az://container, abfss://container@account.dfs.core.windows.net, and abfss://:key@account.blob.core.windows.net/container.
    """
    user, _, place = authority.rpartition("@")
    name, _, secret = user.partition(":")
    if secret:
        options.setdefault("account_key", unquote(secret))
    if ".dfs." in place or ".blob." in place:
        options.setdefault("account_name", place.partition(".")[0])
        if ".dfs." in place and name:
            return name, path
        container, _, rest = path.lstrip("/").partition("/")
        if not container:
            _no_container(uri)
        return container, f"/{rest}" if rest else ""
    if name:
        options.setdefault("account_name", name)
    return place, path


def _no_container(uri: str) -> NoReturn:
    raise SourceError(f"{display_uri(uri)} names no container; expected az://CONTAINER/PATH")


# Shorter values of a URI's options may be in an error: a region, a scheme.
_SHORTEST_SECRET = 8


def _without(root_uri: str, text: str) -> str:
    """Return a text without a URI's credentials and options, in whatever pieces the text repeats them."""
    uri = URI.match(root_uri)
    user = uri[2].rpartition("@")[0] if uri else ""
    options = [value for _, value in parse_qsl(uri[3].lstrip("?"))] if uri else []
    secrets = [root_uri, user, *user.split(":"), *(value for value in options if len(value) >= _SHORTEST_SECRET)]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "...")
    return text
