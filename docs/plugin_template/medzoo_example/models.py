"""A small residual network for chest X-rays: ``example_resnet``.

Source: the paper or the code that the model follows, and which of its numbers are not from there.

Axes: b batch, c channels, h w height width, n classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from medzoo import Classifier, InputSpec, Outputs, Preprocessing, register
from medzoo.nn import Encoder, Head

__all__ = ["example_resnet"]


class Block(nn.Module):
    """Two convolutions added to their input, then pooling: ``b c h w -> b c' h/2 w/2``."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(in_chans, channels, 1)
        self.conv1 = nn.Conv2d(in_chans, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Refine the map and halve its size."""
        return self.pool(F.relu(self.skip(x) + self.conv2(F.relu(self.conv1(x)))))


class ExampleEncoder(Encoder):
    """A chain of blocks, each giving a map at half the size of the one before: ``b c h w -> b widths[-1] h' w'``."""

    def __init__(self, in_chans: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            self.blocks.append(Block(widths[i - 1] if i else in_chans, width))
            self.feature_info.append({"num_chs": width, "reduction": 2 ** (i + 1), "module": f"blocks.{i}"})

    def stage(self, i: int, x: Tensor) -> Tensor:
        """Run block ``i``."""
        return self.blocks[i](x)


INPUT = InputSpec("b c h w", channels=1, size=(224, 224), minimum=16)


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=("pneumonia",), task="binary"),
    preprocessing=Preprocessing(size=INPUT.size, mean=(0.5,), std=(0.25,)),
    parameters=304_369,
    summary="four residual blocks, averaged",
    source="https://example.org/paper",
    citation="Author et al., Title, Venue, Year",
    cam_layer="encoder.blocks.3",
    tiny={"widths": (4, 4, 8, 8)},
    tiny_size=(32, 48),
)
def example_resnet(
    *, num_classes: int = 1, in_chans: int = 1, widths: tuple[int, ...] = (16, 32, 64, 128)
) -> Classifier:
    """Build the residual network, ``b c h w -> b n``; any size from 16.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b widths[-1]``.
        in_chans: channels of the image.
        widths: channels after each block.
    """
    encoder = ExampleEncoder(in_chans, widths)
    head = Head(encoder.num_features, num_classes)
    return Classifier(encoder, head, input_spec=INPUT.with_channels(in_chans))
