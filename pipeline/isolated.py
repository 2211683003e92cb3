"""Decode in a process of its own, for units that brought one down: a poison image then costs a row, not the run.

`python -m pipeline.isolated` is that process. It reads pickled requests from its standard input and answers on its
standard output; both are pipes to the worker that started it, and nobody else's.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import subprocess
import sys
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from models.decode import DecodedImage, DecodeMode, ImageLimits, decode_image
from models.errors import InputError, UndecodableImageError
from models.spec import Preprocessing

_LENGTH = struct.Struct("<Q")


class IsolatedDecoder:
    """Decode like `models.decode.decode_image`, in a child process that may die or hang. Use as a context manager.

    Args:
        preprocessing: How images become pixels.
        mode: fast or exact.
        limits: On the size of an image.
        timeout_s: An image that takes longer is undecodable, and its process is ended.
    """

    def __init__(self, preprocessing: Preprocessing, mode: DecodeMode, limits: ImageLimits, timeout_s: float) -> None:
        self._settings = (preprocessing, mode, limits)
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedDecoder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def decode(self, data: bytes, out: npt.NDArray[np.uint8]) -> DecodedImage:
        """Decode one image into `out`.

        Raises:
            InputError: As `decode_image`; UndecodableImageError too where the decoder died or took too long.
        """
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _send(child.stdin, data)
            ready, _, _ = select.select([child.stdout], [], [], self._timeout_s)
            answer = _receive(child.stdout) if ready else None
        except (BrokenPipeError, EOFError):
            child.wait()
            raise UndecodableImageError(f"the decoder died ({_how(child.returncode)})") from None
        if answer is None:
            self._end()
            raise UndecodableImageError(f"the decoder took longer than {self._timeout_s:g} s")
        if isinstance(answer, InputError):
            raise answer
        pixels, width, height = answer
        out[...] = pixels
        return DecodedImage(out, width, height)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._child.stdin is not None
        _send(self._child.stdin, self._settings)
        return self._child

    def _end(self) -> None:
        if self._child is None:
            return
        self._child.kill()
        self._child.communicate()
        self._child = None


def _how(returncode: int) -> str:
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"exit {returncode}"


def _send(pipe: IO[bytes], value: object) -> None:
    content = pickle.dumps(value)
    pipe.write(_LENGTH.pack(len(content)) + content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:  # noqa: ANN401 (whatever the other end sent)
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return pickle.loads(content)


def _serve() -> None:
    """Answer requests until the other end closes."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a library prints must not get between the answers
    preprocessing, mode, limits = _receive(requests)
    while True:
        try:
            data = _receive(requests)
        except EOFError:
            return
        try:
            image = decode_image(data, preprocessing, mode, limits)
            _send(answers, (image.pixels, image.width, image.height))
        except InputError as err:
            _send(answers, err)


if __name__ == "__main__":
    _serve()
