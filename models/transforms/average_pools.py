"""max pooling -> average pooling.

    max_{m in window} x[s i - p + m]  ->  (1 / k^2) sum_{m in window} x[s i - p + m]

Window, stride and padding stay the same (zeros of the padding are counted). A maximum takes k^2 - 1
comparisons for each output under MPC. An average is linear and costs no communication between two parties.

Approximate: it is another function, usually trained again. Refuses dilated windows and pooling that returns
indices.
"""

import torch
from torch import fx, nn
from torch.nn import functional as F

from pibench.models.graph.moves import finish, insert_module, module_of, replace_module, trace

_FUNCTIONS = {F.max_pool2d, torch.max_pool2d}
_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


def obstacle(pool: nn.MaxPool2d) -> str | None:
    """Returns why `pool` has no average pooling over the same windows, or None if it has one."""
    if pool.dilation not in (1, (1, 1)):
        return f"average pooling has no dilation, this max pooling has {pool.dilation}"
    if pool.return_indices:
        return "an average has no indices to return"
    return None


def averaged(pool: nn.MaxPool2d) -> nn.AvgPool2d:
    """Returns the average pooling over the windows of `pool`."""
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=True)


def average_pools(model: nn.Module) -> fx.GraphModule:
    """Replaces every max pooling by average pooling over the same windows."""
    graph = trace(model)
    for node in list(graph.graph.nodes):
        pool = module_of(graph, node, nn.MaxPool2d)
        function = node.op == "call_function" and node.target in _FUNCTIONS
        if function:
            arguments = dict(zip(_ARGUMENTS, node.args, strict=False)) | dict(node.kwargs)
            image = arguments.pop("input")
            pool = nn.MaxPool2d(**arguments)
        if pool is None:
            continue
        if reason := obstacle(pool):
            raise ValueError(f"cannot average {node.name}: {reason}")
        if function:
            new = insert_module(graph, node.name, averaged(pool), image, node)
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
        else:
            replace_module(graph, node, averaged(pool))
    return finish(graph)
