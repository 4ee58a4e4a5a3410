"""What holds for every test."""

import torch

torch.set_num_threads(1)  # the tests share the machine, and tensors are small
