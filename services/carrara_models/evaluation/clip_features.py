"""Features of pictures, and of captions, by a CLIP in transformers' layout; safetensors only.

They are the projected embeddings, before they are scaled to length 1.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, CLIPVisionModelWithProjection

from carrara_models.errors import CheckpointError, ContractError, NumericalError
from carrara_models.evaluation.features import (
    BATCH_SIZE,
    Features,
    FeatureSpace,
    extract_in_batches,
)
from carrara_models.evaluation.preprocessing import Preprocessing
from carrara_models.fingerprints import component_fingerprint
from carrara_models.weights import read_json, weight_files

MODELS = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
# The letters that published vision transformers go by, by the width of their layers.
LETTERS = {768: "b", 1024: "l", 1280: "h", 1664: "bigg"}
USUAL_IMAGE_SIZE = 224
PILLOW_NUMBERS = {2: "bilinear", 3: "bicubic"}


class ClipNetwork:
    """A `FeatureNetwork`; with a text tower it reads captions too."""

    def __init__(self, model: Any, tokenizer: Any, *, space: FeatureSpace) -> None:
        self.space = space
        self._model, self._tokenizer = model, tokenizer

    def extract(self, pictures: NDArray[np.uint8], *, batch_size: int = BATCH_SIZE) -> Features:
        """Features of pictures uint8 [N, H, W, 3], in their order."""
        return extract_in_batches(
            self._embed,
            pictures,
            space=self.space,
            device=self._model.device,
            batch_size=batch_size,
        )

    @torch.inference_mode()
    def read(self, captions: Sequence[str], *, batch_size: int = BATCH_SIZE) -> Features:
        """Features of N captions, in their order; each is cut to the tokens that fit.

        Raises:
            ContractError: There is no text tower.
            NumericalError: A feature is NaN or infinite.
        """
        tokenizer, limit = self._reader()
        batches = []
        for start in range(0, len(captions), batch_size):
            tokens = tokenizer(
                list(captions[start : start + batch_size]),
                padding="max_length",
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            ).to(self._model.device)
            states = self._model.get_text_features(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            )
            batches.append(states.pooler_output.float().cpu().numpy())
        values = np.concatenate(batches)
        if not np.isfinite(values).all():
            raise NumericalError(f"the text features of {self.space.name}")
        return Features(self.space, values)

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than fit.

        Raises:
            ContractError: There is no text tower.
        """
        tokenizer, limit = self._reader()
        tokens = tokenizer(list(captions), truncation=False, verbose=False).input_ids
        return sum(len(ids) > limit for ids in tokens)

    def _embed(self, pixels: Tensor) -> Tensor:
        if isinstance(self._model, CLIPModel):
            return self._model.get_image_features(pixel_values=pixels).pooler_output
        return self._model(pixel_values=pixels).image_embeds

    def _reader(self) -> tuple[Any, int]:
        if self._tokenizer is None:
            raise ContractError(f"{self.space.name} has no text tower, so it reads no captions.")
        return self._tokenizer, self._model.config.text_config.max_position_embeddings


def load_clip(
    folder: Path, *, name: str | None = None, device: torch.device | str = "cpu"
) -> ClipNetwork:
    """Loads a CLIP, in float32.

    Args:
        folder: Holds `config.json` of a CLIPModel or CLIPVisionModelWithProjection, safetensors,
            `preprocessor_config.json` or `processor_config.json`, and a CLIPModel's tokenizer.
        name: Of the feature space, such as "drawn_clip"; None: from the size of the vision tower,
            such as "clip_vit_l_14".

    Raises:
        CheckpointError: Something is missing, broken or not CLIP's.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in MODELS:
        raise CheckpointError(f"{folder} is a {kind!r}; features come from: {', '.join(MODELS)}.")
    weight_files(folder)
    try:
        model, info = MODELS[kind].from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
        tokenizer = (
            AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            if kind == "clip"
            else None
        )
    except Exception as error:  # whatever a config may provoke in a large library
        raise CheckpointError(f"{folder} cannot be loaded as a CLIP: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the tensors that its config asks for, "
            f"{missing[0]} for one."
        )
    vision = model.config.vision_config if kind == "clip" else model.config
    preprocessing = _read_preprocessing(folder)
    if preprocessing.crop != vision.image_size:
        raise CheckpointError(
            f"{folder}: pictures are cropped to {preprocessing.crop} pixels, but the vision tower "
            f"takes {vision.image_size}."
        )
    space = FeatureSpace(
        name=name or _published_name(vision, folder),
        fingerprint=component_fingerprint(folder.parent, folder.name),
        width=model.config.projection_dim,
        preprocessing=preprocessing,
    )
    return ClipNetwork(model.eval().to(device), tokenizer, space=space)


def _published_name(vision: Any, folder: Path) -> str:
    if vision.hidden_size not in LETTERS:
        raise CheckpointError(
            f"{folder}: a vision tower of width {vision.hidden_size} has no published name; "
            "give one."
        )
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
