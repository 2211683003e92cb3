"""Pure ONNX surgery: preprocessing and top-k joined to a model, and other precisions made of it."""
