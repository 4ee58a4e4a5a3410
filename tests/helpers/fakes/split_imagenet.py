"""Files of ImageNet, of a few classes."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours, write_images


def write_imagenet(root: Path, wnids: list[str]) -> None:
    """Write four images of each class to train and two to test, as ``{train,val}/<WordNet id>/*``."""
    palette = colours()
    for label, wnid in enumerate(wnids):
        write_images(root / "train" / wnid, [f"{wnid}_{k}.JPEG" for k in range(4)], palette)
        write_images(root / "val" / wnid, [f"ILSVRC2012_val_{label:07d}{k}.JPEG" for k in range(2)], palette)


def write(root: Path) -> dict[str, Any]:
    """Twelve classes, of which a list names ten."""
    wnids = [f"n{number:08d}" for number in range(12)]
    write_imagenet(root, wnids)
    (root / "wnids.txt").write_text("".join(f"{wnid} a name\n" for wnid in wnids[:10]))
    return {"root": str(root), "subset": str(root / "wnids.txt"), "image_size": 8}
