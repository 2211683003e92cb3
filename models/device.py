"""Where a model runs: the device a caller asks for, and the provider and precision used for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from models.errors import ProviderUnavailableError
from models.spec import ModelSpec, Precision
from models.store.locate import is_cached


class Device(StrEnum):
    """What a caller asks for."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


class Provider(StrEnum):
    """The ONNX Runtime execution providers in use, and the simulated GPU, which runs nothing."""

    CPU = "CPUExecutionProvider"
    CUDA = "CUDAExecutionProvider"
    TENSORRT = "TensorrtExecutionProvider"
    SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """A GPU of which only the time is simulated; see `models.inference.simulated_gpu`. For benchmarks and tests.

    Attributes:
        rate: Images per second of one GPU.
    """

    rate: float

    _FORM = re.compile(r"simulated:(\d+(?:\.\d+)?)")

    @classmethod
    def parse(cls, text: str) -> SimulatedDevice:
        """Read `simulated:RATE`.

        Raises:
            ValueError: The text has another form, or the rate is 0.
        """
        form = cls._FORM.fullmatch(text)
        if form is None or float(form[1]) <= 0:
            raise ValueError("a simulated device must be simulated:RATE, with RATE images/s above 0")
        return cls(float(form[1]))

    def __str__(self) -> str:
        return f"simulated:{self.rate:g}"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The provider and precision that are used, and one line that says why.

    Attributes:
        provider: What runs the model.
        precision: Which artifact it runs.
        reason: One line for the user.
        rate: Images per second of a simulated GPU; else None.
    """

    provider: Provider
    precision: Precision
    reason: str
    rate: float | None = None

    @property
    def arithmetic(self) -> str:
        """What the labels depend on besides the artifact: the precision, or "simulated" if they are made up."""
        return Provider.SIMULATED.value if self.provider is Provider.SIMULATED else self.precision.value


def choose(spec: ModelSpec, device: Device | SimulatedDevice, precision: str, *, has_gpu: bool) -> DeviceChoice:
    """Choose provider and precision before anything is loaded.

    Args:
        spec: The model's entry.
        device: What was asked for; AUTO takes the GPU if there is one.
        precision: "auto", or one of `Precision`.
        has_gpu: Whether the machine or cluster offers a GPU.

    Raises:
        ProviderUnavailableError: A GPU was asked for, and there is none.
        UnknownModelError: The model has no artifact of that precision.
    """
    if isinstance(device, SimulatedDevice):
        any_of_them = next(iter(spec.artifacts)) if precision == "auto" else Precision(precision)
        spec.artifact(any_of_them)
        reason = f"a SIMULATED GPU of {device.rate:g} images/s instead of {spec.name}: the labels are made up"
        return DeviceChoice(Provider.SIMULATED, any_of_them, reason, device.rate)
    if device in (Device.CUDA, Device.TENSORRT) and not has_gpu:
        raise ProviderUnavailableError(f"--device {device} needs a GPU, but none was found; use --device cpu or auto")
    on_gpu = has_gpu and device is not Device.CPU
    provider = Provider.CPU if not on_gpu else Provider.TENSORRT if device is Device.TENSORRT else Provider.CUDA
    where = "GPU" if on_gpu else "CPU"
    how = "" if device is not Device.AUTO else " (chosen by auto)"
    if precision != "auto":
        wanted = Precision(precision)
        spec.artifact(wanted)
        return DeviceChoice(provider, wanted, f"{spec.name} {wanted} on {where}{how}: the precision asked for")
    order = (Precision.FP16, Precision.FP32) if on_gpu else (Precision.INT8, Precision.FP32)
    offered = [p for p in (*order, *spec.artifacts) if p in spec.artifacts or (on_gpu and spec.is_made(p))]
    ready = [p for p in offered if is_cached(spec, p)]
    # A precision that has to be downloaded or built is chosen only if no other is on this machine.
    chosen = (ready or offered)[0]
    why = (
        "the fastest of its precisions that are on this machine"
        if ready
        else "the fastest of its precisions; none is on this machine yet"
    )
    return DeviceChoice(provider, chosen, f"{spec.name} {chosen} on {where}{how}: {why}")
