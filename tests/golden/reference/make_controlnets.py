"""What PyTorch, torchvision and OpenCV compute for ControlNets of the kinds that Stable Cascade's authors published.

The layers are those of `modules/controlnet.py` of Stability-AI/StableCascade, with smaller widths and random weights.

    pip install -r requirements.txt opencv-python-headless==4.10.0.84
    python make_controlnets.py --out ../controlnets.safetensors
"""

import argparse

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import interpolate
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        half = lambda: [nn.LayerNorm(c), nn.GELU(), nn.Conv2d(c, c, kernel_size=3, padding=1)]
        self.blocks = nn.Sequential(*half(), *half())

    def forward(self, x):
        y = x
        for block in self.blocks:
            is_norm = isinstance(block, nn.LayerNorm)
            y = block(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if is_norm else block(y)
        return x + y


def efficient_net(c_in):
    """EfficientNetV2 with narrow stages; the first convolution as the authors replace it."""
    stages = [
        FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        FusedMBConvConfig(2, 3, 2, 8, 8, 2),
        FusedMBConvConfig(2, 3, 2, 8, 16, 1),
        MBConvConfig(2, 3, 2, 16, 16, 2),
        MBConvConfig(2, 3, 1, 16, 16, 1),
        MBConvConfig(2, 3, 2, 16, 16, 1),
    ]
    norm = lambda c: nn.BatchNorm2d(c, eps=1e-3)
    backbone = EfficientNet(stages, dropout=0.0, last_channel=10, norm_layer=norm).features
    backbone[0][0] = nn.Conv2d(c_in, 8, kernel_size=3, stride=2, bias=False)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1.0, 0.1)
            nn.init.normal_(module.bias, std=0.1)
    return backbone


def embedding_net(c_in, c_out):
    return nn.Sequential(
        nn.Conv2d(c_in, 24, kernel_size=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(24, 8, kernel_size=1),
        Residual(8),
        Residual(8),
        nn.Conv2d(8, c_out, kernel_size=1),
    )


class ControlNet(nn.Module):
    def __init__(self, backbone, width):
        super().__init__()
        self.backbone = backbone
        conv = lambda c_out: nn.Conv2d(width, c_out, kernel_size=1, bias=False)
        projection = lambda: nn.Sequential(conv(width), nn.LeakyReLU(0.2), conv(24))
        self.projections = nn.ModuleList([projection() for _ in range(8)])

    def forward(self, x):
        x = self.backbone(x)
        return [projection(x) for projection in self.projections]


def picture(height, width):
    """Shapes with soft and hard borders, and some noise."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = ((y - height / 2) ** 2 + (x - width / 3) ** 2).sqrt() < height / 4
    wave = (torch.sin(x / 9) + torch.cos(y / 7)) / 4 + 0.5
    bars = ((x + y) // 24 % 2).float()
    colours = torch.stack([wave, disc.float() * 0.8 + 0.1, bars * 0.5 + 0.2])
    return (colours + 0.02 * torch.randn(3, height, width)).clamp(0, 1)


def canny(x):
    """`CannyFilter` in `modules/controlnet.py` of Stability-AI/StableCascade."""
    small = interpolate(x, size=(224, 224), mode="bilinear")
    edges = torch.tensor(opencv(small[0])).div(255)[None, None]
    return interpolate(edges, size=x.shape[-2:], mode="bilinear")


def opencv(x):
    return cv2.Canny(x.mul(255).permute(1, 2, 0).numpy().astype(np.uint8), 100, 200)


parser = argparse.ArgumentParser()
parser.add_argument("--out", required=True)
args = parser.parse_args()
torch.set_num_threads(1)
torch.manual_seed(20)
tensors = {}
for kind, net, x in [
    ("edges", ControlNet(efficient_net(1), 10), torch.rand(1, 1, 64, 95)),
    ("painting", ControlNet(efficient_net(4), 10), torch.rand(1, 4, 66, 64)),
    ("embedding", ControlNet(embedding_net(4, 9), 9), torch.randn(1, 4, 4, 3)),
]:
    net = net.eval()
    with torch.no_grad():
        projections = net(x)
    tensors[f"{kind}.input"] = x
    for name, tensor in net.state_dict().items():
        tensors[f"{kind}.weights.{name}"] = tensor
    for i, projection in enumerate(projections):
        tensors[f"{kind}.projection.{i}"] = projection
sample = picture(48, 72)
tensors["canny.input"] = sample[None]
tensors["canny.edges"] = torch.tensor(opencv(sample)).div(255)[None, None]
tensors["filter.input"] = picture(60, 96)[None]
tensors["filter.edges"] = canny(tensors["filter.input"])
tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
save_file(tensors, args.out)
