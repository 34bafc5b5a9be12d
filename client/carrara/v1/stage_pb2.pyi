from carrara.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_TEXT_ENCODER: _ClassVar[Role]
    ROLE_GENERATOR: _ClassVar[Role]
    ROLE_DECODER: _ClassVar[Role]

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_CONDITIONING: _ClassVar[Kind]
    KIND_IMAGE_EMBEDS: _ClassVar[Kind]
    KIND_LATENTS: _ClassVar[Kind]
    KIND_POSTERIOR: _ClassVar[Kind]
    KIND_PIXELS: _ClassVar[Kind]
    KIND_IMAGE: _ClassVar[Kind]

class OutputFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_FORMAT_UNSPECIFIED: _ClassVar[OutputFormat]
    OUTPUT_FORMAT_UINT8: _ClassVar[OutputFormat]
    OUTPUT_FORMAT_PNG: _ClassVar[OutputFormat]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]

class Numerics(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NUMERICS_UNSPECIFIED: _ClassVar[Numerics]
    NUMERICS_EXACT: _ClassVar[Numerics]
    NUMERICS_FAST: _ClassVar[Numerics]

class WarningCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WARNING_CODE_UNSPECIFIED: _ClassVar[WarningCode]
    WARNING_CODE_PROMPT_TRUNCATED: _ClassVar[WarningCode]
    WARNING_CODE_CONTRACT_UNVERIFIED: _ClassVar[WarningCode]

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_BAD_FIELD: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_FIELD: _ClassVar[ErrorReason]
    ERROR_REASON_CONTRACT: _ClassVar[ErrorReason]
    ERROR_REASON_FINGERPRINT: _ClassVar[ErrorReason]
    ERROR_REASON_STATE: _ClassVar[ErrorReason]
    ERROR_REASON_QUEUE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_DEADLINE: _ClassVar[ErrorReason]
    ERROR_REASON_DRAINING: _ClassVar[ErrorReason]
    ERROR_REASON_NUMERICAL: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
    ERROR_REASON_OUT_OF_MEMORY: _ClassVar[ErrorReason]
ROLE_UNSPECIFIED: Role
ROLE_TEXT_ENCODER: Role
ROLE_GENERATOR: Role
ROLE_DECODER: Role
KIND_UNSPECIFIED: Kind
KIND_CONDITIONING: Kind
KIND_IMAGE_EMBEDS: Kind
KIND_LATENTS: Kind
KIND_POSTERIOR: Kind
KIND_PIXELS: Kind
KIND_IMAGE: Kind
OUTPUT_FORMAT_UNSPECIFIED: OutputFormat
OUTPUT_FORMAT_UINT8: OutputFormat
OUTPUT_FORMAT_PNG: OutputFormat
PRIORITY_UNSPECIFIED: Priority
PRIORITY_LOW: Priority
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
NUMERICS_UNSPECIFIED: Numerics
NUMERICS_EXACT: Numerics
NUMERICS_FAST: Numerics
WARNING_CODE_UNSPECIFIED: WarningCode
WARNING_CODE_PROMPT_TRUNCATED: WarningCode
WARNING_CODE_CONTRACT_UNVERIFIED: WarningCode
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_BAD_FIELD: ErrorReason
ERROR_REASON_UNKNOWN_FIELD: ErrorReason
ERROR_REASON_CONTRACT: ErrorReason
ERROR_REASON_FINGERPRINT: ErrorReason
ERROR_REASON_STATE: ErrorReason
ERROR_REASON_QUEUE_FULL: ErrorReason
ERROR_REASON_DEADLINE: ErrorReason
ERROR_REASON_DRAINING: ErrorReason
ERROR_REASON_NUMERICAL: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason
ERROR_REASON_OUT_OF_MEMORY: ErrorReason

class Contract(_message.Message):
    __slots__ = ("kind", "space", "producer", "tensors", "size_factor", "scaling_factor", "shift_factor")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    SCALING_FACTOR_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FACTOR_FIELD_NUMBER: _ClassVar[int]
    kind: Kind
    space: str
    producer: str
    tensors: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorSpec]
    size_factor: int
    scaling_factor: float
    shift_factor: float
    def __init__(self, kind: _Optional[_Union[Kind, str]] = ..., space: _Optional[str] = ..., producer: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[_tensor_pb2.TensorSpec, _Mapping]]] = ..., size_factor: _Optional[int] = ..., scaling_factor: _Optional[float] = ..., shift_factor: _Optional[float] = ...) -> None: ...

