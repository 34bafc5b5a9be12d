from __future__ import annotations

import subprocess
import sys
from importlib.resources import files

SERVICES = {"torch", "diffusers", "transformers", "carrara_models", "carrara_services"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_sdk_loads_no_torch_and_no_command_line() -> None:
    modules = loaded_by("import carrara")
    assert "carrara.aio" in modules
    assert not modules & (SERVICES | {"typer", "rich"})


def test_the_command_line_loads_no_torch_and_no_service() -> None:
    modules = loaded_by("import carrara.cli\ncarrara.cli.run(['version'])")
    assert "typer" in modules
    assert not modules & SERVICES


def test_the_package_says_that_it_is_typed() -> None:
    assert files("carrara").joinpath("py.typed").is_file()


def test_everything_that_is_exported_exists() -> None:
    import carrara

    assert carrara.__all__ == sorted(carrara.__all__)
    assert all(hasattr(carrara, name) for name in carrara.__all__)
