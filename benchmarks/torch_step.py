"""The float step of `step_time` in PyTorch: a program of an environment of its own.

    /path/to/env/bin/python benchmarks/torch_step.py BLOCKS BATCH PIXELS

It answers each line of its input with the seconds of one step: ResNet of 6 BLOCKS + 2
layers (shortcuts A), random crops and flips on the device, SGD with momentum. The
first line that it prints is JSON data: version and number of threads.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        conv = lambda a, b, s: nn.Conv2d(a, b, 3, s, 1, bias=False)
        self.one, self.two = conv(before, width, stride), conv(width, width, 1)
        self.norm_one, self.norm_two = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.more = stride, width - before

    def forward(self, x):
        y = F.relu(self.norm_one(self.one(x)))
        y = self.norm_two(self.two(y))
        if self.more or self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(x + y)


def network(blocks: int, outputs: int = 10) -> nn.Module:
    """The residual network of He et al. for images of 32 x 32."""
    layers, before = [], 16
    for width in (16, 32, 64):
        for number in range(blocks):
            stride = 2 if width > 16 and number == 0 else 1
            layers.append(Block(before, width, stride))
            before = width
    stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, outputs)
    return nn.Sequential(*stem, *layers, *head).to(memory_format=torch.channels_last)


def augmented(images: torch.Tensor, pad: int = 4) -> torch.Tensor:
    """Random crops and flips of uint8 (N, C, H, W) images, normalized."""
    count, _, _, size = images.shape
    padded = F.pad(images, (pad,) * 4)
    places = torch.arange(size)
    row, column = (torch.randint(2 * pad + 1, (count, 1)) + places for _ in range(2))
    column = torch.where(torch.rand(count, 1) < 0.5, column.flip(1), column)
    each = torch.arange(count)[:, None, None]
    crops = padded[each, :, row[:, :, None], column[:, None]].permute(0, 3, 1, 2)
    return (crops.float() / 255 - 0.5) / 0.25


def main(blocks: int, batch: int, size: int) -> None:
    """Answers until its input ends."""
    torch.manual_seed(0)
    model = network(blocks)
    images = torch.randint(256, (4 * batch, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(10, (4 * batch,))
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    about = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(about), flush=True)
    for number, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        part = slice(number % 4 * batch, (number % 4 + 1) * batch)
        x = augmented(images[part]).to(memory_format=torch.channels_last)
        loss = F.cross_entropy(model(x), labels[part])
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
