"""Files of DomainNet: three classes in two domains, with the official lists."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_lines, write_listed

NAMES = ("tent", "The_Mona_Lisa", "tiger")
"""In the order of the official labels, in which capitals do not come first."""
DOMAINS = ("sketch", "clipart")


def write(root: Path) -> dict[str, Any]:
    """4 images of each class and domain to train, 2 to test."""
    palette = colours()
    for domain in DOMAINS:
        paths = [f"{domain}/{name}/{domain}_{c}_{i:06}.jpg" for c, name in enumerate(NAMES) for i in range(6)]
        write_listed([root / path for path in paths], palette, 24)
        for part, chosen in (("train", range(4)), ("test", range(4, 6))):
            write_lines(root / f"{domain}_{part}.txt", [f"{paths[6 * c + i]} {c}" for c in range(3) for i in chosen])
    return {"root": str(root), "domains": [*DOMAINS], "num_classes": 3, "image_size": 72}
