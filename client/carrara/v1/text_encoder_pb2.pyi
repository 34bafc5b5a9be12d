from carrara.v1 import stage_pb2 as _stage_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeRequest(_message.Message):
    __slots__ = ("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "guidance", "max_sequence_length", "clip_skip", "clean_caption", "complex_human_instruction", "priority", "stage_fingerprint")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    PROMPT_3_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_2_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_PROMPT_3_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CLIP_SKIP_FIELD_NUMBER: _ClassVar[int]
    CLEAN_CAPTION_FIELD_NUMBER: _ClassVar[int]
    COMPLEX_HUMAN_INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STAGE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    prompt_2: str
    prompt_3: str
    negative_prompt: str
    negative_prompt_2: str
    negative_prompt_3: str
    guidance: bool
    max_sequence_length: int
    clip_skip: int
    clean_caption: bool
    complex_human_instruction: str
    priority: _stage_pb2.Priority
    stage_fingerprint: str
    def __init__(self, prompt: _Optional[str] = ..., prompt_2: _Optional[str] = ..., prompt_3: _Optional[str] = ..., negative_prompt: _Optional[str] = ..., negative_prompt_2: _Optional[str] = ..., negative_prompt_3: _Optional[str] = ..., guidance: _Optional[bool] = ..., max_sequence_length: _Optional[int] = ..., clip_skip: _Optional[int] = ..., clean_caption: _Optional[bool] = ..., complex_human_instruction: _Optional[str] = ..., priority: _Optional[_Union[_stage_pb2.Priority, str]] = ..., stage_fingerprint: _Optional[str] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: _stage_pb2.Result
    def __init__(self, result: _Optional[_Union[_stage_pb2.Result, _Mapping]] = ...) -> None: ...
