"""Our U-Net beside MONAI's and diffusers', at equal parameters and shapes: seconds and peak memory.

    python -m benchmarks.unet [--repeats 7] [--device cpu] [--precision fp32] [--cases 2d 3d] [--out FILE]

Forward passes and training steps are timed interleaved, one of each network in turn, because other work on a
machine slows whole minutes and not one network. On the CPU what counts is processor seconds of both threads,
which other people's work hardly touches (threads wait passively, so that waiting is not counted); elapsed
time is told beside it. Ratios are medians over the rounds, with their spread. Peak memory is what a process
of its own adds for a network. Needs diffusers (for this benchmark only).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch starts its threads

import torch
from torch import Tensor, nn

Call = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Equal work for all: data of `size` with `channels`, a batch, levels of `widths`, two blocks each."""

    ndim: int
    channels: int
    size: tuple[int, ...]
    batch: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    peers: tuple[str, ...]


CASES = {
    "2d": Case(2, 3, (64, 64), 4, (64, 128, 128), (False, False, True), ("monai", "diffusers")),
    "2d-small": Case(2, 1, (28, 28), 16, (32, 64, 64), (False, False, True), ("monai", "diffusers")),
    "3d": Case(3, 1, (32, 32, 32), 1, (32, 64, 96), (False, False, True), ("monai",)),
    "3d-packed": Case(3, 8, (20, 24, 20), 1, (64, 96, 128), (False, False, True), ("monai",)),
    # For processors that only emulate bfloat16, on which the others take minutes.
    "2d-tiny": Case(2, 1, (16, 16), 2, (32, 64), (False, True), ("monai",)),
    # diffusers has no plain volumetric U-Net: UNet3DConditionModel is 2-D in space, and another architecture.
}


def build(name: str, case: Case) -> tuple[nn.Module, Call]:
    """A network and how to call it as (x, noise level) -> output. Ours is named "ours" with its widths,
    "ours 64 128 136"."""
    torch.manual_seed(0)
    if name.startswith("ours"):
        from ebbtide.shared.unet import UNet

        levels = tuple(i for i, a in enumerate(case.attention) if a)
        widths = tuple(int(w) for w in name.split()[1:])
        ours = UNet(case.ndim, case.channels, widths, blocks=2, attention=levels, fills=False)
        return ours, lambda x, level: ours(x, level)
    if name == "monai":
        from monai.networks.nets import DiffusionModelUNet

        network = DiffusionModelUNet(
            spatial_dims=case.ndim,
            in_channels=case.channels,
            out_channels=case.channels,
            num_res_blocks=2,
            channels=case.widths,
            attention_levels=case.attention,
            norm_num_groups=32,
            num_head_channels=64 if case.widths[-1] % 64 == 0 else 32,
        )
        return network, lambda x, level: network(x, level)
    if name == "diffusers":
        from diffusers import UNet2DModel

        kinds = ["AttnDownBlock2D" if a else "DownBlock2D" for a in case.attention]
        model = UNet2DModel(
            sample_size=case.size[0],
            in_channels=case.channels,
            out_channels=case.channels,
            layers_per_block=2,
            block_out_channels=case.widths,
            down_block_types=tuple(kinds),
            up_block_types=tuple(k.replace("Down", "Up") for k in reversed(kinds)),
            attention_head_dim=64,
        )
        return model, lambda x, level: model(x, level).sample
    raise ValueError(f"network {name!r}: expected ours, monai or diffusers")


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def match(case: Case, peer: str) -> str:
    """Our U-Net with the peer's levels, blocks and attention, the lowest level widened until it has at least
    as many parameters (within 3 %): the lower levels take what the upper ones save."""
    goal, widths = count(build(peer, case)[0]), list(case.widths)
    while count(build(f"ours {' '.join(map(str, widths))}", case)[0]) < goal:
        widths[-1] += 8
    return f"ours {' '.join(map(str, widths))}"


