"""What the parts raise for the caller to read; each carries what its message is made of."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint that cannot be found, read or used; the message says what to do about it."""


class BadFieldError(ValueError):
    """A setting outside its range.

    Attributes:
        field: Its name, as in `carrara.v1.Arguments`.
        value: What was given.
        allowed: The allowed range, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field}: {value!r} is not allowed; allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class ContractError(Exception):
    """Two parts that do not fit together; the message names both sides."""


class JobStateError(ValueError):
    """A state that a job cannot go on from; starting it again helps.

    Attributes:
        field: What of the state.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"this job cannot go on from here: {field}: {message}")
        self.field = field


class NumericalError(ArithmeticError):
    """NaN or infinity in a tensor.

    Attributes:
        tensor: Which one.
        step: Steps done when it was seen; None outside a denoising loop.
    """

    def __init__(self, tensor: str, step: int | None = None) -> None:
        after = "" if step is None else f" after step {step}"
        super().__init__(f"NaN or infinity in {tensor}{after}")
        self.tensor, self.step = tensor, step
