"""The generator of the CycleGAN paper (Zhu et al., 2017, appendix 7.2; Johnson et al., 2016), to be compared with."""

from torch import Tensor, nn

__all__ = ["ResnetGenerator"]


class ResnetBlock(nn.Module):
    """x + two 3 x 3 convolutions with instance norm, same shape (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, kernel_size=3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, kernel_size=3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResnetGenerator(nn.Module):
    """c7s1-64, d128, d256, nine R256, u128, u64, c7s1-1, tanh: (B, 1, H, W) in units, H and W multiples of 4."""

    def __init__(self, *, channels: int = 64, blocks: int = 9) -> None:
        super().__init__()
        c = channels
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(1, c, kernel_size=7),
            *_normed(c),
            nn.Conv2d(c, 2 * c, kernel_size=3, stride=2, padding=1),
            *_normed(2 * c),
            nn.Conv2d(2 * c, 4 * c, kernel_size=3, stride=2, padding=1),
            *_normed(4 * c),
            *(ResnetBlock(4 * c) for _ in range(blocks)),
            nn.ConvTranspose2d(4 * c, 2 * c, kernel_size=3, stride=2, padding=1, output_padding=1),
            *_normed(2 * c),
            nn.ConvTranspose2d(2 * c, c, kernel_size=3, stride=2, padding=1, output_padding=1),
            *_normed(c),
            nn.ReflectionPad2d(3),
            nn.Conv2d(c, 1, kernel_size=7),
            nn.Tanh(),
        )

    def forward(self, unit: Tensor) -> Tensor:
        return self.layers(unit)


def _normed(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)
