"""Writes what docs/families.md tells of the families, out of the code and the cases that test it.

    .venv/bin/python tests/families/page.py --write docs/families.md

Each `<!-- generated: NAME -->` of the page is followed, up to `<!-- end -->`, by what `SECTIONS`
makes for the name; the rest is written by hand and left as it is. Without --write the page is only
compared: prints the difference, and the status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":  # else pytest has set it
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers

from carrara.arguments import kind_of
from carrara_models.contracts import Argument, Contract, Kind, TensorSpec
from carrara_models.denoising.schedulers import FLOW_SCHEDULERS, SCHEDULERS
from carrara_models.families import FAMILIES, PartPlan, argument_prefix
from carrara_models.families import SCHEDULERS as SCHEDULER_CLASSES
from families import CASES
from families.told import (
    IN_PROCESS,
    SERVED,
    Told,
    cases_of,
    not_taken,
    number_of,
    pipelines_of,
    stages_of,
    values_set,
)

# What each pipeline follows; nothing in a checkpoint says it.
FRAMEWORKS: Mapping[str, str] = {
    "StableDiffusionPipeline": "latent diffusion (Rombach et al. 2022)",
    "StableDiffusionXLPipeline": "latent diffusion (SDXL: Podell et al. 2023)",
    "StableDiffusion3Pipeline": "latent diffusion, as rectified flow (Esser et al. 2024)",
    "IFPipeline": "Imagen (Saharia et al. 2022), the base model",
    "IFSuperResolutionPipeline": "Imagen (Saharia et al. 2022), super-resolution",
    "StableDiffusionUpscalePipeline": "latent diffusion (Rombach et al. 2022), of larger pictures",
    "DDPMPipeline": "DDPM (Ho et al. 2020)",
    "DDIMPipeline": "DDPM, sampled by DDIM (Song et al. 2021)",
    "UnCLIPPipeline": "DALL-E 2 (Ramesh et al. 2022)",
    "FluxPipeline": "latent diffusion, as rectified flow (FLUX.1: Black Forest Labs 2024)",
    "PixArtSigmaPipeline": "latent diffusion (PixArt-Sigma: Chen et al. 2024)",
    "SanaPipeline": "latent diffusion (Sana: Xie et al. 2024)",
    "KandinskyV22PriorPipeline": "DALL-E 2 (Ramesh et al. 2022), the prior",
    "KandinskyV22Pipeline": "DALL-E 2, in latents (Kandinsky: Razzhigaev et al. 2023)",
}

# The axes of each tensor after its first, which is 1, or n where a contract leaves it open.
AXES: Mapping[str, tuple[str, ...]] = {
    "prompt_embeds": ("L", "D"),
    "pooled_prompt_embeds": ("P",),
    "prompt_attention_mask": ("L",),
    "image_embeds": ("E",),
    "zero_image_embeds": ("E",),
    "latents": ("C", "h", "w"),
    "pixels": ("3", "H", "W"),
}

# Arguments whose default is the checkpoint's; here it would be a tiny one's.
OF_THE_CHECKPOINT = {"height", "width", "scheduler"}

MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def overview() -> str:
    rows = []
    for pipeline_class, family in FAMILIES.items():
        number = str(sum(len(case.settings) for case in cases_of(pipeline_class)))
        if pipeline_class == "StableDiffusionPipeline":
            number += " and its own"
        rows.append(
            [
                f"[{family.name}](#{family.name.replace('.', '')})",
                f"`{pipeline_class}`",
                FRAMEWORKS[pipeline_class],
                listed(family.parts),
                number,
            ]
        )
    return table(["family", "diffusers' pipeline", "framework", "stages", "settings"], rows)


def compared() -> str:
    total = sum(len(case.settings) for case in CASES.values())
    rows = [
        [
            f"`{case.name}`",
            ", then ".join(f"`{name}`" for name in pipelines_of(case.name)),
            f"{len(case.settings)}: {listed(case.settings)}",
        ]
        for case in CASES.values()
    ]
    return "\n\n".join(
        [
            f"**{total} settings in {len(CASES)} cases, bit-identical to diffusers "
            f"{diffusers.__version__} in float32 on the CPU: alone, batched and served by "
            "processes.**",
            table(["case", "checkpoints", "settings"], rows),
            "Stable Diffusion by itself has tests of its own beside these "
            "(`tests/parity/test_in_process.py`, `tests/parity/test_three_processes.py`): "
            f"{number_of(IN_PROCESS)} settings of each of two checkpoints (1.x and 2.x) in one "
            f"process, with every sampler, guided and not; {number_of(SERVED)} of each of three "
            "(these two, and the shipped `drawn-latent`) as processes; and sixteen unequal "
            "requests at once.",
        ]
    )


def prefixes() -> str:
    users: dict[tuple[str, str], list[str]] = {}
    for family in FAMILIES.values():
        for stage, plan in family.parts.items():
            users.setdefault((stage, plan.role), []).append(family.name)
    rows = []
    for (stage, role), names in users.items():
        prefix = argument_prefix(stage)
        where = ", ".join(names) if prefix else f"{len(names)} families"
        rows.append([f"`{stage}`", role, f"`{prefix}`" if prefix else "none", where])
    return table(["stage", "role", "prefix", "in"], rows)


def samplers() -> str:
    rows = [
        [f"`{name}`", f"`{class_name}`", kind]
        for kind, known in (("diffusion", SCHEDULERS), ("flow matching", FLOW_SCHEDULERS))
        for name, (class_name, _) in known.items()
    ]
    return (
        table(["name", "class", "of"], rows)
        + f"\n\nWhere a table below says *any of the {len(SCHEDULER_CLASSES)}*, the checkpoint's "
        f"own scheduler may be one of {listed(SCHEDULER_CLASSES)}."
    )


def arguments_not_taken() -> str:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, families in not_taken().items():
        groups.setdefault(tuple(families), []).append(name)
    rows = [
        [listed(names), ", ".join(families)]
        for families, names in sorted(groups.items(), key=lambda group: -len(group[0]))
    ]
    return table(["argument of the call", "of the pipelines of"], rows)


def all_families() -> str:
    return "\n\n".join(map(family_section, FAMILIES))


def family_section(pipeline_class: str) -> str:
    """All that is told of one family."""
    stages = stages_of(pipeline_class)
    rows = [
        [
            f"`{stage.name}`",
            stage.plan.role,
            ", ".join(component(stage.plan, name) for name in stage.plan.components),
            consumed(stage),
            produced(stage),
        ]
        for stage in stages
    ]
    points = [
        f"**Settings.** {' '.join(filter(None, map(settings, stages)))}",
        f"**Samplers.** {' '.join(filter(None, map(choice_of_samplers, stages)))}",
        f"**Compared.** {what_was_compared(pipeline_class, stages)}",
    ]
    if single := [stage.name for stage in stages if stage.calls_one_by_one]:
        points.append(
            f"**Batches.** On the CPU the network of {listed(single)} is called for one job at a "
            "time."
        )
    return "\n\n".join(
        [
            f"### {FAMILIES[pipeline_class].name}",
            f"`{pipeline_class}`; {FRAMEWORKS[pipeline_class]}.",
            table(["stage", "role", "loads", "consumes", "produces"], rows),
            "\n".join(f"- {point}" for point in points),
        ]
    )


def component(plan: PartPlan, name: str) -> str:
    """One sub-folder, with the classes that it may be of."""
    classes = plan.components[name]
    notes = ["optional"] if name in plan.optional else []
    if classes == SCHEDULER_CLASSES:
        notes.append(f"any of the {len(classes)}")
    elif not name.startswith("tokenizer"):
        notes.append(" or ".join(f"`{each}`" for each in classes))
    return f"`{name}`" + (f" ({', '.join(notes)})" if notes else "")


def consumed(stage: Told) -> str:
    if stage.plan.role == "text-encoder":
        return "texts"
    return "; ".join(payload(port.contract) for port in stage.parts[0].consumes) or "nothing"


def produced(stage: Told) -> str:
    """What goes on to a next stage, and then the picture."""
    made = sorted(stage.parts[0].produces, key=lambda contract: contract.kind is Kind.IMAGE)
    return " or ".join(payload(contract) for contract in made)


def payload(contract: Contract) -> str:
    """A payload's tensors, with letters for their sizes."""
    if contract.kind is Kind.IMAGE:
        return "the picture"
    specs = {spec.name: spec for spec in contract.tensors}
    twins = [spec for name, spec in specs.items() if name.startswith("negative_")]
    words = [tensor(spec) for spec in specs.values() if spec not in twins]
    if twins:
        whose = "the `negative_` twin of each" if len(twins) > 1 else "its `negative_` twin"
        words.insert(len(twins), whose if twins[0].required else f"with guidance {whose}")
    return ", ".join(words)