class Port(_message.Message):
    __slots__ = ("contract", "also_accepts", "required")
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    ALSO_ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    also_accepts: _containers.RepeatedScalarFieldContainer[str]
    required: bool
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., also_accepts: _Optional[_Iterable[str]] = ..., required: _Optional[bool] = ...) -> None: ...

class Conditioning(_message.Message):
    __slots__ = ("contract", "tensors")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    tensors: _containers.MessageMap[str, _tensor_pb2.Tensor]
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., tensors: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("contract", "tensors", "random_state", "height", "width", "resize_height", "resize_width")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    RANDOM_STATE_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RESIZE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESIZE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    contract: Contract
    tensors: _containers.MessageMap[str, _tensor_pb2.Tensor]
    random_state: RandomState
    height: int
    width: int
    resize_height: int
    resize_width: int
    def __init__(self, contract: _Optional[_Union[Contract, _Mapping]] = ..., tensors: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ..., random_state: _Optional[_Union[RandomState, _Mapping]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., resize_height: _Optional[int] = ..., resize_width: _Optional[int] = ...) -> None: ...

class RandomState(_message.Message):
    __slots__ = ("seed", "torch_cpu")
    SEED_FIELD_NUMBER: _ClassVar[int]
    TORCH_CPU_FIELD_NUMBER: _ClassVar[int]
    seed: int
    torch_cpu: bytes
    def __init__(self, seed: _Optional[int] = ..., torch_cpu: _Optional[bytes] = ...) -> None: ...

class Arguments(_message.Message):
    __slots__ = ("num_inference_steps", "guidance_scale", "true_cfg_scale", "scheduler", "height", "width", "eta", "guidance_rescale", "noise_level", "original_size", "target_size", "crops_coords_top_left", "negative_original_size", "negative_target_size", "negative_crops_coords_top_left", "use_resolution_binning")
    NUM_INFERENCE_STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    TRUE_CFG_SCALE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    ETA_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_RESCALE_FIELD_NUMBER: _ClassVar[int]
    NOISE_LEVEL_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    TARGET_SIZE_FIELD_NUMBER: _ClassVar[int]
    CROPS_COORDS_TOP_LEFT_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_ORIGINAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_TARGET_SIZE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_CROPS_COORDS_TOP_LEFT_FIELD_NUMBER: _ClassVar[int]
    USE_RESOLUTION_BINNING_FIELD_NUMBER: _ClassVar[int]
    num_inference_steps: int
    guidance_scale: float
    true_cfg_scale: float
    scheduler: str
    height: int
    width: int
    eta: float
    guidance_rescale: float
    noise_level: int
    original_size: _containers.RepeatedScalarFieldContainer[int]
    target_size: _containers.RepeatedScalarFieldContainer[int]
    crops_coords_top_left: _containers.RepeatedScalarFieldContainer[int]
    negative_original_size: _containers.RepeatedScalarFieldContainer[int]
    negative_target_size: _containers.RepeatedScalarFieldContainer[int]
    negative_crops_coords_top_left: _containers.RepeatedScalarFieldContainer[int]
    use_resolution_binning: bool
    def __init__(self, num_inference_steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., true_cfg_scale: _Optional[float] = ..., scheduler: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., eta: _Optional[float] = ..., guidance_rescale: _Optional[float] = ..., noise_level: _Optional[int] = ..., original_size: _Optional[_Iterable[int]] = ..., target_size: _Optional[_Iterable[int]] = ..., crops_coords_top_left: _Optional[_Iterable[int]] = ..., negative_original_size: _Optional[_Iterable[int]] = ..., negative_target_size: _Optional[_Iterable[int]] = ..., negative_crops_coords_top_left: _Optional[_Iterable[int]] = ..., use_resolution_binning: _Optional[bool] = ...) -> None: ...

class Job(_message.Message):
    __slots__ = ("arguments", "conditioning", "sample", "random_state", "consumer", "output_format", "priority", "stage_fingerprint", "preview_interval_steps", "resumable", "resume")
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    RANDOM_STATE_FIELD_NUMBER: _ClassVar[int]
    CONSUMER_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STAGE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_INTERVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    arguments: Arguments
    conditioning: Conditioning
    sample: Sample
    random_state: RandomState
    consumer: Contract
    output_format: OutputFormat
    priority: Priority
    stage_fingerprint: str
    preview_interval_steps: int
    resumable: bool
    resume: JobState
    def __init__(self, arguments: _Optional[_Union[Arguments, _Mapping]] = ..., conditioning: _Optional[_Union[Conditioning, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., random_state: _Optional[_Union[RandomState, _Mapping]] = ..., consumer: _Optional[_Union[Contract, _Mapping]] = ..., output_format: _Optional[_Union[OutputFormat, str]] = ..., priority: _Optional[_Union[Priority, str]] = ..., stage_fingerprint: _Optional[str] = ..., preview_interval_steps: _Optional[int] = ..., resumable: _Optional[bool] = ..., resume: _Optional[_Union[JobState, _Mapping]] = ...) -> None: ...

class JobState(_message.Message):
    __slots__ = ("step", "tensors", "random_state", "provenance", "job_digest", "usage")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _tensor_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    RANDOM_STATE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    JOB_DIGEST_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    step: int
    tensors: _containers.MessageMap[str, _tensor_pb2.Tensor]
    random_state: RandomState
    provenance: Provenance
    job_digest: bytes
    usage: Usage
    def __init__(self, step: _Optional[int] = ..., tensors: _Optional[_Mapping[str, _tensor_pb2.Tensor]] = ..., random_state: _Optional[_Union[RandomState, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., job_digest: _Optional[bytes] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("queued", "progress", "preview", "result", "suspended")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    queued: Queued
    progress: Progress
    preview: Preview
    result: Result
    suspended: JobState
    def __init__(self, queued: _Optional[_Union[Queued, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., suspended: _Optional[_Union[JobState, _Mapping]] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("position", "expected_start_ms")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_START_MS_FIELD_NUMBER: _ClassVar[int]
    position: int
    expected_start_ms: float
    def __init__(self, position: _Optional[int] = ..., expected_start_ms: _Optional[float] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "num_steps")
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    step: int
    num_steps: int
    def __init__(self, step: _Optional[int] = ..., num_steps: _Optional[int] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("step", "image")
    STEP_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    step: int
    image: _tensor_pb2.Tensor
    def __init__(self, step: _Optional[int] = ..., image: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("conditioning", "sample", "usage", "provenance", "warnings")
    CONDITIONING_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    conditioning: Conditioning
    sample: Sample
    usage: Usage
    provenance: Provenance
    warnings: _containers.RepeatedCompositeFieldContainer[Warning]
    def __init__(self, conditioning: _Optional[_Union[Conditioning, _Mapping]] = ..., sample: _Optional[_Union[Sample, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., warnings: _Optional[_Iterable[_Union[Warning, _Mapping]]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("queue_ms", "running_ms", "compute_ms", "steps", "rows", "cache_hits", "bytes_in", "bytes_out")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    running_ms: float
    compute_ms: float
    steps: int
    rows: int
    cache_hits: int
    bytes_in: int
    bytes_out: int
    def __init__(self, queue_ms: _Optional[float] = ..., running_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., steps: _Optional[int] = ..., rows: _Optional[int] = ..., cache_hits: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("stage_fingerprint", "numerics", "engine", "precision", "device", "versions", "num_threads")
    class VersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STAGE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    stage_fingerprint: str
    numerics: Numerics
    engine: str
    precision: _tensor_pb2.DataType
    device: str
    versions: _containers.ScalarMap[str, str]
    num_threads: int
    def __init__(self, stage_fingerprint: _Optional[str] = ..., numerics: _Optional[_Union[Numerics, str]] = ..., engine: _Optional[str] = ..., precision: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., device: _Optional[str] = ..., versions: _Optional[_Mapping[str, str]] = ..., num_threads: _Optional[int] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("code", "message", "field", "detail")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    code: WarningCode
    message: str
    field: str
    detail: str
    def __init__(self, code: _Optional[_Union[WarningCode, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("role", "family", "fingerprint", "components", "consumes", "produces", "arguments", "provenance", "max_message_bytes", "max_pixels", "load", "checkpoint", "max_prompt_bytes", "stage", "resumable", "previews")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    CONSUMES_FIELD_NUMBER: _ClassVar[int]
    PRODUCES_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    family: str
    fingerprint: str
    components: _containers.RepeatedCompositeFieldContainer[Component]
    consumes: _containers.RepeatedCompositeFieldContainer[Port]
    produces: _containers.RepeatedCompositeFieldContainer[Contract]
    arguments: _containers.RepeatedCompositeFieldContainer[Argument]
    provenance: Provenance
    max_message_bytes: int
    max_pixels: int
    load: Load
    checkpoint: str
    max_prompt_bytes: int
    stage: str
    resumable: bool
    previews: bool
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., family: _Optional[str] = ..., fingerprint: _Optional[str] = ..., components: _Optional[_Iterable[_Union[Component, _Mapping]]] = ..., consumes: _Optional[_Iterable[_Union[Port, _Mapping]]] = ..., produces: _Optional[_Iterable[_Union[Contract, _Mapping]]] = ..., arguments: _Optional[_Iterable[_Union[Argument, _Mapping]]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., max_message_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., checkpoint: _Optional[str] = ..., max_prompt_bytes: _Optional[int] = ..., stage: _Optional[str] = ..., resumable: _Optional[bool] = ..., previews: _Optional[bool] = ...) -> None: ...

class Component(_message.Message):
    __slots__ = ("name", "class_name", "fingerprint", "parameters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    class_name: str
    fingerprint: str
    parameters: int
    def __init__(self, name: _Optional[str] = ..., class_name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., parameters: _Optional[int] = ...) -> None: ...

class Argument(_message.Message):
    __slots__ = ("name", "minimum", "maximum", "default_number", "multiple_of", "choices", "length")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_OF_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    minimum: float
    maximum: float
    default_number: float
    multiple_of: int
    choices: _containers.RepeatedScalarFieldContainer[str]
    length: int
    def __init__(self, name: _Optional[str] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., default_number: _Optional[float] = ..., multiple_of: _Optional[int] = ..., choices: _Optional[_Iterable[str]] = ..., length: _Optional[int] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("queue_seconds", "max_queue_seconds", "draining", "jobs_queued", "jobs_running", "rows", "max_batch_rows", "max_queue_jobs")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    JOBS_QUEUED_FIELD_NUMBER: _ClassVar[int]
    JOBS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_JOBS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    max_queue_seconds: float
    draining: bool
    jobs_queued: int
    jobs_running: int
    rows: int
    max_batch_rows: int
    max_queue_jobs: int
    def __init__(self, queue_seconds: _Optional[float] = ..., max_queue_seconds: _Optional[float] = ..., draining: _Optional[bool] = ..., jobs_queued: _Optional[int] = ..., jobs_running: _Optional[int] = ..., rows: _Optional[int] = ..., max_batch_rows: _Optional[int] = ..., max_queue_jobs: _Optional[int] = ...) -> None: ...
