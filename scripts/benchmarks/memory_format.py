"""Images/s of a ten-layer CNN by channel count, memory format and precision: why training leaves channels_last off multiples of 16.

usage: python scripts/benchmarks/memory_format.py [widths ...]
Ratios to eager float32 in the plain format, in one run; best of four passes of 128 images.
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def network(width):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def best(function, passes=4):
    function()
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main():
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))
    print("| width | pass | float32 images/s | channels_last | bf16 | both |\n|---|---|---|---|---|---|")
    for width in map(int, sys.argv[1:] or (16, 13, 32, 31, 64, 50)):
        seconds = {}
        for memory_format in (torch.contiguous_format, torch.channels_last):
            for bf16 in (False, True):
                net, batch = network(width).to(memory_format=memory_format), images.contiguous(memory_format=memory_format)

                def forward(net=net, batch=batch, bf16=bf16):
                    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                        return net(batch)

                def step(forward=forward):
                    F.cross_entropy(forward().float(), labels).backward()

                train = best(step)
                net.eval()
                with torch.inference_mode():
                    seconds[memory_format, bf16] = {"training": train, "inference": best(forward)}
        plain = seconds[torch.contiguous_format, False]
        for kind in ("training", "inference"):
            ratios = [plain[kind] / seconds[key][kind] for key in list(seconds) if key != (torch.contiguous_format, False)]
            bf16, channels_last, both = ratios
            print(f"| {width} | {kind} | {128 / plain[kind]:.0f} | {channels_last:.2f} | {bf16:.2f} | {both:.2f} |", flush=True)


if __name__ == "__main__":
    main()
