"""docs/families.md says what the table of families, the loaded parts and the cases say."""

from __future__ import annotations

import re
from pathlib import Path

from families.page import made_anew

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_the_page_made_anew_equals_the_checked_in_one() -> None:
    assert made_anew(PAGE) == PAGE, (
        "run: .venv/bin/python tests/families/page.py --write docs/families.md"
    )


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\b(?:tests|services|client|protos)/[\w/]+\.\w+", PAGE))
    linked = set(re.findall(r"\]\(([\w./-]+)\)", PAGE))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []
    assert [name for name in sorted(linked) if not (ROOT / "docs" / name).is_file()] == []
