import importlib
import sys
from pathlib import Path

import pytest

from lightning_cl._lazy import lazy

PACKAGES = ["lightning_cl", "lightning_cl.callbacks", "lightning_cl.datamodules", "lightning_cl.methods"]


def test_names_are_imported_when_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_lazy_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "inner.py").write_text("class Thing: pass")
    monkeypatch.syspath_prepend(tmp_path)
    get, names = lazy("some_lazy_package", {"Thing": "inner", "Gone": "nowhere"})
    assert names() == ["Gone", "Thing"]
    assert "some_lazy_package.inner" not in sys.modules
    assert get("Thing") is get("Thing") is sys.modules["some_lazy_package.inner"].Thing
    with pytest.raises(AttributeError, match="module 'some_lazy_package' has no attribute 'thing'"):
        get("thing")
    with pytest.raises(ModuleNotFoundError, match=r"some_lazy_package\.nowhere"):
        get("Gone")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there_and_defined_where_it_says(name: str) -> None:
    package = importlib.import_module(name)
    assert dir(package)
    for public in dir(package):
        value = getattr(package, public)
        assert value.__name__ == public
        assert value.__module__.startswith("lightning_cl.")


@pytest.mark.parametrize("name", PACKAGES)
def test_type_checkers_see_the_same_names(name: str) -> None:
    package = importlib.import_module(name)
    assert package.__file__ is not None
    lines = Path(package.__file__).read_text().splitlines()
    imported = [line.split()[-1] for line in lines if line.startswith("    from lightning_cl")]
    assert sorted(imported) == dir(package)
