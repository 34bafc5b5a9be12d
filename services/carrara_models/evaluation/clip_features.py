"""Features of pictures, and of captions, by a CLIP in transformers' layout; safetensors only.

They are the projected embeddings, before they are scaled to length 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)
from transformers.utils.logging import disable_progress_bar

from carrara_models.errors import CheckpointError, ContractError, NumericalError
from carrara_models.evaluation.features import (
    BATCH_SIZE,
    Features,
    FeatureSpace,
    extract_in_batches,
)
from carrara_models.evaluation.preprocessing import Preprocessing
from carrara_models.fingerprints import component_fingerprint, stage_fingerprint
from carrara_models.weights import read_json, weight_files

# What a model of its own, by its `model_type`, is loaded as.
MODELS = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
# Of two towers in folders of their own, as the priors of unCLIP and Kandinsky have them.
IMAGE_ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"
TOKENIZER, IMAGE_PROCESSOR = "tokenizer", "image_processor"
# The letters that published vision transformers go by, by the width of their layers.
LETTERS = {768: "b", 1024: "l", 1280: "h", 1664: "bigg"}
USUAL_IMAGE_SIZE = 224
PILLOW_NUMBERS = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, eq=False)
class Reader:
    """A text tower.

    Attributes:
        embed: Tokens [B, L] and their mask [B, L] to features [B, D].
        max_tokens: L, the most that fit.
    """

    tokenizer: Any
    embed: Callable[[Tensor, Tensor], Tensor]
    max_tokens: int


class ClipNetwork:
    """A `FeatureNetwork`; with a text tower it reads captions too."""

    def __init__(
        self,
        embed: Callable[[Tensor], Tensor],
        reader: Reader | None,
        *,
        space: FeatureSpace,
        device: torch.device,
    ) -> None:
        self.space = space
        self._embed, self._reader, self._device = embed, reader, device

    @property
    def reads_captions(self) -> bool:
        """Whether there is a text tower."""
        return self._reader is not None

    def extract(self, pictures: NDArray[np.uint8], *, batch_size: int = BATCH_SIZE) -> Features:
        """Features of pictures uint8 [N, H, W, 3], in their order."""
        return extract_in_batches(
            self._embed, pictures, space=self.space, device=self._device, batch_size=batch_size
        )

    @torch.inference_mode()
    def read(self, captions: Sequence[str], *, batch_size: int = BATCH_SIZE) -> Features:
        """Features of N captions, in their order; each is cut to the tokens that fit.

        Raises:
            ContractError: There is no text tower.
            NumericalError: A feature is NaN or infinite.
        """
        reader = self._require_reader()
        batches = []
        for start in range(0, len(captions), batch_size):
            tokens = reader.tokenizer(
                list(captions[start : start + batch_size]),
                padding="max_length",
                truncation=True,
                max_length=reader.max_tokens,
                return_tensors="pt",
            ).to(self._device)
            features = reader.embed(tokens.input_ids, tokens.attention_mask)
            batches.append(features.float().cpu().numpy())
        values = np.concatenate(batches)
        if not np.isfinite(values).all():
            raise NumericalError(f"the text features of {self.space.name}")
        return Features(self.space, values)

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than fit.

        Raises:
            ContractError: There is no text tower.
        """
        reader = self._require_reader()
        tokens = reader.tokenizer(list(captions), truncation=False, verbose=False).input_ids
        return sum(len(ids) > reader.max_tokens for ids in tokens)

    def _require_reader(self) -> Reader:
        if self._reader is None:
            raise ContractError(f"{self.space.name} has no text tower, so it reads no captions.")
        return self._reader


def load_clip(
    folder: Path, *, name: str | None = None, device: torch.device | str = "cpu"
) -> ClipNetwork:
    """Loads a CLIP, in float32.

    Args:
        folder: Holds `config.json` of a CLIPModel or CLIPVisionModelWithProjection, safetensors,
            `preprocessor_config.json` or `processor_config.json`, and a CLIPModel's tokenizer. Or
            the folders `image_encoder`, `image_processor`, `text_encoder` and `tokenizer`, the last
            two together or not at all.
        name: Of the feature space, such as "drawn_clip"; None: from the size of the vision tower,
            such as "clip_vit_l_14", or where no published one has that size, from its weights.

    Raises:
        CheckpointError: Something is missing, broken or not CLIP's.
    """
    device = torch.device(device)
    if (folder / IMAGE_ENCODER).is_dir():
        return _load_towers(folder, name=name, device=device)
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in MODELS:
        raise CheckpointError(f"{folder} is a {kind!r}; features come from: {', '.join(MODELS)}.")
    model = _load(folder, MODELS[kind], device)
    whole = kind == "clip"
    space = _space(
        folder,
        vision=model.config.vision_config if whole else model.config,
        width=model.config.projection_dim,
        name=name,
        fingerprint=component_fingerprint(folder.parent, folder.name),
        preprocessing=_read_preprocessing(folder),
    )
    if not whole:
        return ClipNetwork(_embedding_of(model), None, space=space, device=device)

    def embed(pixels: Tensor) -> Tensor:
        return model.get_image_features(pixel_values=pixels).pooler_output

    def embed_text(ids: Tensor, mask: Tensor) -> Tensor:
        return model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output

    limit = model.config.text_config.max_position_embeddings
    reader = Reader(_load_tokenizer(folder), embed_text, limit)
    return ClipNetwork(embed, reader, space=space, device=device)