def tensor(spec: TensorSpec) -> str:
    axes = AXES[spec.name]
    assert len(spec.shape) == 1 + len(axes), f"{spec.name} is {spec.shape}; its axes are {axes}"
    said = f"`{spec.name}` [{', '.join([str(spec.shape[0] or 'n'), *axes])}]"
    return said if spec.required else f"perhaps {said}"


def settings(stage: Told) -> str:
    """What a stage takes, as `generate` spells it, with the defaults of the family."""
    words = []
    for name, argument in stage.arguments.items():
        notes = []
        if argument.default is not None and argument.name not in OF_THE_CHECKPOINT:
            notes.append(default_of(argument))
        if not stage.is_of_every_checkpoint(argument):
            notes.append("of some checkpoints")
        words.append(f"`{name}`" + (f" ({', '.join(notes)})" if notes else ""))
    return f"`{stage.name}`: {', '.join(words)}." if words else ""


def default_of(argument: Argument) -> str:
    field = kind_of(argument.name)
    if field is not None and field.cpp_type == field.CPPTYPE_BOOL:
        return str(bool(argument.default)).lower()
    return f"{argument.default:g}"


def choice_of_samplers(stage: Told) -> str:
    if not stage.denoises:
        return ""
    offered = [part.samplers.others for part in stage.parts]
    names = list(dict.fromkeys(name for others in offered for name in others))
    if not names:
        return f"`{stage.name}`: the checkpoint's own alone."
    words = f"any of the {len(names)} of diffusion"
    if names != list(SCHEDULERS):
        always = [name for name in names if all(name in others for others in offered)]
        words = listed(always)
        if sometimes := [name for name in names if name not in always]:
            words += f", of some checkpoints {listed(sometimes)}"
    return f"`{stage.name}`: the checkpoint's own, or {words}."


