"""Paths and URIs as text: where their parts end, and how they are shown and stored without their secrets."""

from __future__ import annotations

import re

URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)$", re.DOTALL)
# A `?` begins the query only where a name and `=` follow: `s3://b/0?.tar` is a glob.
QUERY = re.compile(r"\?(?=[A-Za-z_][\w-]*=)")
# A URI in a text, up to a blank, a quote, a comma before the next URI, or the sentence's punctuation.
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?!,[a-z][a-z0-9+.-]*://)[^\s'\"`<>])+(?<![.,:;)])")
# In these a name before the @ is a container or an account, or not secret (gs://anonymous@); a secret follows a colon.
_NAMED = ("abfs", "az", "adl", "gs", "gcs")
# Options of pyarrow's URI forms, and of signed URLs of S3, GCS and Azure.
_SECRET_OPTION = re.compile(
    r"[?&#;](?:[\w-]*(?:key|token|secret|passw|signature|credential)[\w-]*|sig)=", re.IGNORECASE
)


def display_uri(uri: str) -> str:
    """Return a path or URI without credentials and options, so that it may be shown and stored."""
    match = URI.match(uri)
    if match is None:
        return uri
    scheme, authority, rest = match[1], match[2], QUERY.split(match[3], maxsplit=1)[0]
    name, at, host = authority.rpartition("@")
    if is_cut_secret(authority, match[3]):  # s3://KEY:sec/ret@bucket/x: an unescaped slash in the secret
        host, rest = "...", (rest.rpartition("@")[2] if "@" in rest else "")
        return f"{scheme}://{host}{'@' if rest else ''}{rest}"
    if scheme.lower().startswith(("http", "ws")):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    if at and scheme.lower().startswith(("abfs", "az", "adl")) and ":" not in name:
        host = authority
    return f"{scheme}://{host}{rest}"


def without_secrets(text: str) -> str:
    """Return a text with every URI in it as `display_uri` shows it."""
    return _IN_TEXT.sub(lambda match: display_uri(match[0]), text) if "://" in text else text


def has_secrets(uri: str) -> bool:
    """Tell whether a URI holds credentials: keys or a password before the host, or an option with such a name."""
    match = URI.match(uri)
    if match is None:
        return False
    scheme, authority = match[1].lower(), match[2]
    name = authority.rpartition("@")[0]
    if is_cut_secret(authority, match[3]) or (name and (":" in name or not scheme.startswith(_NAMED))):
        return True
    return _SECRET_OPTION.search(match[3]) is not None


def is_cut_secret(authority: str, rest: str) -> bool:
    """Tell whether the text before the first slash is a key and the beginning of its secret, not host:port."""
    _, colon, port = authority.rpartition(":")
    is_port = port.isdigit() or (not port and "@" not in rest)
    return bool(colon) and "@" not in authority and not is_port and not authority.endswith("]")
