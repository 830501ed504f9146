"""Reads values from inside a network while it runs."""

from collections.abc import Collection

from torch import Tensor, nn


def run_tapped(
    model: nn.Module, x: Tensor, outputs: Collection[str] = (), inputs: Collection[str] = ()
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Returns the answer to x [N, 3, H, W], the outputs of modules `outputs` and the inputs of `inputs`.

    Both are by name, in the shapes of the modules. Raises AttributeError for an unknown name.
    """
    after: dict[str, Tensor] = {}
    before: dict[str, Tensor] = {}

    def keep_output(name: str):
        return lambda module, args, value: after.__setitem__(name, value)

    def keep_input(name: str):
        return lambda module, args: before.__setitem__(name, args[0])

    handles = [model.get_submodule(name).register_forward_hook(keep_output(name)) for name in outputs]
    handles += [model.get_submodule(name).register_forward_pre_hook(keep_input(name)) for name in inputs]
    try:
        answer = model(x)
    finally:
        for handle in handles:
            handle.remove()
    return answer, after, before
