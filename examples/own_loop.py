"""The callbacks without ``fit_stream``: one ``trainer.fit`` per task, with loaders of your own."""

import lightning as L
import torch
from own_trainer import Net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl.callbacks import EWC, Replay

if __name__ == "__main__":
    L.seed_everything(0)
    model, replay, ewc = Net(), Replay(capacity=50), EWC(strength=10.0)
    tasks = []
    for task in range(3):  # three tasks of two classes each: noisy blobs
        y = torch.randint(2, (300,)) + 2 * task
        tasks.append(TensorDataset(nn.functional.one_hot(y, 64) * 3.0 + torch.randn(300, 64), y))
    for data in tasks:
        trainer = L.Trainer(max_epochs=3, accelerator="cpu", logger=False, callbacks=[replay, ewc])
        trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
    for task, data in enumerate(tasks):
        x, y = data.tensors
        print(f"task {task}: accuracy {(model(x).argmax(1) == y).float().mean():.2f}")
