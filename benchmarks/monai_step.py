"""A training step on volumes: ours on Haar-packed grids, ours on voxels, and MONAI's, at equal parameters.

    python benchmarks/monai_step.py [--repeats 3] [--sizes 40x48x40 80x96x80] [--out FILE]

- `ebbtide, packed`: what `train` does: the centre in closed form, a known part beside the noise, the U-Net on
  the grid packed once (8 channels of half the size);
- `ebbtide, voxels`: the same with `levels: 0`;
- `monai`: `DiffusionModelUNet` on voxels with `DiffusionInferer` and `DDPMScheduler`, mean squared error of
  the noise. It gets no known part: it generates only.

A step is forward, backward and AdamW on one volume of random numbers, in float32. All have three levels, one
block each, no attention; widths of ours are scaled until parameters are equal within 5 %. Each runs in a
process of its own, on one core: processor seconds (which other work on the machine hardly touches), median
over the repeats after one step to warm up, and how far the process's peak memory rises above where it stood
when the network had been built.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

NAMES = ("ebbtide, packed", "ebbtide, voxels", "monai")
WIDTHS = (32, 64, 96)
"""Of MONAI's network."""
Step = Callable[[], None]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def monai(size: tuple[int, ...]) -> tuple[nn.Module, Step]:
    from monai.inferers import DiffusionInferer
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDPMScheduler

    network = DiffusionModelUNet(3, 1, 1, 1, WIDTHS, (False,) * 3, norm_num_groups=8, num_head_channels=8)
    inferer, x = DiffusionInferer(DDPMScheduler(1000)), torch.randn(1, 1, *size)

    def step() -> None:
        noise, t = torch.randn_like(x), torch.randint(0, 1000, (1,))
        (inferer(x, network, noise, t) - noise).square().mean().backward()

    return network, step


def ours(size: tuple[int, ...], levels: int, parameters: int) -> tuple[nn.Module, Step]:
    from ebbtide.shared.centre import GaussianCentre
    from ebbtide.shared.data import Condition, Encoded
    from ebbtide.shared.grids import GridModel, GridSettings, GridShape

    def built(widths: tuple[int, ...], shape: tuple[int, ...]) -> GridModel:
        settings = GridSettings(widths=widths, levels=levels)
        return GridModel.untrained(
            settings, GridShape(shape), GaussianCentre.blank(shape, 20, settings.reach)
        )

    unit = 0
    for unit in range(1, 40):  # widths in the proportion of MONAI's
        if count(built((8 * unit, 16 * unit, 24 * unit), (1, 8, 8, 8)).denoiser.network) >= parameters:
            break
    widths = [8 * unit, 16 * unit, 24 * unit]
    while count(built((*widths,), (1, 8, 8, 8)).denoiser.network) > 1.02 * parameters:
        widths[2] -= 8
    model = built((*widths,), (1, *size))
    x = torch.randn(1, 1, *size)
    seen = torch.rand(x.shape) < 0.5
    condition = Condition(known=Encoded(x * seen, seen))

    def step() -> None:
        t = model.denoiser.schedule.time(torch.rand(1, dtype=torch.float64) + 0.5)
        model.denoiser.loss(x, torch.randn_like(x), t, condition, ~seen).mean().backward()

    return model.denoiser.network, step


def build(name: str, size: tuple[int, ...]) -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    if name == "monai":
        return monai(size)
    return ours(size, 1 if "packed" in name else 0, count(monai((8, 8, 8))[0]))


def memory(field: str) -> float:
    """MB of this process: VmRSS is resident now, VmHWM the most there was since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def alone(name: str, size: tuple[int, ...], repeats: int) -> dict[str, float]:
    """One network in its own process."""
    torch.set_num_threads(1)
    network, step = build(name, size)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-4)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
    seconds = []
    for _ in range(repeats + 1):
        began = time.process_time()
        step()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.process_time() - began)
    own = torch.tensor(seconds[1:])
    return {
        "parameters": count(network) / 1e6,
        "seconds": float(own.median()),
        "least": float(own.min()),
        "most": float(own.max()),
        "mb": memory("VmHWM") - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", default=["40x48x40", "80x96x80"])
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.alone:
        size = tuple(int(n) for n in told.sizes[0].split("x"))
        print(json.dumps(alone(told.alone, size, told.repeats)))
        return
    lines = [
        "| volume | network | M parameters | seconds a step (spread) | of MONAI's | MB | of MONAI's |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in told.sizes:
        found = {}
        for name in NAMES:
            command = [
                sys.executable,
                __file__,
                "--alone",
                name,
                "--sizes",
                size,
                "--repeats",
                str(told.repeats),
            ]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[name] = json.loads(output.splitlines()[-1])
            print(size, name, found[name], flush=True)
        peer = found["monai"]
        for name, one in found.items():
            lines.append(
                f"| {size} | {name} | {one['parameters']:.2f} | {one['seconds']:.2f} ({one['least']:.2f} to "
                f"{one['most']:.2f}) | {one['seconds'] / peer['seconds']:.2f} | {one['mb']:.0f} "
                f"| {one['mb'] / peer['mb']:.2f} |"
            )
    print("\n".join(lines))
    if told.out:
        with told.out.open("a") as file:
            file.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
