import pytest
import torch
from networks import images, small, state
from torch import fx, nn

from pibench.models.graph.moves import (
    addends,
    bypass,
    callers,
    finish,
    fresh_name,
    insert_module,
    module_of,
    relu_nodes,
    replace_module,
    sharing,
    sole_user,
    source,
    trace,
)
from pibench.models.graph.relu import MaskedReLU


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.conv(x))
        return torch.relu(self.relu(self.conv(input=x)))


def node_named(graph, name):
    return next(node for node in graph.graph.nodes if node.name == name)


@pytest.mark.parametrize("again", [False, True])
def test_trace_is_a_deep_copy_in_the_same_mode(again):
    model = small("resnet18")
    model.layer1[0].bn1.train()
    if again:
        model = trace(model)
    before = state(model)
    graph = trace(model)
    assert isinstance(graph, fx.GraphModule)
    assert graph is not model
    assert not graph.training
    assert graph.get_submodule("layer1.0.bn1").training
    assert not graph.get_submodule("layer1.0.bn2").training
    model.eval()
    graph.eval()
    assert torch.equal(model(images()), graph(images()))
    for parameter in graph.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_masked_relu_is_one_node():
    graph = trace(nn.Sequential(nn.ReLU(), MaskedReLU(torch.ones(3, dtype=torch.bool))))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["", "layer1.0", "layer1.0.relu1"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_not_lost_but_refused(register, name, again):
    model = trace(small("resnet18")) if again else small("resnet18")
    handle = getattr(model.get_submodule(name), register)(lambda *call: None)
    with pytest.raises(ValueError, match=f"cannot trace: .*{name}.* has forward hooks, which a graph loses"):
        trace(model)
    handle.remove()
    trace(model)


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(3), lambda: torch.randn(1) > 0, lambda: torch.empty(3).normal_()]
)
def test_a_random_factor_is_not_frozen_but_refused(draw):
    class Random(nn.Module):
        def forward(self, x):
            return x * draw()

    with pytest.raises(ValueError, match="cannot trace: the forward of Random draws random numbers"):
        trace(Random())


def test_arguments_of_modules_become_positional():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.up = nn.Conv2d(3, 3, 1), nn.ConvTranspose2d(3, 3, 2, stride=2)
            self.relu = MaskedReLU(torch.tensor([True, False, True]))

        def forward(self, x):
            return self.relu(x=self.up(output_size=[9, 9], input=self.conv(input=x)))

    model = Named()
    graph = trace(model)
    assert all(not node.kwargs and node.args for node in graph.graph.nodes if node.op == "call_module")
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(graph(x), model(x))


def test_sums_of_two_values():
    class Sums(nn.Module):
        def forward(self, x, y):
            x += y
            sums = [x + y, torch.add(x, y), x.add(other=y), torch.add(input=x, other=y, alpha=1)]
            others = [x + 1, 1 + x, torch.add(x, y, alpha=2), x - y, x.add(other=2)]
            return sums + others

    graph = trace(Sums())
    found = [tuple(map(str, addends(node) or ())) for node in graph.graph.nodes if node.op != "output"]
    assert found == [(), (), ("x", "y"), *[("iadd", "y")] * 4, *[()] * 5]


def test_looking_at_nodes():
    graph = trace(Shared())
    conv, relu = callers(graph, "conv")[0], callers(graph, "relu")[0]
    assert isinstance(module_of(graph, conv), nn.Conv2d)
    assert module_of(graph, conv, nn.Linear) is None
    assert module_of(graph, 3) is None
    assert sole_user(conv) is relu
    assert source(callers(graph, "conv")[1]) is relu
    assert len(callers(graph, "conv")) == 2
    assert sharing(graph, conv) == "conv is called more than once"
    resnet = trace(small("resnet18"))
    assert sharing(resnet, callers(resnet, "conv1")[0]) is None
    assert sharing(resnet, callers(resnet, "relu")[0]) == "relu has other users"
    x = next(iter(trace(small("resnet18")).graph.nodes))
    assert sole_user(x).name == "conv1"


def test_relus_are_named_by_module_or_else_by_node():
    assert list(relu_nodes(trace(Shared()))) == ["relu", "relu_1", "relu_2"]
    names = list(relu_nodes(trace(small("resnet18"))))
    assert len(names) == 17
    assert names[:3] == ["relu", "layer1.0.relu1", "layer1.0.relu2"]


def test_replacing_one_call_of_a_shared_module_leaves_the_other():
    graph = trace(Shared())
    first, second = callers(graph, "relu")
    replace_module(graph, first, nn.Identity())
    finish(graph)
    assert isinstance(module_of(graph, first), nn.Identity)
    assert isinstance(module_of(graph, second), nn.ReLU)


def test_insert_and_bypass():
    graph = trace(Shared()).eval()
    x = torch.randn(1, 3, 2, 2)
    expected = graph(x)
    conv, relu = callers(graph, "conv")[0], callers(graph, "relu")[0]
    new = insert_module(graph, "conv", nn.Identity(), conv, relu)
    assert new.target == "conv_1"
    relu.replace_input_with(conv, new)
    assert torch.equal(finish(graph)(x), expected)
    bypass(new)
    assert torch.equal(finish(graph)(x), expected)
    assert "conv_1" not in dict(graph.named_modules())
    assert fresh_name(graph, "conv") == "conv_1"


def test_finish_removes_what_is_unused():
    graph = trace(small("resnet18"))
    last = node_named(graph, "fc")
    node_named(graph, "output").replace_input_with(last, node_named(graph, "relu"))
    finish(graph)
    assert [name for name, _ in graph.named_children()] == ["conv1", "bn1", "relu"]
