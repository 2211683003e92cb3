"""The Open Inference Protocol v2, over HTTP and gRPC, in front of a `serve.model.engine.Engine`."""
