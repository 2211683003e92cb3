"""Azurite, Microsoft's emulator of Azure Blob Storage, with one container."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.support.object_server import BUCKET, ObjectServer, end, free_port, wait_until_open

# `make test` installs it here.
_AZURITE = Path(__file__).parents[2] / ".azurite" / "node_modules" / ".bin" / "azurite-blob"
# The emulator's public credentials: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass(frozen=True)
class AzureServer(ObjectServer):
    @property
    def scheme(self) -> str:
        return "az"

    @cached_property
    def client(self) -> Any:
        """Return Microsoft's client for the container, which bypasses every proxy."""
        from azure.storage.blob import ContainerClient

        return ContainerClient(
            f"{self.url}/{ACCOUNT}", BUCKET, credential={"account_name": ACCOUNT, "account_key": KEY}
        )

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{endpoint or self.url}/{ACCOUNT}",
        }

    def put(self, key: str, content: bytes) -> None:
        self.client.upload_blob(key, content, overwrite=True)

    def delete(self, key: str) -> None:
        self.client.delete_blob(key)

    def get(self, key: str) -> bytes | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            return bytes(self.client.download_blob(key).readall())
        except ResourceNotFoundError:
            return None

    def keys(self, prefix: str = "") -> list[str]:
        return [str(blob.name) for blob in self.client.list_blobs(name_starts_with=prefix)]


def azurite() -> str | None:
    """Return the emulator's command; None if it is not installed."""
    return str(_AZURITE) if _AZURITE.exists() and shutil.which("node") else shutil.which("azurite-blob")


@contextmanager
def running_azure(folder: Path) -> Iterator[AzureServer]:
    """Run the emulator until the block ends; the container starts with the files of `folder/BUCKET`."""
    folder.mkdir(parents=True, exist_ok=True)
    command, port = azurite(), free_port()
    assert command is not None, "azurite is missing"
    with (folder.parent / f"{folder.name}-azurite.log").open("wb") as log:
        process = subprocess.Popen(
            [command, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--skipApiVersionCheck",
             "--disableTelemetry", "--inMemoryPersistence"],
            stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ),
        )  # fmt: skip
        try:
            wait_until_open(port, process)
            server = AzureServer(port, folder)
            server.client.create_container()
            server.put_folder(folder / BUCKET)
            yield server
        finally:
            end(process)
