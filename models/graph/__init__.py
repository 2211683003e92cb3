"""Pure ONNX surgery: join preprocessing and top-k to a model, and derive other precisions from it."""
