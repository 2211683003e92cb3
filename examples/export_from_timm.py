"""Export a timm model to ONNX, with the labels and preprocessing that `shardlabel models add` needs.

It needs timm and PyTorch, which take some GB, so use a separate environment:

    python -m venv .venv-timm && .venv-timm/bin/pip install timm onnx onnxscript
    .venv-timm/bin/python examples/export_from_timm.py
    shardlabel models add out/examples/timm/model.onnx --name my-mobilenet \
        --labels out/examples/timm/labels.txt --preprocess out/examples/timm/config.json
    shardlabel label models/samples/photos.tar --output out/examples/timm/labels --model my-mobilenet
"""

import json
from pathlib import Path

import timm
import torch

FOLDER = Path("out/examples/timm")
CLASSES = ["indoors", "outdoors", "neither"]

# Random weights need no download, and give meaningless labels. Load your own with model.load_state_dict(...).
model = timm.create_model("mobilenetv3_small_100", pretrained=False, num_classes=len(CLASSES)).eval()
config = timm.data.resolve_data_config(model=model)  # input_size, mean, std, crop_pct, interpolation, ...

FOLDER.mkdir(parents=True, exist_ok=True)
torch.onnx.export(
    model,
    (torch.zeros(2, *config["input_size"]),),
    FOLDER / "model.onnx",
    input_names=["image"],
    output_names=["logits"],
    dynamic_shapes=({0: torch.export.Dim("n_images")},),  # any batch size
    external_data=False,  # one file
)
(FOLDER / "labels.txt").write_text("\n".join(CLASSES) + "\n")
(FOLDER / "config.json").write_text(json.dumps(config))
