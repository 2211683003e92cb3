"""A small in-memory GCS server with the XML calls that obstore makes, including generations and preconditions.

Available emulators do not support preconditions; this one handles `x-goog-if-generation-match` and `If-Match` as
described at https://cloud.google.com/storage/docs/xml-api/reference-headers.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.support.object_server import BUCKET, ObjectServer


@dataclass(frozen=True)
class Object:
    content: bytes
    generation: int
    written: float

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.content).hexdigest()}"'


@dataclass
class Objects:
    """The objects in the bucket."""

    found: dict[str, Object] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    generation: int = 1_000_000

    def put(self, key: str, content: bytes, wanted: int | None = None) -> Object | None:
        """Write an object; return None if its current generation (0 if it does not exist) is not the wanted one."""
        with self.lock:
            there = self.found.get(key)
            if wanted is not None and wanted != (there.generation if there else 0):
                return None
            self.generation += 1
            self.found[key] = Object(content, self.generation, float(self.generation))
            return self.found[key]


@dataclass(frozen=True)
class GcsServer(ObjectServer):
    objects: Objects = field(default_factory=Objects)

    @property
    def scheme(self) -> str:
        return "gs"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": endpoint or self.url}

    def put(self, key: str, content: bytes) -> None:
        self.objects.put(key, content)

    def delete(self, key: str) -> None:
        self.objects.found.pop(key, None)

    def get(self, key: str) -> bytes | None:
        found = self.objects.found.get(key)
        return found.content if found else None

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in list(self.objects.found) if key.startswith(prefix))


@contextmanager
def running_gcs(folder: Path) -> Iterator[GcsServer]:
    """Run the server until the block ends; the bucket starts with the files of `folder/BUCKET`."""
    objects = Objects()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"objects": objects}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        running = GcsServer(server.server_address[1], folder, objects)
        running.put_folder(folder / BUCKET)
        yield running
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: Objects

    def log_message(self, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.startswith(f"/{BUCKET}/"):
            self._error(404, "NoSuchBucket")
            return
        wanted = self.headers.get("x-goog-if-generation-match")
        found = self.objects.put(self._key(), content, None if wanted is None else int(wanted))
        if found is None:
            self._error(412, "PreconditionFailed")
        else:
            self._answer(200, {"ETag": found.etag, "x-goog-generation": str(found.generation)})

    def do_GET(self) -> None:
        bucket, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
        if bucket != BUCKET:
            self._error(404, "NoSuchBucket")
        elif not key:
            self._list(parse_qs(urlsplit(self.path).query, keep_blank_values=True))
        elif (found := self.objects.found.get(self._key())) is None:
            self._error(404, "NoSuchKey")
        elif self.headers.get("If-Match", found.etag) != found.etag:
            self._error(412, "PreconditionFailed")
        else:
            self._send_object(found)

    do_HEAD = do_GET  # noqa: N815 (names are http.server's)

    def do_DELETE(self) -> None:
        if self.objects.found.pop(self._key(), None) is None:
            self._error(404, "NoSuchKey")
        else:
            self._answer(204, {})

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path.lstrip("/").partition("/")[2])

    def _send_object(self, found: Object) -> None:
        size = len(found.content)
        headers = {"ETag": found.etag, "x-goog-generation": str(found.generation),
                   "Last-Modified": formatdate(found.written, usegmt=True)}  # fmt: skip
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if not wanted:
            self._answer(200, headers, found.content)
            return
        first, _, last = wanted.partition("-")
        start, end = int(first), min(size, int(last) + 1) if last else size
        if start >= size:
            self._error(416, "InvalidRange")
        else:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self._answer(206, headers, found.content[start:end])

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        most = int(query.get("max-keys", ["1000"])[0])
        keys = sorted(key for key in list(self.objects.found) if key.startswith(prefix) and key > after)
        folders, files = [], []
        for key in keys:
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.append(prefix + head + delimiter)
            else:
                files.append(key)
        more = f"<NextContinuationToken>{escape(files[most - 1])}</NextContinuationToken>" if len(files) > most else ""
        text = "".join(self._entry(key) for key in files[:most])
        text += "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in dict.fromkeys(folders)
        )
        self._answer(200, {"Content-Type": "application/xml"},
                     f"<?xml version='1.0'?><ListBucketResult>{more}{text}</ListBucketResult>".encode())  # fmt: skip

    def _entry(self, key: str) -> str:
        found = self.objects.found[key]
        return (
            f"<Contents><Key>{escape(key)}</Key><Size>{len(found.content)}</Size><ETag>{escape(found.etag)}</ETag>"
            f"<Generation>{found.generation}</Generation><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        )

    def _error(self, status: int, code: str) -> None:
        self._answer(status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
