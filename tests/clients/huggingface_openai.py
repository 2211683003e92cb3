"""Ask an endpoint with the unmodified clients of Hugging Face and OpenAI; print what they gave as one JSON object.

    python huggingface_openai.py URL MODEL IMAGE

Runs in `.venv-clients`; knows nothing of this project.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import openai
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def error_of(call, *args, **kwargs) -> list[object]:
    try:
        call(*args, **kwargs)
    except (openai.APIStatusError, HfHubHTTPError) as err:
        return [type(err).__name__, err.response.status_code, str(err)]
    return ["OK", 200, ""]


def labels(client: InferenceClient, image: bytes, **more: object) -> list[list[object]]:
    return [[row.label, row.score] for row in client.image_classification(image, **more)]


def embedded(base: str, model: str, image: bytes) -> dict[str, object]:
    client = openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)
    text = base64.b64encode(image).decode()
    # Without an encoding it asks for base64, and makes floats of it.
    packed = client.embeddings.create(model=model, input=[text, f"data:image/jpeg;base64,{text}"])
    plain = client.embeddings.create(model=model, input=text, encoding_format="float")
    rows = [np.array(row.embedding, np.float32) for row in (*packed.data, *plain.data)]
    return {
        "model": packed.model,
        "widths": [len(row.embedding) for row in packed.data],
        "same": all(np.array_equal(row, rows[0]) for row in rows),
        "unknown": error_of(client.embeddings.create, model="nothing", input=text)[1],
    }


def main(base: str, model: str, path: str) -> dict[str, object]:
    image = Path(path).read_bytes()
    client, nothing = (InferenceClient(model=f"{base}/models/{name}") for name in (model, "nothing"))
    plain = labels(client, path)
    return {
        "huggingface": {
            "a file as it is": plain,
            "with parameters": labels(client, path, top_k=2),
            "bytes": labels(client, image, top_k=1, function_to_apply="softmax"),
        },
        "default": len(plain),
        "errors": {
            "sigmoid": error_of(client.image_classification, image, function_to_apply="sigmoid"),
            "nothing": error_of(nothing.image_classification, image),
        },
        "embeddings": embedded(base, model, image),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:4])) + "\n")
