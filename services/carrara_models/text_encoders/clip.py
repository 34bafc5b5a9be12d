"""CLIP's text tower, as Stable Diffusion conditions on it: the last hidden state of every token."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from carrara_models.checkpoints import Checkpoint, load_component
from carrara_models.contracts import Argument, Component, Contract, Kind, Port, TensorSpec
from carrara_models.errors import CheckpointError, NumericalError
from carrara_models.parts import Encoded

FIELDS = {"prompt": "prompt_embeds", "negative_prompt": "negative_prompt_embeds"}


@dataclass(frozen=True)
class ClipTextEncoder:
    """A `parts.TextEncoder`; bit-identical to `StableDiffusionPipeline.encode_prompt`."""

    tokenizer: Any
    text_encoder: Any
    fingerprint: str
    family: str
    components: tuple[Component, ...]
    consumes: tuple[Port, ...]
    produces: tuple[Contract, ...]
    arguments: tuple[Argument, ...]
    device: torch.device
    dtype: torch.dtype
    _tokenizing: threading.Lock  # padding and truncation are state of the fast tokenizers

    @torch.no_grad()
    def encode_text(self, text: str, *, field: str) -> Encoded:
        """Encodes one text.

        Args:
            text: Any string; what is beyond the tokenizer's length is cut and reported.
            field: "prompt" or "negative_prompt".

        Returns:
            `prompt_embeds` or `negative_prompt_embeds`, [1, L, D].

        Raises:
            NumericalError: The embeddings hold NaN or infinity.
        """
        name = FIELDS[field]
        tokens, cut = self._tokenize(text)
        mask = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(self.device)
        embeds = self.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        if not torch.isfinite(embeds).all():
            raise NumericalError(name)
        return Encoded(tensors={name: embeds}, truncated={field: cut} if cut else {})

    def _tokenize(self, text: str) -> tuple[Any, str]:
        """The padded tokens, and the words that were cut."""
        length = self.tokenizer.model_max_length
        with self._tokenizing:
            # Textual inversion may have taught the tokenizer words of several tokens.
            [text] = TextualInversionLoaderMixin().maybe_convert_prompt([text], self.tokenizer)
            tokens = self.tokenizer(
                [text],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
            whole = self.tokenizer([text], truncation=False, verbose=False).input_ids[0]
            cut = self.tokenizer.decode(whole[length - 1 : -1]) if len(whole) > length else ""
        return tokens, cut


def load(checkpoint: Checkpoint, *, device: torch.device, dtype: torch.dtype) -> ClipTextEncoder:
    """Loads tokenizer and text encoder of a checkpoint that was opened for the text encoder.

    Raises:
        CheckpointError: A file is broken, or the two do not fit together.
    """
    disable_progress_bar()  # stderr belongs to whoever loads
    tokenizer = _load_tokenizer(checkpoint)
    text_encoder = load_component(checkpoint, "text_encoder", loader=CLIPTextModel, dtype=dtype)
    config = text_encoder.config
    if tokenizer.model_max_length > config.max_position_embeddings:
        raise CheckpointError(
            f"{checkpoint.path / 'tokenizer'} makes up to {tokenizer.model_max_length} tokens; "
            f"the text encoder takes {config.max_position_embeddings}."
        )
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path / 'tokenizer'} knows {len(tokenizer)} tokens; "
            f"the text encoder knows {config.vocab_size}."
        )
    fingerprint = checkpoint.fingerprints["text_encoder"]
    shape = (1, tokenizer.model_max_length, config.hidden_size)
    return ClipTextEncoder(
        tokenizer=tokenizer,
        text_encoder=text_encoder.to(device),
        fingerprint=checkpoint.fingerprint,
        family=checkpoint.family.name,
        components=(
            Component(
                "tokenizer", type(tokenizer).__name__, checkpoint.fingerprints["tokenizer"], 0
            ),
            Component("text_encoder", "CLIPTextModel", fingerprint, text_encoder.num_parameters()),
        ),
        consumes=(),
        produces=(
            Contract(
                kind=Kind.CONDITIONING,
                space=fingerprint,
                tensors=(
                    TensorSpec("prompt_embeds", shape),
                    TensorSpec("negative_prompt_embeds", shape, required=False),
                ),
            ),
        ),
        arguments=(Argument("prompt"), Argument("negative_prompt"), Argument("guidance")),
        device=device,
        dtype=dtype,
        _tokenizing=threading.Lock(),
    )


def _load_tokenizer(checkpoint: Checkpoint) -> Any:
    folder = checkpoint.path / "tokenizer"
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise CheckpointError(f"{folder} cannot be loaded as CLIPTokenizer: {error}") from error
