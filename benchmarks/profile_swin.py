"""Where the time of the Swin encoder goes on a GPU: ``python benchmarks/profile_swin.py``, half a minute.

Milliseconds and kernels of a forward pass and of a training step, with and without medzoo's kernels, and in a CUDA
graph; then the kernels that take most of the forward pass. To profile one of them, put
``ncu --set detailed -k regex:_attend -s 4 -c 1`` in front of the command.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

SIDE, BATCH, DTYPE = 96, 8, torch.bfloat16


def milliseconds(call, rounds=10):
    times = []
    for _ in range(3 + rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[3:])


def kernels(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return [event for event in profile.key_averages() if event.device_time_total > 0]


def main():
    sys.path.insert(0, str(Path(__file__).parents[1]))  # a clone need not be installed
    import medzoo
    from medzoo.kernels import dispatch

    model = medzoo.create("swin_encoder_mlp", num_classes=0).eval().cuda().to(DTYPE)
    graphed = medzoo.optimize(model, cuda_graph=True)
    x = torch.randn(BATCH, 1, SIDE, SIDE, SIDE, device="cuda").to(DTYPE)

    @torch.inference_mode()
    def forward(model=model):
        model(x)

    def train():
        model.zero_grad(set_to_none=True)
        model(x).float().square().sum().backward()

    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    runs_on = dispatch._triton_runs_on
    for name, chosen in (("medzoo's kernels", runs_on), ("PyTorch alone", lambda device: False)):
        dispatch._triton_runs_on = chosen
        for what, call in (("forward", forward), ("training step", train)):
            torch.cuda.reset_peak_memory_stats()
            took = milliseconds(call)
            count = sum(event.count for event in kernels(call))
            print(f"{what}, {name}: {took:.2f} ms, {count} kernels, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    dispatch._triton_runs_on = runs_on
    print(f"forward, CUDA graph: {milliseconds(lambda: forward(graphed)):.2f} ms")
    for event in sorted(kernels(forward), key=lambda event: -event.device_time_total)[:12]:
        print(f"{event.device_time_total / 1e3:8.3f} ms {event.count:4d} x {event.key[:80]}")


if __name__ == "__main__":
    main()
