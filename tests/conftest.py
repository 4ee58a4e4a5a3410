"""What holds for every test."""

import os

import torch

torch.set_num_threads(1)  # the tests share the machine, and tensors are small
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of what Lightning's CLI calls
