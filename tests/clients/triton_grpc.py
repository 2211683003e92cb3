"""Call an endpoint with the unmodified tritonclient.grpc, and print what it gave as one JSON object.

    python triton_grpc.py HOST:PORT MODEL IMAGE SIDE [CERTIFICATE]

Runs in `.venv-clients`; knows nothing of this project.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict
from tritonclient.utils import InferenceServerException

CERTIFICATE = sys.argv[5] if len(sys.argv) > 5 else None


def connect(url: str) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(url, ssl=CERTIFICATE is not None, root_certificates=CERTIFICATE)


def channel(url: str) -> grpc.Channel:
    if CERTIFICATE is None:
        return grpc.insecure_channel(url)
    return grpc.secure_channel(url, grpc.ssl_channel_credentials(Path(CERTIFICATE).read_bytes()))


def image_input(*contents: bytes, batch_axis: bool = True) -> triton.InferInput:
    array = np.array(contents, dtype=np.object_)
    array = array.reshape(-1, 1) if batch_axis else array
    tensor = triton.InferInput("image", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return tensor


def error_of(call, *args, **kwargs) -> list[str]:
    try:
        call(*args, **kwargs)
    except InferenceServerException as err:
        return [str(err.status()), err.message()]
    return ["OK", ""]


def fields(message) -> dict[str, list[object]]:
    """Describe a message's fields, for comparing them with the server's own."""
    return {
        field.name: [field.number, field.type, field.message_type.name if field.message_type else None]
        for field in message.DESCRIPTOR.fields
    }


def ensemble_classes(client, model: str, image: bytes) -> dict[str, list[str]]:
    """Ask for the classes of every output that the metadata name, as Triton's ensemble_image_client does."""
    names = [output.name for output in client.get_model_metadata(model).outputs]
    wanted = [triton.InferRequestedOutput(name, class_count=2) for name in names]
    found = client.infer(model, [image_input(image)], outputs=wanted)
    return {name: [element.decode() for element in found.as_numpy(name)[0]] for name in names}


