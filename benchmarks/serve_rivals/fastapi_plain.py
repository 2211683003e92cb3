"""FastAPI and ONNX Runtime, no batching: what one writes in an afternoon. Run with as many processes as cores.

uvicorn benchmarks.serve_rivals.fastapi_plain:app --workers 2
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.serve_rivals.labeller import make_labeller

app = FastAPI()
labeller = make_labeller()


def label(data: bytes) -> dict:
    return labeller.label([labeller.decode(data)])[0]


@app.post("/classify")
async def classify(request: Request) -> dict:
    return await run_in_threadpool(label, await request.body())
