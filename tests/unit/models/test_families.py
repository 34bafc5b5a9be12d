"""The table of families holds together, and names nothing that is not there."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import diffusers
import pytest

from carrara_models import checkpoints
from carrara_models.checkpoints import open_checkpoint, stages_of, stages_of_all
from carrara_models.errors import CheckpointError
from carrara_models.families import FAMILIES, STAGE_ROLES, argument_prefix
from carrara_models.parts import Texts
from families import CASES


def test_a_stage_name_means_the_same_role_in_every_family() -> None:
    for family in FAMILIES.values():
        for stage, plan in family.parts.items():
            assert STAGE_ROLES[stage] == plan.role
            assert stage == plan.role or stage not in ("text-encoder", "generator", "decoder")


def test_stages_stand_in_the_order_of_the_images_way() -> None:
    order = ("text-encoder", "generator", "decoder")
    for family in FAMILIES.values():
        ranks = [order.index(plan.role) for plan in family.parts.values()]
        assert ranks == sorted(ranks), family.name


@pytest.mark.parametrize("pipeline_class", FAMILIES)
def test_every_pipeline_and_part_is_there(pipeline_class: str) -> None:
    assert hasattr(diffusers, pipeline_class)
    for plan in FAMILIES[pipeline_class].parts.values():
        assert callable(import_module(plan.module).load)
        assert plan.optional <= plan.components.keys()
        assert plan.reads.isdisjoint(plan.components)


def test_every_family_has_a_parity_case() -> None:
    served = {
        checkpoints.read_index(folder)[0] for case in CASES.values() for folder in case.folders
    }
    assert served == FAMILIES.keys()


def test_arguments_of_siblings_carry_their_name() -> None:
    assert [argument_prefix(stage) for stage in ("generator", "prior", "super-res")] == [
        "",
        "prior_",
        "super_res_",
    ]


def test_a_stage_that_the_family_lacks_is_refused_with_those_it_has() -> None:
    (folder,) = CASES["unclip"].folders
    with pytest.raises(CheckpointError, match=r"no stage 'upscaler'.*prior, generator, super-res"):
        open_checkpoint(folder, stage="upscaler")


def test_a_text_encoder_that_the_index_leaves_out_is_no_stage(tmp_path: Path) -> None:
    """So DeepFloyd IF's super-resolution is often stored: the base brings the embeddings."""
    _, super_res = CASES["if"].folders
    index = (super_res / "model_index.json").read_text()
    for name, kind in (("text_encoder", "T5EncoderModel"), ("tokenizer", "T5Tokenizer")):
        index = index.replace(f'"{kind}"', "null")
        index = index.replace(f'"{name}": [\n    "transformers"', f'"{name}": [\n    null')
    (tmp_path / "model_index.json").write_text(index)
    assert list(stages_of(tmp_path)) == ["super-res"]


def test_of_one_checkpoint_no_weights_are_read_to_tell_its_stages(tmp_path: Path) -> None:
    (folder,) = CASES["sdxl"].folders
    (tmp_path / "model_index.json").write_text((folder / "model_index.json").read_text())
    assert [stage for _, stage in stages_of_all([tmp_path])] == [
        "text-encoder",
        "generator",
        "decoder",
    ]


def test_a_prompt_has_the_halves_that_are_asked_for() -> None:
    both = Texts("a", prompt_2="b", negative=True, negative_prompt="c", clip_skip=1)
    positive, negative = both.halves
    assert positive == Texts("a", prompt_2="b", clip_skip=1)
    assert negative == Texts(None, negative=True, negative_prompt="c", clip_skip=1)
    assert Texts("a", negative_prompt="c").halves == (Texts("a"),)
    assert negative.halves == (negative,)
