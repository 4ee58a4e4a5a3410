"""Files of CUB-200-2011, in the published layout."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours, write_images

SPECIES = [f"{number:03d}.Bird_{number}" for number in range(1, 201)]


def write(root: Path) -> dict[str, Any]:
    """Six photographs of each of 200 species, of which the third and the sixth are for testing."""
    folder, palette, names = root / "CUB_200_2011", colours(), [f"Bird_{k:04d}.jpg" for k in range(6)]
    for species in SPECIES:
        write_images(folder / "images" / species, names, palette, size=(10, 8))
    lists: dict[str, list[Any]] = {
        "images.txt": [f"{species}/{name}" for species in SPECIES for name in names],
        "image_class_labels.txt": [i // 6 + 1 for i in range(1200)],
        "train_test_split.txt": [int(i % 3 != 2) for i in range(1200)],
        "classes.txt": SPECIES,
    }
    for name, values in lists.items():
        (folder / name).write_text("".join(f"{number} {value}\n" for number, value in enumerate(values, start=1)))
    return {"root": str(root), "download": False, "image_size": 8}
