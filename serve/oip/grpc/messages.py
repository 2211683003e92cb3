"""The protobuf messages of `inference.GRPCInferenceService`, as inference.proto describes them.

They are in a descriptor pool of their own: the full names are the protocol's, so in the default pool they would clash
with the messages that `tritonclient` or `kserve` register, in any process that imports one of them. Nothing here is
pickled; between processes the messages travel as bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

# What inference.proto compiles to: `make proto`.
COMPILED = Path(__file__).with_name("inference.binpb")

_pool = descriptor_pool.DescriptorPool()
for _file in FileDescriptorSet.FromString(COMPILED.read_bytes()).file:
    _pool.Add(_file)


def message_class(name: str) -> Any:  # noqa: ANN401 (protobuf makes these classes at run time)
    """Return the class of a message, by its name in inference.proto."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))
