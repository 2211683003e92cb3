"""The online endpoint on Ray Serve: one deployment that is HTTP and gRPC ingress, decoder and model."""
