"""The command ``lightning-cl``; what it can say without importing torch it says at once."""

import sys
from importlib.metadata import version

from lightning_cl.shipped import overview


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if arguments in ([], ["-h"], ["--help"]):
        print(overview())
    elif arguments == ["--version"]:
        print(f"lightning-cl {version('lightning-cl')}")
    else:
        from lightning_cl.cli import ContinualCLI

        ContinualCLI.run_command()


if __name__ == "__main__":
    main()
