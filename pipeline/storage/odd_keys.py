r"""Keys that object stores allow and paths do not: `a//b.jpg`, `a/../b.jpg`, `a\x01.jpg`.

obstore reads the names of a listing as paths, and refuses a whole page for a name that is not one. Such pages come
through a relay (`relay.py`), which encodes segments of such names so that obstore accepts them; this module decodes
them. A key with an empty segment can be fetched from the address of the folder before it. A key with a segment that
means another folder to every web client, or with a control character, cannot be fetched; `unreadable` says so.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote

from pipeline.storage.stores import build_store, is_true, region_of_bucket
from pipeline.storage.uris import URI

# Begins a segment that is encoded in hexadecimal: a character of the private use area.
_MARK = "\uf6d1"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DOTS = (".", "..")
NO_FOLDER = (
    "a folder with `//`, `.`, `..` or a control character in its name cannot be listed by itself; give the folder above, "
    "and choose by a pattern (**/*.tar), or name the files (a list, or a range)"
)


def unreadable(key: str) -> str | None:
    """Say why the object of a key cannot be fetched; None if it can."""
    if key.isprintable() and "/." not in key and not key.startswith("."):
        return None  # nearly all keys, of which there are millions
    if found := _CONTROL.search(key):
        return f"its key has a control character ({visible(found[0])}), and cannot be fetched; rename the object"
    if dots := [segment for segment in key.split("/") if segment in _DOTS]:
        return f"its key has a segment {dots[0]!r}, and cannot be fetched; rename the object"
    return None


def visible(text: str) -> str:
    r"""Return a text with its control characters escaped, as in `a\x01.jpg`."""
    if text.isprintable():
        return text
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def passable(key: str) -> str:
    """Encode a key so that obstore accepts it as a path; `original` decodes it. A `/` at an end is left to obstore."""
    if key in ("", "/"):
        return key
    first, last = key.startswith("/"), key.endswith("/")
    inner = key[first : len(key) - last]
    return "/" * first + "/".join(map(_passable_segment, inner.split("/"))) + "/" * last


def _passable_segment(segment: str) -> str:
    if segment and segment not in _DOTS and not segment.startswith(_MARK) and not _CONTROL.search(segment):
        return segment
    return _MARK + segment.encode().hex()


def original(path: str) -> str:
    """Return the key that `passable` encoded."""
    if _MARK not in path:
        return path
    return "/".join(
        bytes.fromhex(segment.removeprefix(_MARK)).decode() if segment.startswith(_MARK) else segment
        for segment in path.split("/")
    )


def is_path(key: str) -> bool:
    """Tell whether obstore accepts a key as a path, and does not change it."""
    return passable(key) == key and not key.endswith("/")


def store_behind_empty_segment(root_uri: str, key: str) -> tuple[Any, str]:
    """Return an obstore store of the folder before the last `//` of a key, and the object's name there.

    For `a//b.jpg` it is `b.jpg`, in `a/`.
    """
    folder, _, name = key.rpartition("//")
    return _folder_store(root_uri, folder), name


# A cache beside that of the buckets' own stores, so that many such folders do not evict those.
@lru_cache(maxsize=64)
def _folder_store(root_uri: str, folder: str) -> Any:  # noqa: ANN401 (obstore's stores have no common class)
    return build_store(root_uri, address=f"{bucket_address(root_uri)}/{quote(folder)}/")


def bucket_address(root_uri: str) -> str:
    """Return the URL of a bucket (container), as obstore requests it."""
    match = URI.match(root_uri)
    assert match is not None
    kind, bucket = match[1], quote(match[2].rpartition("@")[2])
    options = dict(parse_qsl(match[3].lstrip("?"), keep_blank_values=True))
    if kind == "az":
        account = options.get("account_name") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
        host = options.get("blob_storage_authority", "")
        if not host:
            return f"https://{account}.blob.core.windows.net/{bucket}"
        # An emulator has the account in the path.
        host = host if "/" in host else f"{host}/{account}"
        return f"{options.get('blob_storage_scheme', 'https')}://{host}/{bucket}"
    scheme, host = options.get("scheme", "https"), options.get("endpoint_override", "")
    if kind != "s3":
        return f"{scheme}://{host or 'storage.googleapis.com'}/{bucket}"
    is_virtual = is_true(options.get("force_virtual_addressing", ""))
    if host:
        return f"{scheme}://{host}" + ("" if is_virtual else f"/{bucket}")
    region = options.get("region") or region_of_bucket(bucket)
    return (
        f"https://{bucket}.s3.{region}.amazonaws.com" if is_virtual else f"https://s3.{region}.amazonaws.com/{bucket}"
    )
