"""A message's content as bytes, in Flower's own protobuf form."""

from __future__ import annotations

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict


def pack(content: RecordDict) -> bytes:
    """Returns the content as bytes; arrays that only lend their memory are copied."""
    for record in content.array_records.values():
        for array in record.values():
            array.data = bytes(array.data)
    packed: bytes = recorddict_to_proto(content).SerializeToString()
    return packed


def unpack(packed: bytes) -> RecordDict:
    """Returns what was packed."""
    return recorddict_from_proto(ProtoRecordDict.FromString(packed))
