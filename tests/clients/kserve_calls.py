"""Call an endpoint with the unmodified KServe Python client, over REST and gRPC; print what it gave as one JSON object.

    python kserve_calls.py HTTP_HOST:PORT GRPC_HOST:PORT MODEL IMAGE SIDE [CERTIFICATE]

With a certificate both are spoken to by TLS. Runs in `.venv-clients`; knows nothing of this project.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import sys
from pathlib import Path

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


def image_request(model: str, image: bytes, *, binary: bool, **more: object) -> InferRequest:
    tensor = InferInput("image", [1], "BYTES")
    content = image if binary else base64.b64encode(image)
    tensor.set_data_from_numpy(np.array([content], dtype=np.object_), binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[tensor], request_id="7", **more)


def labels(response) -> list[str]:
    found = next(output for output in response.outputs if output.name == "labels").as_numpy().ravel()
    return [label if isinstance(label, str) else label.decode() for label in found]


async def over_rest(
    base: str, model: str, image: bytes, side: int, trusted: ssl.SSLContext | bool
) -> dict[str, object]:
    client = InferenceRESTClient(RESTConfig(protocol="v2", verify=trusted))
    as_json = await client.infer(base, image_request(model, image, binary=False), model_name=model)
    as_binary = await client.infer(
        base,
        image_request(model, image, binary=True, parameters={"binary_data_output": True, "top_k": 2}),
        model_name=model,
    )
    wanted = [RequestedOutput("labels", parameters={"binary_data": True})]
    one = await client.infer(base, image_request(model, image, binary=True, request_outputs=wanted), model_name=model)
    pixels = InferInput("", [1, 3, side, side], "FP32")
    async with httpx.AsyncClient(verify=trusted) as browser:
        metadata = (await browser.get(f"{base}/v2/models/{model}-tensor")).json()
    pixels._name = metadata["inputs"][0]["name"]
    pixels.set_data_from_numpy(np.full((1, 3, side, side), 0.5, np.float32), binary_data=True)
    own = await client.infer(base, InferRequest(f"{model}-tensor", [pixels]), model_name=f"{model}-tensor")
    try:
        await client.infer(base, image_request("nothing", image, binary=True), model_name="nothing")
        unknown = ""
    except httpx.HTTPStatusError as err:
        unknown = str(err)
    result = {
        "live": await client.is_server_live(base),
        "ready": await client.is_server_ready(base),
        "model_ready": await client.is_model_ready(base, model),
        "id": as_json.id,
        "json": labels(as_json),
        "binary": labels(as_binary),
        "one": [output.name for output in one.outputs],
        "own": list(own.outputs[0].as_numpy().shape),
        "unknown": unknown,
    }
    await client.close()
    return result


async def over_grpc(url: str, model: str, image: bytes, cert: str | None) -> dict[str, object]:
    client = InferenceGRPCClient(url, use_ssl=cert is not None, root_certificates=cert)
    answer = await client.infer(image_request(model, image, binary=True))
    typed = InferInput("image", [1], "BYTES", data=[image])
    by_contents = await client.infer(InferRequest(model_name=model, infer_inputs=[typed]))
    try:
        await client.infer(image_request("nothing", image, binary=True))
        unknown = ""
    except grpc.RpcError as err:
        unknown = err.code().name
    result = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model_ready": await client.is_model_ready(model),
        "id": answer.id,
        "raw": labels(answer),
        "typed": labels(by_contents),
        "unknown": unknown,
    }
    await client.close()
    return result


async def main(
    http_url: str, grpc_url: str, model: str, image: str, side: str, cert: str | None = None
) -> dict[str, object]:
    content = Path(image).read_bytes()
    trusted = True if cert is None else ssl.create_default_context(cafile=cert)
    return {
        "rest": await over_rest(f"{'https' if cert else 'http'}://{http_url}", model, content, int(side), trusted),
        "grpc": await over_grpc(grpc_url, model, content, cert),
    }


if __name__ == "__main__":
    answer = asyncio.run(main(*sys.argv[1:]))
    sys.stdout.write(json.dumps(answer) + "\n")
