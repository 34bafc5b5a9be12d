from carrara.v1 import stage_pb2 as _stage_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeRequest(_message.Message):
    __slots__ = ("prompt", "negative_prompt", "guidance", "stage_fingerprint")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    negative_prompt: str
    guidance: bool
    stage_fingerprint: str
    def __init__(self, prompt: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., guidance: _Optional[bool] = ..., stage_fingerprint: _Optional[str] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _stage_pb2.Result
    def __init__(self, result: _Optional[_Union[_stage_pb2.Result, _Mapping]] = ...) -> None: ...
