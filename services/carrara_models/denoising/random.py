"""Random generators from seeds and states; on the CPU, so that no picture depends on the device."""

from __future__ import annotations

import torch

from carrara_models.errors import BadFieldError

MAX_SEED = 2**64 - 1
STATE_BYTES = torch.Generator("cpu").get_state().numel()


def torch_generator(random_state: int | torch.Tensor) -> torch.Generator:
    """Makes the generator that `torch.Generator("cpu")` would be with this seed or in this state.

    Args:
        random_state: A seed in [0, 2^64), of which torch's Mersenne Twister takes in the lower 32
            bits; or a state, uint8 [5056].

    Raises:
        BadFieldError: The seed is out of range, or the state is none.
    """
    generator = torch.Generator("cpu")
    if isinstance(random_state, int):
        if not 0 <= random_state <= MAX_SEED:
            raise BadFieldError("seed", random_state, f"0 to {MAX_SEED}")
        return generator.manual_seed(random_state)
    allowed = f"the state of a torch CPU generator, uint8 [{STATE_BYTES}]"
    given = f"{random_state.dtype} {list(random_state.shape)}"
    if random_state.dtype != torch.uint8 or random_state.shape != (STATE_BYTES,):
        raise BadFieldError("random_state", given, allowed)
    try:
        generator.set_state(random_state.cpu())
    except RuntimeError as error:  # torch checks the fields of the Mersenne Twister
        raise BadFieldError("random_state", given, allowed) from error
    return generator
