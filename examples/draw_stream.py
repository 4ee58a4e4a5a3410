"""Draw a stream before training on it: its first images, and which classes come when.

    python examples/draw_stream.py --config streams/split_digits
    python examples/draw_stream.py --config streams/split_digits --data.blurry fixed --data.blurry_percent 30
    python examples/draw_stream.py --data CorruptedImages --data.data_set digits
    python examples/draw_stream.py --config streams/split_fashion_mnist --data.root ROOT --data.blurry stochastic

The options are those of ``lightning-cl fit``; ``<names of the configs>_images.png`` and ``..._density.png`` are written
to the current folder.
"""

import sys

from lightning_cl.cli import ContinualCLI
from lightning_cl.pictures import density_figure, images_figure

if __name__ == "__main__":
    # `run=False` makes the objects that the configs name, and trains nothing. Without a config a model is not named.
    cli = ContinualCLI(["--model", "Classifier", *sys.argv[1:], "--trainer.logger", "false"], run=False)
    stream = cli.datamodule
    stream.prepare_data()
    name = "-".join(cli.config_names) or type(stream).__name__
    for kind, figure in {"images": images_figure(stream), "density": density_figure(stream)}.items():
        figure.savefig(f"{name}_{kind}.png", dpi=150)
        print(f"{name}_{kind}.png")
