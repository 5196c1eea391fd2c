from dataclasses import dataclass

import torch


@dataclass
class Hyperparameters:
    batch_size: int = 8 * 64  # sequences, of all devices
    device_batch_size: int = 64
    sequence_length: int = 1024
    num_iterations: int = 5100
    learning_rate: float = 0.0036
    warmup_iters: int = 0
    warmdown_iters: int = 1450
    val_loss_every: int = 125


args = Hyperparameters()
model = torch.nn.Linear(2, 2)
