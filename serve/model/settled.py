"""A model that is to be served, found and settled before it is built: on the driver, or by a replica that is asked to."""

from __future__ import annotations

from dataclasses import dataclass

from models.calibration import Calibration
from models.catalog import load_spec
from models.device import DeviceChoice, choose
from models.spec import ModelSpec
from models.store.locate import locate
from pipeline.operators.model_ref import read_calibration, settle_calibration
from serve.config import ServeConfig


@dataclass(frozen=True, slots=True)
class Settled:
    """A model that is to be served: its entry, which artifact runs on what, and what calibrates it. Picklable."""

    spec: ModelSpec
    choice: DeviceChoice
    calibration: Calibration | None


def settle(source: str, config: ServeConfig, *, has_gpu: bool) -> Settled:
    """Find a model by its name or file, downloaded if need be; a calibration is for the model that it names.

    Raises:
        ShardlabelError: It cannot be had, or is not what was asked for.
    """
    spec = load_spec(source)
    choice = choose(spec, config.device, config.precision, has_gpu=has_gpu)
    locate(spec, choice.precision)
    place = config.calibration
    if place is not None and read_calibration(place).model != spec.name:
        place = None
    return Settled(spec, choice, settle_calibration(place, spec, choice, config.decode))
