"""The protobuf messages of `inference.GRPCInferenceService` and `grpc.health.v1.Health`, as the .proto files say.

They are in a descriptor pool of their own: the full names are the protocols', so in the default pool they would clash
with the messages that `tritonclient` or `kserve` register, in any process that imports one of them. Nothing here is
pickled; between processes the messages travel as bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

# What inference.proto and health.proto compile to: `make proto`.
COMPILED = Path(__file__).with_name("messages.binpb")

_pool = descriptor_pool.DescriptorPool()
_files = FileDescriptorSet.FromString(COMPILED.read_bytes()).file
for _file in _files:
    _pool.Add(_file)
# No two RPCs of the services have one name: Ray Serve knows them by their names alone.
_methods = {
    method.name: method
    for file in _files
    for service in file.service
    for method in _pool.FindServiceByName(f"{file.package}.{service.name}").methods
}


def message_class(name: str) -> Any:  # noqa: ANN401 (protobuf makes these classes at run time)
    """Return the class of a message, by its name in inference.proto."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


def request_class(rpc: str) -> Any:  # noqa: ANN401
    """Return the class of the message that an RPC takes."""
    return message_factory.GetMessageClass(_methods[rpc].input_type)


def answer_class(rpc: str) -> Any:  # noqa: ANN401
    """Return the class of the message that an RPC answers."""
    return message_factory.GetMessageClass(_methods[rpc].output_type)
