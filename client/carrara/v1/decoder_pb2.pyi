from carrara.v1 import stage_pb2 as _stage_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DecodeRequest(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _stage_pb2.Job
    def __init__(self, job: _Optional[_Union[_stage_pb2.Job, _Mapping]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: _stage_pb2.Event
    def __init__(self, event: _Optional[_Union[_stage_pb2.Event, _Mapping]] = ...) -> None: ...
