"""`label`: add labels to the images of any Ray Dataset, beside its own columns."""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from models.catalog import DEFAULT_MODEL
from models.decode.decode import ImageLimits
from models.errors import ConfigError
from models.inference.classifier import DeviceChoice, Provider, choose
from pipeline.config import LabelConfig, build_config
from pipeline.config import batch_size as inference_size
from pipeline.operators.columns import LabelColumns
from pipeline.operators.decode import DecodeImages
from pipeline.operators.label import DecodeAndLabel, LabelImages
from pipeline.operators.model_ref import ModelRef, load_model, model_file, settle_calibration, settle_model
from pipeline.operators.stages import DecodeSettings
from pipeline.operators.tasks import map_actors

# A block whose actor died more often fails the dataset: its images were decoded isolated, so they are not the cause.
MAX_RETRIES = 3


def label(  # noqa: PLR0913 (the options of the command)
    dataset: Dataset,
    *,
    image_column: str = "bytes",
    model: str = DEFAULT_MODEL,
    precision: str = "auto",
    device: str = "auto",
    top_k: int | None = None,
    decode: str = "fast",
    labels: str = "name",
    embeddings: bool = False,
    calibration: str | PathLike[str] | None = None,
    max_pixels: int = 100_000_000,
    max_image_bytes: int = 64 * 2**20,
    image_timeout_s: float = 60.0,
    prefix: str = "",
    num_gpus: float | None = None,
    compute: Any = None,  # noqa: ANN401 (a ComputeStrategy, which Ray does not export)
    batch_size: int | None = None,
) -> Dataset:
    """Add labels to a dataset of images. Lazy: the model is loaded now, images are labelled when the result is consumed.

    Every row and column is kept, in order within a block. Added are `label`, `label_id`, `score`, `top_labels`, `top_ids`,
    `top_scores`, `width`, `height`, `status`, `error` (and `accepted`, `embedding`), with the types and values that
    `shardlabel label` writes for the same bytes. An image that cannot be labelled is a row with its status and error, even
    if it kills or hangs the process that decodes it. An image without bytes has status `empty`.

    `status` and `error` of `read_shards` are adopted; they are recognised by text columns `shard`, `key`, `status` and
    `error`. Any other column with the name of an added one is an error, unless you give a prefix.

    Without GPUs each actor decodes and labels. With GPUs, actors on CPUs decode, and the batches of actors on GPUs fill
    across blocks; the pieces of a block may then be separated unless Ray Data is set to preserve order.

    Args:
        dataset: Any dataset; it runs on the caller's Ray, whose settings are not changed.
        image_column: Binary, a struct with `bytes` (Hugging Face), or a uint8 tensor (height, width, 3), which is labelled
            like a lossless file of these pixels.
        model: Name in the catalog, or path of an ONNX file.
        precision: auto, fp32, int8 or fp16.
        device: auto, cpu, cuda or tensorrt.
        top_k: Labels per image, best first; by default 5, or all of them if the model has fewer.
        decode: fast, or exact as the model's reference.
        labels: Class names: name (the first), wnid, or all.
        embeddings: Whether to add the model's penultimate features.
        calibration: Path or URI of a file that `shardlabel evaluate --fit` wrote: scores are calibrated, and `accepted`
            (bool, null where status is not ok) says whether the score reaches the threshold of its class.
        max_pixels: Larger images are rows with status too_large.
        max_image_bytes: Images of more bytes are rows with status too_large.
        image_timeout_s: An image that takes longer to decode is undecodable.
        prefix: Prefix of the name of each added column.
        num_gpus: GPUs of each actor that holds the model, as in `map_batches`; 1 on GPUs.
        compute: Pool of the actors that hold the model, as in `map_batches`. By default as many as Ray has CPUs (or GPUs)
            now; on CPUs they leave one CPU of a machine for reading.
        batch_size: Images per inference; 16 on a CPU, 256 on a GPU.

    Raises:
        ConfigError: An option is invalid; columns clash, or there is no image column. Where the dataset's columns are
            known only at run time, Ray raises that message then.
        ModelError: The model cannot be loaded or used.
    """
    options = {
        "model": model, "precision": precision, "device": device, "top_k": top_k, "decode": decode, "labels": labels,
        "embeddings": embeddings, "calibration": calibration, "max_pixels": max_pixels, "max_image_bytes": max_image_bytes,
        "image_timeout_s": image_timeout_s, "batch_size": batch_size,
    }  # fmt: skip
    config = build_config({"source": "dataset", "output": "dataset", **options})
    columns = LabelColumns(image_column, prefix, embeddings, calibrated=calibration is not None)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None and isinstance(schema.base_schema, pa.Schema):  # a pandas schema has no Arrow types
        columns.check(schema.base_schema)
    decoding, labelling = _settings(config, num_gpus)
    pool, cpus = _cpu_pool()
    # Rows in = rows out: a `limit` after it reads and labels only as many.
    kept: dict[str, Any] = {"retries": MAX_RETRIES, "udf_modifying_row_count": False}
    if labelling.choice.provider is Provider.CPU:
        both = (decoding, labelling, columns)
        return map_actors(dataset, DecodeAndLabel, both, **kept, compute=compute or pool, num_cpus=cpus)
    decoded = map_actors(dataset, DecodeImages, (decoding, columns), **kept, compute=pool, num_cpus=cpus)
    is_real = labelling.choice.provider is not Provider.SIMULATED
    gpus = int(ray.cluster_resources().get("GPU", 0) / labelling.gpu_share) if is_real else 1
    return map_actors(
        decoded,
        LabelImages,
        (labelling, columns),
        **kept,
        batch_size=labelling.batch_size,
        compute=compute or ActorPoolStrategy(size=max(1, gpus)),
        num_cpus=0,
        num_gpus=labelling.gpu_share if is_real else None,
    )