def what_was_compared(pipeline_class: str, stages: Iterable[Told]) -> str:
    cases = [f"`{case.name}` ({len(case.settings)})" for case in cases_of(pipeline_class)]
    if pipeline_class == "StableDiffusionPipeline":
        cases.append("tests of its own")
    words = [f"{', '.join(cases)}."]
    values = values_set(pipeline_class)
    for stage in stages:
        names = values.get(argument_prefix(stage.name) + "scheduler", set()) - {None}
        if stage.denoises and names:
            those = f"all {len(names)}" if names == set(SCHEDULERS) else listed(sorted(names))
            words.append(f"Samplers of `{stage.name}`: the checkpoint's own, {those}.")
    if left := [name for stage in stages for name in stage.arguments if name not in values]:
        words.append(f"Always at its default: {listed(left)}.")
    return " ".join(words)


def example(name: str) -> str:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return f"```python\n{text}```"


def listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "overview": overview,
    "compared": compared,
    "prefixes": prefixes,
    "samplers": samplers,
    "arguments-not-taken": arguments_not_taken,
    "families": all_families,
    "example-row": functools.partial(example, "example_row.py"),
    "example-part": functools.partial(example, "example_part.py"),
    "example-case": functools.partial(example, "example_case.py"),
}


def made_anew(page: str) -> str:
    """The page with all that is generated made anew.

    Raises:
        ValueError: It does not have each section once.
    """
    names = [name for _, name, _ in MARKED.findall(page)]
    if sorted(names) != sorted(SECTIONS):
        raise ValueError(f"the page has the sections {names}; wanted: {list(SECTIONS)}")
    return MARKED.sub(lambda found: f"{found[1]}{SECTIONS[found[2]]()}\n{found[3]}", page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path, help="docs/families.md")
    parser.add_argument("--write", action="store_true", help="write it, in place of comparing")
    options = parser.parse_args()
    old = options.page.read_text(encoding="utf-8")
    new = made_anew(old)
    if options.write:
        options.page.write_text(new, encoding="utf-8")
        return 0
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), str(options.page), "generated", lineterm=""
    )
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
