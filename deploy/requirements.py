"""Prints what `pyproject.toml` requires, for a build that installs it before the sources change."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in sum((extras[name] for name in sys.argv[1:]), project["dependencies"]):
    print(requirement)
