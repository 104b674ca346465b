"""What the Triton kernels take of a card, compiled for it without one.

The functions that launch kernels are called on a CPU with the sizes of the models; their launches are recorded instead,
and compiled for a card with little shared memory.
"""

from __future__ import annotations

import inspect

import pytest
import torch

from medzoo.kernels.window_partition import partition
from medzoo.nn.swin_block import WindowGrid

triton = pytest.importorskip("triton")

# The least that a card from compute capability 8.0 on has for a block: A10, A6000, L4, RTX 30, 40 and 50.
CARD, SHARED = 86, 101376
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


class Recorder:
    """Takes the place of a kernel and records what it is launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def launches_of(call, monkeypatch):
    """Return the launches of a call, each as kernel, arguments and options."""
    from medzoo.kernels.cuda import box_attention, box_attention_backward, conv_pool, swin_layers

    found = []
    with monkeypatch.context() as patch:
        for module in (box_attention, box_attention_backward, conv_pool, swin_layers):
            for name, value in list(vars(module).items()):
                if isinstance(value, triton.runtime.JITFunction):
                    patch.setattr(module, name, Recorder(value, found))
        call()
    return found


def compiled(kernel, args, kwargs):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
    named = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k not in options}
    constant = {name for name, p in inspect.signature(kernel.fn).parameters.items() if "constexpr" in str(p.annotation)}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = named[name]
        if name in constant or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", CARD, 32), options=options)


def swin(width, dtype):
    """Launch all kernels of a block and of merging, for tokens of the three widths that are fused."""
    from medzoo.kernels.cuda import box_attention, box_attention_backward, swin_layers
    from medzoo.kernels.cuda.box_tables import backward_tables, box_tables

    grid, cpu = WindowGrid.of((9, 9, 9), (7, 7, 7), True), torch.device("cpu")
    axes = partition(grid.size, grid.window, grid.shift)
    tables = box_tables(axes, grid.window, cpu)

    def made(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype)

    for channels in (48, 96, 192):
        c, heads = channels * width // 16, channels // 16
        qkv, table, out = (
            made(2 * len(tables.token_of_row), 3 * c),
            made(13**3, heads),
            made(2 * len(tables.token_of_row), c),
        )
        biases = box_attention.fill_biases(table, tables, (7, 7, 7))
        for keep in (False, True):
            box_attention.attend_in_boxes(qkv, biases, tables, heads, keep=keep)
        work = backward_tables(axes, grid.window, (7, 7, 7), 2, heads, cpu)
        lse = made(len(qkv), heads, dtype=torch.float32)
        grads = box_attention_backward.attend_backward(out, qkv, out, lse, biases, tables, work, heads)
        box_attention_backward.biases_backward(grads[1], tables, work, table, (7, 7, 7))
        if dtype == torch.bfloat16 and c <= swin_layers.WIDEST:
            norm, x = (made(c), made(c)), made(2, 729, c)
            swin_layers.norm_linear(x, tables.token_of_row, *norm, made(3 * c, c), made(3 * c), 1e-5)
            parts = (made(c, c), made(c)), norm, (made(4 * c, c), made(4 * c)), (made(c, 4 * c), made(c))
            swin_layers.finish_block(out, tables.scatter_index, x, *parts, 1e-5)
            octants = [(0, 0, i) for i in range(8)]
            norm = made(8 * c), made(8 * c)
            swin_layers.merge_patches(made(1, 2, 4, 6, c), octants, *norm, made(2 * c, 8 * c), 1e-5)


def convolutions():
    """Launch the first stages of the convolutional models, and a wide one."""
    from medzoo.kernels.cuda.conv_pool import Epilogue, conv_pool, pack_windows, pool_last

    for channels, kernel, padding, pool in ((64, 3, 0, 2), (32, 2, 1, 3), (128, 3, 1, 2)):
        after = Epilogue(*[torch.empty(channels) for _ in range(2)])
        packed = pack_windows(torch.zeros(channels, 1, kernel, kernel, kernel, dtype=torch.bfloat16), pool)
        x = torch.empty(1, 1, 8, 9, 10, dtype=torch.bfloat16)
        conv_pool(x, packed, after, kernel=kernel, padding=padding, pool=pool)
        pool_last(torch.empty(1, 8, 9, 10, channels, dtype=torch.bfloat16), after, pool)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "arguments"),
    [
        (swin, (16, torch.bfloat16)),
        (swin, (64, torch.float32)),
        (convolutions, ()),
    ],
    ids=["heads of 16", "heads of 64 in float32", "convolutions"],
)
def test_the_kernels_fit_into_shared_memory(launch, arguments, monkeypatch):
    launches = launches_of(lambda: launch(*arguments), monkeypatch)
    assert launches
    seen = set()
    for kernel, args, kwargs in launches:
        key = (kernel.fn.__name__, *kwargs.items())
        if key not in seen:
            seen.add(key)
            used = compiled(kernel, args, kwargs).metadata.shared
            assert used <= SHARED, f"{kernel.fn.__name__} {kwargs}: {used} bytes"
