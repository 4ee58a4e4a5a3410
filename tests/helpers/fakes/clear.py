"""Files of CLEAR: the newer release of clear10, of two buckets."""

import json
from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_lines, write_listed

CLASSES = ("baseball", "bus", "camera", "cosplay", "dress", "hockey", "laptop", "racing", "soccer", "sweater")
NAMES = ("BACKGROUND", *CLASSES)


def write(root: Path) -> dict[str, Any]:
    """4 images of each of 11 classes and 2 buckets to train, 2 to test."""
    palette = colours()
    for part, each in (("train", 4), ("test", 2)):
        folder = root / part
        write_lines(folder / "class_names.txt", [*NAMES, ""])  # the published list ends with an empty line
        metadata = {b: {name: f"labeled_metadata/{b}/{name}.json" for name in NAMES} for b in ("1", "2")}
        write_lines(folder / "labeled_metadata.json", [json.dumps(metadata)])
        images: list[Path] = []
        for b, files in metadata.items():
            for name, file in files.items():
                paths = [f"labeled_images/{b}/{name}/{b}{k}.jpg" for k in range(each)]
                images += [folder / path for path in paths]
                records = {str(k): {"ID": str(k), "EXT": "jpg", "IMG_PATH": path} for k, path in enumerate(paths)}
                write_lines(folder / file, [json.dumps(records)])
        write_listed(images, palette, 24)
    return {"root": str(root), "buckets": [1, 2], "image_size": 32}
