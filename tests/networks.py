"""Small networks with random statistics, and the comparison that the tests of models share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from pibench.models.zoo import resnet18, resnet20, vgg16, wrn_22_8
from pibench.program.lower import Lowered
from pibench.program.plaintext import evaluate

SMALL = {
    "resnet18": lambda: resnet18(classes=5, width=4),
    "resnet18-imagenet": lambda: resnet18(classes=5, width=4, stem="imagenet"),
    "resnet20": lambda: resnet20(classes=5, width=4),
    "wrn_22_8": lambda: wrn_22_8(classes=5, width=1),
    "vgg16": lambda: vgg16(classes=5, width=4),
    "vgg16-hidden": lambda: vgg16(classes=5, width=2, hidden=True),
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every BatchNorm random statistics and parameters, in place; float64 and eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low

    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(draw(module.running_mean, -0.5, 0.5))
            module.running_var.copy_(draw(module.running_var, 0.5, 2))
            module.weight.data = draw(module.weight, 0.5, 1.5)
            module.bias.data = draw(module.bias, -0.5, 0.5)
    return model


def small(name: str, seed: int = 0) -> nn.Module:
    """Returns a network of SMALL with seeded weights and random statistics, float64, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(SMALL[name](), seed)


def images(count: int = 2, size: int = 32, seed: int = 1) -> Tensor:
    """Returns float64 noise [count, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


@torch.no_grad()
def difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Returns the largest difference of the two outputs relative to the largest output."""
    expected = one(x)
    assert expected.abs().max() > 1e-3
    return float((other(x) - expected).abs().max() / expected.abs().max())


def signature(graph: fx.GraphModule) -> list[tuple[str, str, str]]:
    """Returns each node's operation, target and module, so that a changed graph compares unequal."""
    return [
        (
            node.op,
            str(node.target),
            repr(graph.get_submodule(node.target)) if node.op == "call_module" else "",
        )
        for node in graph.graph.nodes
    ]


def state(model: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the state of a model."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Block(nn.Module):
    """A small network with a convolution, a ReLU, pooling and a linear layer; 8 x 8 images."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.relu = nn.ReLU()
            self.pool = nn.AvgPool2d(2)
            self.fc = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.relu(self.conv(x))), 1))


class Apply(nn.Module):
    """Applies a function of itself and the input; `modules` become its own."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def logits_of(lowered: Lowered, inputs: Tensor) -> Tensor:
    """Returns the float64 answer of a lowered network to `inputs` [N, ...]."""
    return evaluate(lowered.program, lowered.weights, inputs.double())
