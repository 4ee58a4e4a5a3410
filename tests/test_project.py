"""What the project files promise: bounds, exact versions, packages, commands, and no trace of a machine in them."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not in a checkout")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(*extras: str) -> Iterator[Requirement]:
    """What the project names itself, without its own name."""
    project = pyproject()["project"]
    for line in [*project["dependencies"], *(r for extra in extras for r in project["optional-dependencies"][extra])]:
        if (requirement := Requirement(line)).name != project["name"]:
            yield requirement


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    matches = [re.fullmatch(r"([a-z0-9-]+)==([a-z0-9.+]+)", line) for line in lines]
    assert all(matches), f"{file} holds more than names and exact versions"
    return {match[1]: Version(match[2]) for match in matches if match}


def files_of_the_repository() -> list[Path]:
    """Tracked, and what would be with the next ``git add``."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:  # for example a checkout that belongs to somebody else
        pytest.skip(f"git does not list the files: {listing.stderr.strip()}")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_releases_are_excluded(name: str) -> None:
    """GHSA-w37p-236h-pfx3."""
    (requirement,) = (r for r in requirements() if r.name == name)
    assert [requirement.specifier.contains(v) for v in ("2.6.1", "2.6.2", "2.6.3", "2.6.4", "2.6.6")] == [
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("file", "extras"), [("constraints.txt", ("test", "dev")), ("constraints-lowest.txt", ("test",))]
)
def test_constraints_pin_all_that_is_named_within_its_bounds(file: str, extras: tuple[str, ...]) -> None:
    pinned = pins(file)
    assert list(pinned) == sorted(pinned)
    wrong = {
        str(r): pinned.get(canonicalize_name(r.name))
        for r in requirements(*extras)
        if canonicalize_name(r.name) not in pinned or not r.specifier.contains(pinned[canonicalize_name(r.name)])
    }
    assert not wrong, "run `make constraints`"


def test_make_installs_with_a_pinned_uv() -> None:
    assert "uv" in pins("constraints.txt")


def test_lowest_constraints_are_the_lower_bounds() -> None:
    """So the suite on them says whether the bounds are true."""
    pinned = pins("constraints-lowest.txt")
    bounds = {
        canonicalize_name(r.name): Version(s.version)
        for r in requirements("test")
        for s in r.specifier
        if s.operator == ">="
    }
    assert bounds.keys() == {canonicalize_name(r.name) for r in requirements("test")}
    assert {name: pinned[name] for name in bounds} == bounds, "raise the bound or run `make constraints`"


def test_every_bound_has_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    project, build = pyproject()["project"], pyproject()["build-system"]
    named = [*build["requires"], *project["dependencies"]]
    named += [line for extra in project["optional-dependencies"].values() for line in extra]
    bounded = [line for line in named if Requirement(line).specifier]
    assert len(bounded) > 10
    for requirement in bounded:
        places = [i for i, line in enumerate(lines) if f'"{requirement}"' in line]
        assert places, requirement
        for i in places:
            beside = re.search(r"#\s*\S", lines[i].split(f'"{requirement}"')[1])
            assert beside or lines[i - 1].lstrip().startswith("#"), f"{requirement}: say why, beside it or above it"


def test_every_import_is_a_named_dependency() -> None:
    packages = packages_distributions()
    named = {canonicalize_name(r.name) for r in requirements()} | {"lightning-cl"}
    undeclared = set()
    for folder in pyproject()["tool"]["setuptools"]["package-dir"].values():
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    modules = [node.module]
                for module in {m.split(".")[0] for m in modules} - sys.stdlib_module_names - {"lightning_cl"}:
                    if named.isdisjoint(canonicalize_name(name) for name in packages.get(module, [])):
                        undeclared.add((str(path.relative_to(ROOT)), module))
    assert not undeclared, "name them in pyproject.toml"


def test_every_package_folder_is_packaged() -> None:
    setuptools = pyproject()["tool"]["setuptools"]
    found = set()
    for package, folder in setuptools["package-dir"].items():
        top = ROOT / folder
        assert (top / "__init__.py").exists(), folder
        found |= {".".join([package, *init.relative_to(top).parts[:-1]]) for init in top.rglob("__init__.py")}
        without = {path.parent for path in top.rglob("*.py")} - {path.parent for path in top.rglob("__init__.py")}
        assert not without, "folders with modules but no __init__.py"
    assert found == set(setuptools["packages"])


def test_no_file_names_a_registry_host_or_a_machine_path() -> None:
    hosts = [
        "pypi" + ".org",
        "pythonhosted" + ".org",
        "npmjs" + ".org",
        "deb.debian" + ".org",
        "conda.anaconda" + ".org",
    ]
    unwanted = re.compile("|".join(map(re.escape, hosts)) + r"|(?<![\w.$}/])/(?:root|home|Users|work|tmp)/\w")
    found = []
    for path in files_of_the_repository():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in unwanted.finditer(text)]
    assert not found


def test_make_help_lists_every_command() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is absent")
    shown = subprocess.run([make, "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in shown.stdout.splitlines()]
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert {"quickstart", "test", "lint", "types"} <= set(listed)