def _load_towers(folder: Path, *, name: str | None, device: torch.device) -> ClipNetwork:
    vision = _load(folder / IMAGE_ENCODER, CLIPVisionModelWithProjection, device)
    fingerprints = {IMAGE_ENCODER: component_fingerprint(folder, IMAGE_ENCODER)}
    reader = None
    if (folder / TEXT_ENCODER).is_dir():
        text = _load(folder / TEXT_ENCODER, CLIPTextModelWithProjection, device)
        if text.config.projection_dim != vision.config.projection_dim:
            raise CheckpointError(
                f"{folder} holds parts of two CLIPs: pictures have {vision.config.projection_dim} "
                f"features and captions {text.config.projection_dim}."
            )
        fingerprints[TEXT_ENCODER] = component_fingerprint(folder, TEXT_ENCODER)

        def embed_text(ids: Tensor, mask: Tensor) -> Tensor:
            return text(input_ids=ids, attention_mask=mask).text_embeds

        limit = text.config.max_position_embeddings
        reader = Reader(_load_tokenizer(folder / TOKENIZER), embed_text, limit)
    space = _space(
        folder,
        vision=vision.config,
        width=vision.config.projection_dim,
        name=name,
        fingerprint=stage_fingerprint(fingerprints),
        preprocessing=_read_preprocessing(folder / IMAGE_PROCESSOR),
    )
    return ClipNetwork(_embedding_of(vision), reader, space=space, device=device)


def _load(folder: Path, loader: Any, device: torch.device) -> Any:
    weight_files(folder)
    disable_progress_bar()  # stderr belongs to whoever loads
    try:
        model, info = loader.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # whatever a config may provoke in a large library
        raise CheckpointError(f"{folder} cannot be loaded as a CLIP: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the tensors that its config asks for, "
            f"{missing[0]} for one."
        )
    return model.eval().to(device)


def _load_tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # likewise
        raise CheckpointError(f"{folder} cannot be loaded as a CLIP: {error}") from error


def _embedding_of(tower: Any) -> Callable[[Tensor], Tensor]:
    return lambda pixels: tower(pixel_values=pixels).image_embeds


def _space(
    folder: Path,
    *,
    vision: Any,
    width: int,
    name: str | None,
    fingerprint: str,
    preprocessing: Preprocessing,
) -> FeatureSpace:
    if preprocessing.crop != vision.image_size:
        raise CheckpointError(
            f"{folder}: pictures are cropped to {preprocessing.crop} pixels, but the vision tower "
            f"takes {vision.image_size}."
        )
    return FeatureSpace(
        name=name or _published_name(vision) or f"clip_{fingerprint[:8]}",
        fingerprint=fingerprint,
        width=width,
        preprocessing=preprocessing,
    )


def _published_name(vision: Any) -> str | None:
    if vision.hidden_size not in LETTERS:
        return None
    name = f"clip_vit_{LETTERS[vision.hidden_size]}_{vision.patch_size}"
    usual = vision.image_size == USUAL_IMAGE_SIZE
    return name if usual else f"{name}_{vision.image_size}"


def _read_preprocessing(folder: Path) -> Preprocessing:
    file = folder / "preprocessor_config.json"
    if file.is_file():
        content = read_json(file)
    else:
        file = folder / "processor_config.json"
        content = read_json(file).get("image_processor", {})
    try:
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not content.get(step, True):
                raise ValueError(f"{step} is false")
        if not np.isclose(content.get("rescale_factor", 1 / 255), 1 / 255):
            raise ValueError(f"rescale_factor is {content['rescale_factor']}")
        size, crop = content["size"], content["crop_size"]
        # Older files give one number: the shortest edge, and a square.
        size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        keeps_ratio = "shortest_edge" in size
        edge = size["shortest_edge"] if keeps_ratio else size["height"]
        if not keeps_ratio and size["width"] != edge:
            raise ValueError(f"size {size} is not square")
        if crop["height"] != crop["width"] or crop["height"] > edge:
            raise ValueError(f"crop_size {crop} is no square within {edge} pixels")
        return Preprocessing(
            resize="shortest_edge" if keeps_ratio else "square",
            size=edge,
            crop=crop["height"],
            interpolation=PILLOW_NUMBERS[content["resample"]],
            mean=tuple(content["image_mean"]),
            std=tuple(content["image_std"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} describes no preparation known here: {error!r}.") from error