def streamed(url: str, model: str, image: bytes) -> dict[str, object]:
    """Send requests down a stream, two of them wrong, as Triton's `image_client --streaming` does."""
    client = connect(url)
    answers: queue.Queue[tuple[object, object]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    wanted = [triton.InferRequestedOutput("labels")]
    for number in range(20):
        content = image[:50] if number == 7 else image
        name = "nothing" if number == 9 else model
        client.async_stream_infer(name, [image_input(content)], outputs=wanted, request_id=str(number))
    got = [answers.get(timeout=30) for _ in range(20)]
    client.stop_stream()
    return {
        "ids": [result.get_response().id for result, error in got if error is None],
        "labels": sorted({result.as_numpy("labels")[0][0].decode() for result, error in got if error is None}),
        "errors": {str(number): error.message() for number, (_, error) in enumerate(got) if error is not None},
        "final": all(r.get_response().parameters["triton_final_response"].bool_param for r, e in got if e is None),
    }


def probed(url: str, *services: str) -> list[object]:
    """Ask as Kubernetes' grpc probe does; the message is one string, and its answer one number."""
    check = channel(url).unary_unary("/grpc.health.v1.Health/Check")
    found: list[object] = []
    for service in services:
        text = service.encode()
        try:
            found.append(check((b"\n" + bytes([len(text)]) + text) if text else b"", timeout=10).hex())
        except grpc.RpcError as err:
            found.append(err.code().name)
    return found


def main(url: str, model: str, image: bytes, side: int) -> dict[str, object]:
    client = connect(url)
    metadata = MessageToDict(client.get_model_metadata(f"{model}-tensor"))
    tensor_in, tensor_out = metadata["inputs"][0]["name"], metadata["outputs"][0]["name"]
    pixels = triton.InferInput(tensor_in, [2, 3, side, side], "FP32")
    pixels.set_data_from_numpy(np.full((2, 3, side, side), 0.5, np.float32))
    everything = client.infer(
        model, [image_input(image, image)], request_id="7", parameters={"top_k": 2}, timeout=5_000_000
    )
    classes = client.infer(
        model,
        [image_input(image, batch_axis=False)],
        outputs=[triton.InferRequestedOutput("probabilities", class_count=2)],
        model_version="1",
        compression_algorithm="gzip",
    )
    own = client.infer(f"{model}-tensor", [pixels])
    later: queue.Queue[object] = queue.Queue()
    client.async_infer(model, [image_input(image)], lambda result, error: later.put(error or result))
    from tritonclient.grpc import model_config_pb2, service_pb2

    modules = (service_pb2, model_config_pb2)
    messages = (
        *("ServerLiveResponse", "ServerReadyResponse", "ServerMetadataResponse"),
        *("ModelReadyRequest", "ModelReadyResponse", "ModelMetadataRequest", "ModelMetadataResponse"),
        *(
            "ModelConfigRequest",
            "ModelConfigResponse",
            "ModelConfig",
            "ModelInput",
            "ModelOutput",
            "ModelVersionPolicy",
        ),
        *(
            "ModelStatisticsRequest",
            "ModelStatisticsResponse",
            "ModelStatistics",
            "InferStatistics",
            "StatisticDuration",
        ),
        *("InferBatchStatistics", "RepositoryIndexRequest", "RepositoryIndexResponse"),
        *("InferParameter", "InferTensorContents", "ModelInferRequest", "ModelInferResponse"),
        *("RepositoryModelLoadRequest", "RepositoryModelUnloadRequest", "ModelRepositoryParameter"),
        "ModelStreamInferResponse",
    )
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model, "1"),
        "unknown_ready": client.is_model_ready("nothing"),
        "server": MessageToDict(client.get_server_metadata()),
        "model": MessageToDict(client.get_model_metadata(model)),
        "config": MessageToDict(client.get_model_config(f"{model}-tensor", "1"))["config"],
        "images": int(client.get_inference_statistics(model).model_stats[0].inference_count),
        "all_stats": len(client.get_inference_statistics().model_stats),
        "index": [[entry.name, entry.state] for entry in client.get_model_repository_index().models],
        "id": everything.get_response().id,
        "shapes": {o.name: list(o.shape) for o in everything.get_response().outputs},
        "label_ids": everything.as_numpy("label_ids").tolist(),
        "labels": [[label.decode() for label in row] for row in everything.as_numpy("labels")],
        "scores": everything.as_numpy("scores").tolist(),
        "sums": everything.as_numpy("probabilities").sum(axis=1).tolist(),
        "classes": [element.decode() for element in classes.as_numpy("probabilities").ravel()],
        "every_output": ensemble_classes(client, model, image),
        "streamed": streamed(url, model, image),
        "probed": probed(url, "", model, "inference.GRPCInferenceService", "nothing"),
        "own": [own.as_numpy(tensor_out).shape, own.as_numpy(tensor_out).dtype.name],
        "later": later.get(timeout=30).as_numpy("label_ids")[0].tolist(),
        "unknown": error_of(client.infer, "nothing", [image_input(image)]),
        "version": error_of(client.get_model_metadata, model, "9"),
        "broken": error_of(client.infer, model, [image_input(image, image[:50])]),
        "wrong": error_of(client.infer, model, [pixels]),
        "late": error_of(client.infer, model, [image_input(image)], timeout=1),
        "too_many": error_of(client.infer, model, [image_input(*[image] * 65)]),
        "load": error_of(client.load_model, model),
        "unload": error_of(client.unload_model, model),
        "not_there": error_of(client.get_cuda_shared_memory_status),
        "messages": {name: fields(next(getattr(m, name) for m in modules if hasattr(m, name))) for name in messages},
    }


if __name__ == "__main__":
    sys.stdout.write(
        json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes(), int(sys.argv[4]))) + "\n"
    )
