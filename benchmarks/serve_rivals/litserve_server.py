"""LitServe, twice: as its own parity benchmark has it, and as fast as it could be made here.

`parity` follows tests/parity_fastapi/ls-server.py of its repository: the image as base64 in JSON, decoded in `batch` by a
pool of threads, batches of 8 on a CPU (16 on a GPU), batch_timeout 10 ms, two workers, fast_queue.
`best` is what gave the highest rate of batches of 1, 4 and 8 and of waiting 0, 2 and 10 ms. The image stays base64 in JSON:
LitServe 0.2.19 reads JSON and forms, and an uploaded file cannot be pickled on its way to the worker (with starlette 1.10:
"Pickling an AuthenticationString object is disallowed").
"""

from __future__ import annotations

import argparse
import base64
import os
from concurrent.futures import ThreadPoolExecutor

import litserve as ls

from benchmarks.serve_rivals.labeller import make_labeller


class ParityAPI(ls.LitAPI):
    def setup(self, device):
        self.labeller = make_labeller()
        self.pool = ThreadPoolExecutor(os.cpu_count())

    def decode_request(self, request):
        return request["image_data"]

    def batch(self, inputs):
        return list(self.pool.map(lambda text: self.labeller.decode(base64.b64decode(text)), inputs))

    def predict(self, x):
        return self.labeller.label(x)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


class BestAPI(ParityAPI):
    def decode_request(self, request):
        return self.labeller.decode(base64.b64decode(request["image_data"]))

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        # Without batching LitServe calls neither `batch` nor `unbatch`.
        return self.labeller.label(x) if isinstance(x, list) else self.labeller.label([x])[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--as", dest="way", choices=["parity", "best"], required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--timeout", type=float)
    parser.add_argument("--api-servers", type=int)
    args = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    if args.way == "parity":
        api = ParityAPI(max_batch_size=args.batch or 8, batch_timeout=0.01 if args.timeout is None else args.timeout)
    else:
        api = BestAPI(max_batch_size=args.batch or 8, batch_timeout=args.timeout or 0.0)
    server = ls.LitServer(api, accelerator="cpu", timeout=60, workers_per_device=workers, fast_queue=True)
    server.run(
        host="127.0.0.1", port=args.port, log_level="warning", generate_client_file=False,
        num_api_servers=args.api_servers,
    )  # fmt: skip


if __name__ == "__main__":
    main()
