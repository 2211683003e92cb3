"""The protobuf messages of `inference.GRPCInferenceService` and `grpc.health.v1.Health`, as the .proto files say.

They are in a descriptor pool of their own: the full names are the protocols', so in the default pool they would clash
with the messages that `tritonclient` or `kserve` register, in any process that imports one of them. Nothing here is
pickled; between processes the messages travel as bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

# What inference.proto and health.proto compile to: `make proto`.
COMPILED = Path(__file__).with_name("messages.binpb")

# Of those that are no whole numbers; the JSON form of an enumeration is its name.
_JSON_TYPES = {
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_STRING: "string",
    FieldDescriptor.CPPTYPE_ENUM: "string",
}

_pool = descriptor_pool.DescriptorPool()
_files = FileDescriptorSet.FromString(COMPILED.read_bytes()).file
for _file in _files:
    _pool.Add(_file)
# The RPCs. No two of the services have one name: Ray Serve knows them by their names alone.
METHODS = {
    method.name: method
    for file in _files
    for service in file.service
    for method in _pool.FindServiceByName(f"{file.package}.{service.name}").methods
}


def request_class(rpc: str) -> Any:  # noqa: ANN401 (protobuf makes these classes at run time)
    """Return the class of the message that an RPC takes."""
    return message_factory.GetMessageClass(METHODS[rpc].input_type)


def answer_class(rpc: str) -> Any:  # noqa: ANN401
    """Return the class of the message that an RPC answers."""
    return message_factory.GetMessageClass(METHODS[rpc].output_type)


def json_schema(part: Any) -> dict[str, Any]:  # noqa: ANN401 (a descriptor)
    """Return the JSON schema of a message, or of a field of one, as this endpoint writes it over HTTP."""
    if hasattr(part, "fields"):
        fields = {field.name: json_schema(field) for field in part.fields}
        return {"type": "object", "properties": fields, "additionalProperties": False}
    message = part.message_type
    if message is not None and message.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": json_schema(message.fields_by_name["value"])}
    kind = {"type": _JSON_TYPES.get(part.cpp_type, "integer")} if message is None else json_schema(message)
    return {"type": "array", "items": kind} if part.is_repeated else kind
