"""Read one object or one file whole, in one try, and never more of it than is allowed."""

from __future__ import annotations

import asyncio
import os
import stat

from obstore.exceptions import BaseError

from models.errors import ShardlabelError
from pipeline.fetch.faults import FetchError, RefusedError, too_large
from pipeline.fetch.job import Job
from pipeline.storage.retries import Fault, classify, reason
from pipeline.storage.storage import Storage


async def read_object(bucket: Storage, key: str, job: Job) -> bytes:
    """Read an object.

    Raises:
        FetchError: It cannot be read.
        RefusedError: It is too large.
        NoRoomError: There is no memory for it now.
    """
    try:
        store, key = await asyncio.to_thread(bucket.object, key)  # may have to ask for its region
        result = await store.get_async(key)
        size = result.meta["size"]
        if size > job.most:
            raise too_large(size, job.most)
        job.hold(size, size)
        content = bytes(await result.bytes_async())
    except ShardlabelError as err:
        raise FetchError(str(err)[:300]) from err
    except (BaseError, OSError, ValueError) as err:
        raise FetchError(reason(err), again=classify(err) is not Fault.PERMANENT) from err
    if len(content) < size:
        raise FetchError("the answer was cut off", again=True)
    return content


async def read_file(path: str, job: Job) -> bytes:
    """Read a file of this machine's disks; see `read_object`."""
    try:
        descriptor = await asyncio.to_thread(_open, path)
        try:
            size = os.fstat(descriptor).st_size
            if size > job.most:
                raise too_large(size, job.most)
            job.hold(size, size)
            return await asyncio.to_thread(_read, descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise FetchError(reason(err), again=classify(err) is not Fault.PERMANENT) from err


def _open(path: str) -> int:
    # Without O_NONBLOCK, opening a pipe would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedError("unsupported", "not a regular file")
    return descriptor


def _read(descriptor: int, size: int) -> bytes:
    # Only this thread uses the file object: closing one waits for a read of it, and the event loop must not wait.
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(size)
