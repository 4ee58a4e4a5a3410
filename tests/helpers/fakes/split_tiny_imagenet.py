"""Files of Tiny ImageNet, in the published layout."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours, write_images

WNIDS = [f"n{number * 7 % 200:08d}" for number in range(200)]
"""The classes, not in alphabetical order."""


def write(root: Path) -> dict[str, Any]:
    """Four images of each of 200 classes to train and two to test."""
    folder, palette, size = root / "tiny-imagenet-200", colours(), (64, 64)
    for wnid in WNIDS:
        write_images(folder / "train" / wnid / "images", [f"{wnid}_{k}.JPEG" for k in range(4)], palette, size)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    names = [f"val_{k}.JPEG" for k in range(400)]
    write_images(folder / "val" / "images", names, palette, size)
    lines = [f"{name}\t{WNIDS[k % 200]}\t0\t0\t62\t62\n" for k, name in enumerate(names)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WNIDS))
    return {"root": str(root), "download": False}
