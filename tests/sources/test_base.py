import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_cl.samples import TensorData
from lightning_cl.sources import SOURCES, base, make_source
from lightning_cl.sources.base import Downloadable, Source


class Two(Downloadable):
    """Two files, one of them in a folder."""

    name, num_classes, input_shape, mean, std = "Two Files", 2, (1,), (0.0,), (1.0,)
    remedy = "Ask for them."
    files = ("one.bin", "inner/two.bin")
    fails_after: int | None = None

    def missing(self) -> list[str]:
        return [name for name in self.files if not (self.root / name).is_file()]

    def load(self, train: bool) -> TensorData:
        return TensorData(torch.zeros(2, 1), torch.tensor([0, 1]))

    def fetch(self, folder: Path) -> None:
        for k, name in enumerate(self.files):
            if k == self.fails_after:
                raise ConnectionError("the line went dead\nand more")
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")


class Manual(Source):
    """The same files, which cannot be downloaded."""

    name, num_classes, input_shape, mean, std, remedy = "Two Files", 2, (1,), (0.0,), (1.0,), "Ask for them."
    missing, load, files = Two.missing, Two.load, Two.files


def test_a_download_is_moved_into_place(tmp_path: Path) -> None:
    source = Two(str(tmp_path / "data"))
    source.prepare()
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == ["inner", "one.bin", "two.bin"]
    assert len(source.read(train=True)) == 2


def test_what_is_there_is_not_downloaded_again(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in Two.files:
        (tmp_path / name).write_text("old")
    Two(str(tmp_path)).prepare()
    assert (tmp_path / "one.bin").read_text() == "old"


def test_a_download_that_fails_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_text("old")
    source = Two(str(tmp_path))
    source.fails_after = 1
    with pytest.raises(FileNotFoundError) as error:
        source.prepare()
    assert str(error.value) == (
        f"Two Files is missing: looked for inner/two.bin in `root` {str(tmp_path)!r}, and the download failed "
        "(ConnectionError: the line went dead). Ask for them."
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["one.bin"]
    assert (tmp_path / "one.bin").read_text() == "old"


def test_a_download_that_was_cut_short_while_moving_is_done_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first files may be all that `missing` looks for."""

    class First(Two):
        def missing(self) -> list[str]:
            return super().missing()[:1] if not (self.root / "inner/two.bin").is_file() else []

    def killed(folder: Path, root: Path) -> None:
        (root / "inner").mkdir()
        (folder / "inner/two.bin").rename(root / "inner/two.bin")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(base, "move_into", killed)
        with pytest.raises(KeyboardInterrupt):
            First(str(tmp_path)).prepare()
    with pytest.raises(FileNotFoundError, match=r"looked for the rest of a download that was cut short"):
        First(str(tmp_path), download=False).prepare()
    First(str(tmp_path)).prepare()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inner", "one.bin", "two.bin"]


def test_another_checksum_is_named(tmp_path: Path) -> None:
    class Checked(Two):
        def checksums(self) -> dict[str, str]:
            return {"one.bin": "22af645d1859cb5ca6da0c484f1f37ea"}  # of "new"

    source = Checked(str(tmp_path))
    source.prepare()
    assert source.verified(tmp_path / "one.bin") == tmp_path / "one.bin"
    assert source.verified(tmp_path / "inner/two.bin") == tmp_path / "inner/two.bin"
    (tmp_path / "one.bin").write_text("old")
    with pytest.raises(ValueError, match=r"one.bin' has the MD5 checksum \w{32} and should have 22af.*: get it again"):
        source.verified(tmp_path / "one.bin")


def test_published_checksums_are_known() -> None:
    """From torchvision, by the names of the files that are read."""
    script = (
        "from lightning_cl.sources.cifar import CIFAR10, CIFAR100; from lightning_cl.sources.svhn import SVHN;"
        "print(sorted(CIFAR10().checksums()), sorted(CIFAR100().checksums()), len(SVHN().checksums()))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    batches = [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    assert said.split("\n")[0] == f"{batches} ['test', 'train'] 3"


@pytest.mark.parametrize(
    ("cls", "download", "why"),
    [(Two, False, "`download` is off"), (Manual, True, "it cannot be downloaded automatically")],
)
def test_why_files_are_missing_is_said(cls: type[Source], download: bool, why: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"looked for one\.bin, inner/two\.bin in `root` .*, and {why}\. Ask"):
        cls(str(tmp_path), download).prepare()
    assert not list(tmp_path.iterdir())


def test_a_download_without_the_files_is_named(tmp_path: Path) -> None:
    source = Two(str(tmp_path))
    source.fails_after = -1
    source.files = ("one.bin",)
    Two.fetch(source, tmp_path)
    source.files = ("one.bin", "three.bin")
    source.fetch = lambda folder: None  # type: ignore[method-assign]
    with pytest.raises(FileNotFoundError, match=r"looked for three\.bin .* and the download did not bring them"):
        source.prepare()


def test_every_source_is_found_by_name(tmp_path: Path) -> None:
    for name in SOURCES:
        source = make_source(name, str(tmp_path), download=False)
        assert source.num_classes >= 2
        assert len(source.input_shape) == 3
        assert {len(source.mean), len(source.std)} <= {1, source.input_shape[0]}
    with pytest.raises(ValueError, match=r"`data_set`: there is no data set 'cifar'\. Did you mean"):
        make_source("cifar")


# -- at the edges -----------------------------------------------------------------------------------------------------


def test_root_may_start_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Two("~/data").root == tmp_path / "data"


@pytest.mark.parametrize(("count", "said"), [(4, "a, b, c, d in"), (6, "a, b, c, d and 2 more in")])
def test_the_first_missing_files_are_listed(count: int, said: str, tmp_path: Path) -> None:
    source = Manual(str(tmp_path))
    source.files = tuple("abcdef"[:count])  # type: ignore[assignment]
    with pytest.raises(FileNotFoundError, match=f"looked for {said} `root`"):
        source.prepare()


def test_whoever_reads_need_not_prepare(tmp_path: Path) -> None:
    source = Two(str(tmp_path / "new" / "data"))
    source.read(train=False)
    assert not source.missing()


def test_a_download_lands_beside_the_data_and_replaces_what_is_old(tmp_path: Path) -> None:
    places: list[Path] = []

    class Noted(Two):
        def fetch(self, folder: Path) -> None:
            places.append(folder.parent)
            super().fetch(folder)

    (tmp_path / "one.bin").write_text("old")
    Noted(str(tmp_path)).prepare()
    assert places == [tmp_path]  # on one file system, where a file is moved at once
    assert (tmp_path / "one.bin").read_text() == "new"


def test_any_error_of_a_download_says_how_to_get_the_files(tmp_path: Path) -> None:
    class Broken(Two):
        def fetch(self, folder: Path) -> None:
            raise RuntimeError("not found or corrupted")

    with pytest.raises(FileNotFoundError, match=r"failed \(RuntimeError: not found or corrupted\)\. Ask for them\."):
        Broken(str(tmp_path)).prepare()


def test_the_form_of_a_data_set_is_in_its_shape() -> None:
    class Formed(Two):
        options = ("form",)
        form = "large"

    assert Formed().shape() == {"data_set": "Two Files", "form": "large"}
