"""m ReLU(x) + (1 - m) x -> m ReLU(x): pixels without a ReLU become 0.

    y[c, i, j] = m[i, j] ReLU(x[c, i, j])

with the public mask m of a `MaskedReLU`, the same in every channel. In a residual block the ReLU follows the
sum, so the mask reaches the shortcut too. Masks on the convolutions of the deep branch alone would leave the
output of a 1x1 shortcut at these pixels, and of ResNet-18's ReLUs there only 79 % would go.

Approximate: it computes another function, whose weights are trained again. `linearize_relus` puts the masks
in; they are chosen elsewhere (`pibench.models.masks.pixel_masks`). After arXiv 2309.06626. Ours: the mask
stands after the ReLU, so that it also covers biases and BatchNorm. Refuses a masked ReLU whose mask differs
between channels.
"""

from torch import fx, nn

from pibench.models.graph.moves import finish, insert_module, module_of, trace
from pibench.models.graph.pixels import PixelMask
from pibench.models.graph.relu import MaskedReLU


def obstacle(relu: MaskedReLU) -> str | None:
    """Returns why the mask of a ReLU is no mask of pixels, or None if it is one."""
    if relu.per_channel:
        return "its mask is one of channels"
    if not (relu.mask == relu.mask[:1]).all():
        return "its mask differs between channels"
    return None


def mask_pixels(model: nn.Module) -> fx.GraphModule:
    """Sets the pixels that a masked ReLU does not evaluate to 0, after every masked ReLU of the network."""
    graph = trace(model)
    for node in list(graph.graph.nodes):
        relu = module_of(graph, node, MaskedReLU)
        if relu is None:
            continue
        if reason := obstacle(relu):
            raise ValueError(f"cannot mask the pixels of {node.target}: {reason}")
        new = insert_module(graph, f"{node.target}_pixels", PixelMask(relu.mask[0]), node, node.next)
        node.replace_all_uses_with(new, lambda user, new=new: user is not new)
    return finish(graph)