def _settings(config: LabelConfig, num_gpus: float | None) -> tuple[DecodeSettings, ModelRef]:
    """Resolve the model and load it once, so that a model that is missing or cannot run fails now."""
    config, spec, texts = settle_model(config)
    if not ray.is_initialized():
        ray.init()  # as Ray Data does itself on first use
    has_gpu = ray.cluster_resources().get("GPU", 0) > 0 if num_gpus is None else num_gpus > 0
    choice = choose(spec, config.device, config.precision, has_gpu=has_gpu)
    if num_gpus and choice.provider is Provider.CPU:
        raise ConfigError(f"num_gpus={num_gpus:g} is for a GPU, and the model runs on the CPU; leave it out")
    calibration = settle_calibration(config.calibration, spec, choice, config.decode)
    graph = load_model(spec, choice, model_file(spec, choice), config.top_k, calibration)
    limits = ImageLimits(max_pixels=config.max_pixels, max_image_bytes=config.max_image_bytes)
    return DecodeSettings(spec.preprocessing, config.decode, limits, config.image_timeout_s), ModelRef(
        spec, choice, texts, config.top_k, inference_size(config, choice), _gpu_share(choice, num_gpus), ray.put(graph),
        image_timeout_s=config.image_timeout_s, calibration=calibration,
    )  # fmt: skip


def _gpu_share(choice: DeviceChoice, num_gpus: float | None) -> float:
    return 0.0 if choice.provider is Provider.CPU else num_gpus or 1.0


def _cpu_pool() -> tuple[ActorPoolStrategy, float]:
    """Return a pool with one actor per CPU, and the part of a CPU that each reserves, so that each node has one CPU left.

    Tasks that read and write want a whole CPU by default, and Ray Data waits for ever where actors hold all CPUs. On
    nodes with one CPU actors reserve nothing. All cores are used either way, since reading needs little of them.
    """
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    smallest = min((cpus for cpus in nodes if cpus >= 2), default=1.0)
    share = math.floor((smallest - 1) / smallest * 10_000) / 10_000  # Ray counts ten-thousandths
    return ActorPoolStrategy(size=max(1, int(sum(nodes)))), share