def step(call: Call, x: Tensor, precision: str, training: bool) -> tuple[float, float]:
    """Processor seconds (CUDA: elapsed) and elapsed seconds of a forward pass, or of forward and backward."""
    level, device = torch.zeros(len(x), device=x.device), x.device.type
    clock = time.process_time if device == "cpu" else time.perf_counter
    started, began = clock(), time.perf_counter()
    with (
        torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"),
        torch.set_grad_enabled(training),
    ):
        out = call(x, level)
        if training:
            out.float().square().mean().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started, time.perf_counter() - began


def race(case: Case, names: list[str], args: argparse.Namespace, training: bool) -> Tensor:
    """(networks, rounds, 2) seconds, processor and elapsed; the networks take turns in going first."""
    x = torch.randn(case.batch, case.channels, *case.size, device=args.device)
    built = [build(name, case) for name in names]
    for network, call in built:
        network.to(args.device).train(training)
        step(call, x, args.precision, training)
    seconds = torch.zeros(len(names), args.repeats, 2)
    for turn in range(args.repeats):
        for offset in range(len(names)):
            index = (turn + offset) % len(names)
            network, call = built[index]
            seconds[index, turn] = torch.tensor(step(call, x, args.precision, training))
            network.zero_grad()
    return seconds


def peaks(case_name: str, name: str, args: argparse.Namespace) -> list[float]:
    """MB that a forward pass, and a training step, add to a process of their own (CUDA: allocated)."""
    command = [sys.executable, __file__, "--alone", name, "--cases", case_name, "--device", args.device]
    command += ["--precision", args.precision, "--threads", str(args.threads)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [float(number) for number in output.split()[-2:]]


def alone(name: str, case: Case, args: argparse.Namespace) -> list[float]:
    """What `peaks` runs in its process."""
    network, call = build(name, case)
    network.to(args.device)
    x = torch.randn(case.batch, case.channels, *case.size, device=args.device)
    # A first small step loads libraries, which are nobody's maps.
    torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))
    before, found = memory("VmRSS"), []
    for training in (False, True):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far (Linux)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step(call, x, args.precision, training)
            network.zero_grad()
        allocated = torch.cuda.max_memory_allocated() / 2**20 if args.device == "cuda" else 0
        found.append(allocated or memory("VmHWM") - before)
    return found


def memory(field: str) -> float:
    """MB of this process: VmRSS is resident now, VmHWM the most there was since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def rows(case_name: str, args: argparse.Namespace) -> list[str]:
    """Table rows of one case: for each peer and each kind of step, ours against it."""
    case, lines = CASES[case_name], []
    for peer in case.peers:
        names = [match(case, peer), peer]
        size = [count(build(name, case)[0]) / 1e6 for name in names]
        used = [peaks(case_name, name, args) for name in names]
        for training in (False, True):
            seconds = race(case, names, args, training)
            middle, (cpu, elapsed) = seconds.median(1).values, (seconds[0] / seconds[1]).T
            ours, theirs = (u[training] for u in used)
            lines.append(
                f"| {case_name} | {peer} | {'training step' if training else 'forward'} | {args.precision} "
                f"| {size[0]:.2f} / {size[1]:.2f} | {middle[0, 0]:.2f} / {middle[1, 0]:.2f} "
                f"| **{cpu.median():.2f}** ({cpu.min():.2f} to {cpu.max():.2f}) | {elapsed.median():.2f} "
                f"| {ours:.0f} / {theirs:.0f} = **{ours / theirs:.2f}** |"
            )
            print(lines[-1], flush=True)
    return lines


HEADER = """| case | peer | step | precision | M parameters, ours / peer | seconds | ratio (spread) | elapsed | MB |
|---|---|---|---|---|---|---|---|---|"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, help="append the table to this file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.alone:
        print(*alone(args.alone, CASES[args.cases[0]], args))
        return
    lines = [row for name in args.cases for row in rows(name, args)]
    if args.out:
        with args.out.open("a") as file:
            file.write("\n".join([HEADER, *lines, ""]))


if __name__ == "__main__":
    main()
