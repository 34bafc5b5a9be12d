"""The studies' pages can be written, and the commands that write them take their options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from typer import Typer
from typer.main import get_command

from carrara_models.training.generator import GeneratorSettings
from carrara_models.training.run_files import build_settings, change
from carrara_models.training.text_encoder import TextEncoderSettings
from carrara_services.evaluate.commands import evaluate

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODULES = ("pages", "trainings", "run")
app = Typer()
app.command()(evaluate)


@pytest.fixture(scope="module")
def studies() -> Iterator[dict[str, ModuleType]]:
    """The scripts by name, imported as they are when one is started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "studies"))
        yield {name: import_module(name) for name in MODULES}


def test_every_study_has_a_page_with_a_place_for_its_numbers(
    studies: dict[str, ModuleType], tmp_path: Path
) -> None:
    names = [*studies["run"].SWEEPS, *studies["trainings"].STUDIES]
    pages = [DOCS / "evaluation.md", *(DOCS / "studies" / f"{name}.md" for name in names)]
    assert len(pages) == 6
    for page in pages:
        words = page.read_text(encoding="utf-8")
        copy = tmp_path / page.name
        copy.write_text(words, encoding="utf-8")
        studies["pages"].write_measured(copy, ["one", "two\n"])
        before, between, after = re.split(r"<!-- measured -->|<!-- end of .* -->", copy.read_text())
        assert between == "\n\none\n\ntwo\n\n"
        assert words.startswith(before)
        assert words.endswith(after)


def test_a_page_without_its_marks_is_refused(
    studies: dict[str, ModuleType], tmp_path: Path
) -> None:
    pages = studies["pages"]
    for words in ("", pages.BEGIN, f"{pages.END} {pages.BEGIN}", f"{pages.BEGIN * 2}{pages.END}"):
        (tmp_path / "page.md").write_text(words)
        with pytest.raises(ValueError, match=r"page\.md does not hold"):
            pages.write_measured(tmp_path / "page.md", [])


def test_evaluate_takes_what_the_studies_pass_and_what_stands_in_place_of_it(
    studies: dict[str, ModuleType],
) -> None:
    run, trainings = studies["run"], studies["trainings"]
    command = get_command(app)
    for options in (*run.SWEEPS.values(), run.CHECKPOINT_MEASURES, trainings.MEASURES):
        given = command.make_context("evaluate", list(options)).params
        assert given["fid"]
        assert given["clip_score"]
        less = trainings.replaced(options, ["--captions", "8", "--fid"])
        changed = command.make_context("evaluate", list(less)).params
        assert changed == {**given, "captions": 8}
        assert (less.count("--captions"), less.count("--fid")) == (1, 1)


def test_the_trainers_take_what_the_studies_change(studies: dict[str, ModuleType]) -> None:
    """And no two runs of one folder differ."""
    changes: dict[str, tuple[str, ...]] = {}
    for study in studies["trainings"].STUDIES.values():
        assert len(study) in (3, 4)
        for variant in study.values():
            for kind, run in (
                (GeneratorSettings, variant.generator),
                (TextEncoderSettings, variant.text_encoder),
            ):
                if run is not None:
                    build_settings(kind, change({}, run.changes))
                    assert changes.setdefault(run.folder, run.changes) == run.changes
    assert len(changes) == 12, "3 text encoders, 5 generators behind them, 4 targets"


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in (DOCS / "evaluation.md", *sorted((DOCS / "studies").glob("*.md"))):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        assert links, page
        assert [link for link in links if not (page.parent / link).exists()] == []
