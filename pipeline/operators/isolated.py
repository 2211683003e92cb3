"""Decode and label in a child process, for units that killed theirs: the image at fault then costs only its row.

`python -m pipeline.operators.isolated FD` is that process. It takes requests and answers them over a socket that only the
worker that started it holds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.decode.decode import DecodedImage, DecodeMode, ImageLimits, decode_image
from models.errors import InferenceError, ShardlabelError, UndecodableImageError
from models.parent import end_with_parent
from models.spec import Preprocessing

if TYPE_CHECKING:
    # A child that decodes starts sooner without this import.
    from models.inference.predictions import Labeller, Predictions, UInt8Array

# Time until a child is ready: the largest models take minutes, and TensorRT may build its engine first.
START_S = 900.0


class ChildLostError(Exception):
    """The child died, or took too long and was killed; the message says which."""


class Child:
    """Calls a function in a child process that may die or hang; the first call starts it, and one after a loss restarts it.

    Args:
        make: Returns the function, in the child; picklable.
        timeout_s: A call that takes longer kills the child. Its startup is not counted.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], timeout_s: float) -> None:
        self._make = make
        self.timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any]

    def call(self, argument: object) -> Any:  # noqa: ANN401 (whatever the function returns)
        """Return what the function returns.

        Raises:
            ChildLostError: The child died or took too long.
            ShardlabelError: The function or `make` raised it.
        """
        if self._process is None or self._process.poll() is not None:
            self._start()
        return self._ask(argument, self.timeout_s)

    def end(self) -> None:
        """Kill the process; the next call starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._connection.close()

    def _start(self) -> None:
        self.end()
        self._connection, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self._process = subprocess.Popen(
                # -P: the working directory is not on its path, where a `pipeline` of the user's project would hide ours.
                [sys.executable, "-P", "-m", "pipeline.operators.isolated", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        try:
            self._ask(self._make, START_S)
        except ShardlabelError:
            self.end()
            raise

    def _ask(self, argument: object, timeout_s: float) -> Any:  # noqa: ANN401 (whatever the child answers)
        assert self._process is not None
        try:
            self._connection.send(argument)
            if not self._connection.poll(timeout_s):
                self.end()
                raise ChildLostError(f"took longer than {timeout_s:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._connection.close()  # a child that still lives ends then
            code = self._process.wait()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
            self.end()
            raise ChildLostError(f"died ({how})") from None
        if isinstance(answer, ShardlabelError):
            raise answer
        return answer


class IsolatedDecoder(AbstractContextManager["IsolatedDecoder"]):
    """Decodes like `models.decode.decode.decode_image`, in a child process.

    Args:
        preprocessing: How images become pixels.
        mode: fast or exact.
        limits: Limits on the size of an image.
        timeout_s: An image that takes longer is undecodable.
    """

    def __init__(self, preprocessing: Preprocessing, mode: DecodeMode, limits: ImageLimits, timeout_s: float) -> None:
        self._child = Child(partial(_decoder, preprocessing, mode, limits), timeout_s)

    def __exit__(self, *exc: object) -> None:
        self._child.end()

    def decode(self, data: bytes, out: npt.NDArray[np.uint8]) -> DecodedImage:
        """Decode one image into `out`.

        Raises:
            InputError: See `decode_image`; also UndecodableImageError where the decoder died or took too long.
        """
        try:
            pixels, width, height = self._child.call(data)
        except ChildLostError as err:
            raise UndecodableImageError(f"the decoder {err}") from None
        out[...] = pixels
        return DecodedImage(out, width, height)


class IsolatedLabeller(AbstractContextManager["IsolatedLabeller"]):
    """Labels in a child process, and finds the images that the model fails on.

    Args:
        load: Returns the labeller, in the child; picklable.
        timeout_s: A batch that takes longer kills the child.
        embedding: Whether to return embeddings.

    Attributes:
        child: The process.
    """

    def __init__(self, load: Callable[[], Labeller], timeout_s: float, *, embedding: bool) -> None:
        self.child = Child(partial(_labeller, load, embedding=embedding), timeout_s)

    def __exit__(self, *exc: object) -> None:
        self.child.end()

    def predict(self, images: UInt8Array) -> tuple[Predictions, dict[int, str]]:
        """Label a batch; if that fails, label each of its images alone.

        Args:
            images: uint8 of shape (n_images, crop, crop, 3), HWC RGB.

        Returns:
            (predictions, faults): predictions of the images without a fault, in order; the fault of each other image, by
            its place.

        Raises:
            ShardlabelError: The model no longer loads.
            ChildLostError: The process that loads it dies.
        """
        from models.inference.predictions import Predictions

        with suppress(ChildLostError, InferenceError):
            return self._predict(images), {}
        pieces, faults = [self._predict(images[:0])], dict[int, str]()
        for place in range(len(images)):
            try:
                pieces.append(self._predict(images[place : place + 1]))
            except ChildLostError as err:
                faults[place] = f"the model {err}"
            except InferenceError as err:
                faults[place] = f"the model failed: {err}"
        return Predictions.join(pieces), faults

    def _predict(self, images: UInt8Array) -> Predictions:
        try:
            predictions: Predictions = self.child.call(images)
        except InferenceError:
            # The next child begins with a black image: if that fails too, the images are not the cause.
            self.child.end()
            raise
        return predictions


def _decoder(preprocessing: Preprocessing, mode: DecodeMode, limits: ImageLimits) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> tuple[UInt8Array, int, int]:
        image = decode_image(data, preprocessing, mode, limits)
        return image.pixels, image.width, image.height

    return decode


def _labeller(load: Callable[[], Labeller], *, embedding: bool) -> Callable[[UInt8Array], Predictions]:
    return partial(load().predict, embedding=embedding)


def _serve(requests: Connection) -> None:
    """Make the function, then answer calls until the other end closes."""
    end_with_parent()
    function: Callable[[Any], Any] | None = None
    with suppress(EOFError):
        while True:
            argument = requests.recv()
            try:
                if function is None:
                    function, answer = argument(), None
                else:
                    answer = function(argument)
            except ShardlabelError as err:
                answer = err
            requests.send(answer)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
