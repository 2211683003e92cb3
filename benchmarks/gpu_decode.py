"""Decoding alone: images per second from encoded bytes to the model's crop, of one core, of all cores, and of a GPU.

    python -m benchmarks.gpu_decode 'shards/*.tar' [--seconds 5] [--processes 16]

The cores do what `label` does (`--decode fast`). The GPU's own decoders are reached through torchvision (nvJPEG) or
nvImageCodec, where they are installed; theirs is decoding alone, without resize and crop, in batches. `cores_per_10k` is how
many cores feed a GPU that labels 10,000 images/s. The last line of output is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import time

import numpy as np

from benchmarks.gpu_common import encoded_images
from models.catalog import load_spec
from models.decode.decode import DecodeMode, ImageLimits, decode_image
from models.session import gpu_name


def decode_for(model: str, images: list[bytes], seconds: float, barrier, results) -> None:
    """Decode over and over for some seconds."""
    preprocessing = load_spec(model).preprocessing
    out = np.empty((preprocessing.crop, preprocessing.crop, 3), np.uint8)
    limits, done = ImageLimits(), 0
    barrier.wait()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        decode_image(images[done % len(images)], preprocessing, DecodeMode.FAST, limits, out=out)
        done += 1
    results.put(done / (time.perf_counter() - started))


def on_cores(images: list[bytes], model: str, seconds: float, processes: int) -> float:
    """Return images per second of so many processes at a time."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    arguments = (model, images, seconds, barrier, results)
    workers = [context.Process(target=decode_for, args=arguments) for _ in range(processes)]
    for worker in workers:
        worker.start()
    rates = [results.get(timeout=seconds + 120) for _ in workers]
    for worker in workers:
        worker.join()
    return round(sum(rates), 1)


def with_torchvision(images: list[bytes], seconds: float, batch: int) -> float:
    """Return images per second of nvJPEG through torchvision."""
    torch = importlib.import_module("torch")
    io = importlib.import_module("torchvision.io")
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in images]

    def decode(first: int) -> None:
        some = [tensors[(first + i) % len(tensors)] for i in range(batch)]
        io.decode_jpeg(some, mode=io.ImageReadMode.RGB, device="cuda")
        torch.cuda.synchronize()

    return _rate(decode, batch, seconds)


def with_nvimagecodec(images: list[bytes], seconds: float, batch: int) -> float:
    """Return images per second of nvImageCodec, which shares the work between the GPU's JPEG engines and its cores."""
    nvimgcodec = importlib.import_module("nvidia.nvimgcodec")
    decoder = nvimgcodec.Decoder()

    def decode(first: int) -> None:
        decoder.decode([images[(first + i) % len(images)] for i in range(batch)])

    return _rate(decode, batch, seconds)


def _rate(decode, batch: int, seconds: float) -> float:
    decode(0)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        decode(done)
        done += batch
    return round(done / (time.perf_counter() - started), 1)


def measure(options: argparse.Namespace) -> dict:
    """Measure what is here; of what is not, say why."""
    images = encoded_images(options.tars, options.limit)
    one = on_cores(images, options.model, options.seconds, 1)
    every = on_cores(images, options.model, options.seconds, options.processes)
    gpu: dict = {}
    for name, way in (("torchvision", with_torchvision), ("nvimagecodec", with_nvimagecodec)):
        try:
            gpu[name] = way(images, options.seconds, options.batch)
        except Exception as err:  # noqa: BLE001 (a library that is not here, or a GPU that is not: told, not hidden)
            gpu[name] = f"not measured: {type(err).__name__}: {err}"[:200]
    return {
        "benchmark": "gpu_decode",
        "gpu": gpu_name(),
        "images": len(images),
        "mean_bytes": round(float(np.mean([len(data) for data in images]))),
        "one_core_images_per_s": one,
        "processes": options.processes,
        "all_images_per_s": every,
        "cores_per_10k": round(10_000 / every * options.processes, 1),
        "on_gpu_images_per_s": gpu,
    }


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tars", nargs="+")
    parser.add_argument("--model", default="resnet18-v2", help="whose preprocessing")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--batch", type=int, default=128, help="images at a time on the GPU")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    result = measure(parser.parse_args(arguments))
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
