"""In-place operators: the traced graph is the network as torch runs it, and stays so through transforms."""

import operator

import pytest
import torch
from networks import difference, randomised
from torch import fx, nn
from torch.nn import functional as F

from pibench.measure.count import cost_of
from pibench.models.graph.inplace import out_of_place
from pibench.models.graph.moves import trace
from pibench.models.graph.relu import MaskedReLU
from pibench.models.transforms import EXACT, absorb_skips, linearize_relus


class Net(nn.Module):
    """Layers of all kinds on [N, 4, 8, 8], and a `forward` that is given."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.identity, self.dropout = nn.Identity(), nn.Dropout()
        self.dropout_ = nn.Dropout2d(inplace=True)
        self.hardtanh = nn.Hardtanh(-0.5, 0.5, inplace=True)
        self.masked = MaskedReLU(torch.tensor([True, False, True, False]))
        self.flatten = nn.Flatten()
        self.register_buffer("total", torch.zeros(()))
        self.function = function

    def forward(self, x):
        return self.function(self, x, self.bn(self.conv(x)))


def net(function):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomised(Net(function))


def images():
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def module_statement(m, x, y):
    m.relu(y)
    return y.flatten(1)


def keyword_statement(m, x, y):
    m.relu(input=y)
    F.relu(input=y, inplace=True)
    return y


def function_statement(m, x, y):
    F.relu(y, inplace=True)
    z = m.conv(y)
    F.relu(z, True)
    return y + z


def method_statement(m, x, y):
    y.relu_()
    return y


def arithmetic_methods(m, x, y):
    y.mul_(2.0)
    y.add_(x, alpha=3)
    y.sub_(1).div_(2)
    y.clamp_(min=-0.2)
    return m.conv2(y)


def torch_functions(m, x, y):
    torch.relu_(x)
    F.leaky_relu_(y, 0.3)
    F.hardtanh(y, -0.5, 0.5, inplace=True)
    return x + y


def augmented(m, x, y):
    z = y
    y += x
    y *= 2
    y -= x
    y /= 3
    y **= 2
    return z


def augmented_by_function(m, x, y):
    operator.iadd(y, m.conv2(x))
    return y


def aliases(m, x, y):
    a, b, c = m.identity(y), m.dropout(y), F.dropout(y, training=False)
    b.relu_()
    return torch.cat([y, a, c, b], 1)


def in_place_dropout(m, x, y):
    z = m.dropout_(y)
    F.dropout(z, 0.5, m.training, True)
    z.relu_()
    return y


def residual(m, x, y):
    z = m.conv2(y)
    m.relu(y)
    return y + z


def earlier_use_keeps_the_earlier_value(m, x, y):
    z = y * 1.0
    c = m.conv2(z)
    z.relu_()
    return c + z


def sum_of_a_value_and_itself(m, x, y):
    z = m.relu(y)
    return z + y


def modules_called_twice(m, x, y):
    m.relu(y)
    z = m.conv2(y)
    m.relu(z)
    m.hardtanh(y)
    w = m.conv2(z)
    m.hardtanh(w)
    return w + z + y


def the_input(m, x, y):
    m.relu(x)
    return x + y


def a_view_whose_base_is_not_used_again(m, x, y):
    z = m.flatten(m.masked(y))
    z += 1
    z.relu_()
    return z


def a_number_is_no_tensor(m, x, y):
    n = x.size(0)
    m = n
    n += 1
    k = y.shape[1]
    k *= 2
    y += k
    return y.view(m, n - 1, k, -1)


NETWORKS = [
    *(module_statement, keyword_statement, function_statement, method_statement, arithmetic_methods),
    *(torch_functions, augmented, augmented_by_function, aliases, in_place_dropout, residual),
    *(earlier_use_keeps_the_earlier_value, sum_of_a_value_and_itself, modules_called_twice, the_input),
    *(a_view_whose_base_is_not_used_again, a_number_is_no_tensor),
]


@pytest.mark.parametrize("function", NETWORKS)
def test_the_graph_is_the_network_without_in_place_operators(function):
    model, x = net(function), images()
    graph = trace(model)
    with torch.no_grad():
        assert torch.equal(graph(x), model(x.clone()))
    assert torch.equal(x, images())  # not even the input is changed
    assert model.relu.inplace
    for node in graph.graph.nodes:
        assert node.op == "call_module" or out_of_place(node.target) is None
        assert not node.kwargs.get("inplace")
    assert not any(getattr(module, "inplace", False) for module in graph.modules())


# What torch's own tracer cannot: it takes `y += z` for y = y + z, and does not stop at MaskedReLU.
OURS_ALONE = (augmented, augmented_by_function, a_view_whose_base_is_not_used_again, a_number_is_no_tensor)


@pytest.mark.parametrize("function", [f for f in NETWORKS if f not in OURS_ALONE])
def test_graphs_traced_by_others_are_rewritten_too(function):
    model, x = net(function), images()
    with torch.no_grad():
        assert torch.equal(trace(fx.symbolic_trace(model))(x), model(x.clone()))


@pytest.mark.parametrize("transform", EXACT)
@pytest.mark.parametrize("function", NETWORKS)
def test_exact_transforms_are_exact_on_in_place_networks(function, transform):
    model = net(function)
    x = images()
    with torch.no_grad():
        expected = model(x.clone())
        found = transform(model)(x)
    assert (found - expected).abs().max() <= 1e-10 * expected.abs().max()


def test_a_statement_keeps_its_relus():
    for function in (module_statement, function_statement, method_statement):
        assert cost_of(net(function), images()).relus >= 256
        assert cost_of(EXACT[0](net(function)), images()).relus >= 256


def test_a_skip_changed_after_its_convolution_is_not_absorbed():
    model = net(earlier_use_keeps_the_earlier_value)
    with pytest.raises(ValueError, match="relu_ is neither the input of conv2"):
        absorb_skips(model, ["add"])


def test_one_masked_pixel_changes_one_position_of_each_image():
    model = net(sum_of_a_value_and_itself)
    mask = torch.ones(4, 8, 8, dtype=torch.bool)
    x = images()
    with torch.no_grad():
        before = model.bn(model.conv(x))
        pixel = tuple((before < 0).all(0).nonzero()[0].tolist())
        mask[pixel] = False
        changed = (linearize_relus(model, {"relu": mask})(x) != model(x)).nonzero()
    assert changed.tolist() == [[0, *pixel], [1, *pixel]]


def base_of_a_view(m, x, y):
    z = y.flatten(1)
    z.relu_()
    return y


def view_of_a_base(m, x, y):
    z = m.flatten(y)
    m.relu(y)
    return z


def slices(m, x, y):
    y[:, :2].relu_()
    return y


def chunks(m, x, y):
    a, b = y.chunk(2, 1)
    a.relu_()
    return a + b


def shuffled(m, x, y):
    z = F.pixel_shuffle(y, 1)
    z += 1
    return y + z


def data(m, x, y):
    y.data.mul_(2)
    return y


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (base_of_a_view, "relu_: it changes flatten in place, then output uses bn, which may or may not"),
        (view_of_a_base, "relu: it changes bn in place, then output uses flatten, .* make relu out of"),
        (slices, "relu_: it changes getitem in place"),
        (chunks, "relu_: it changes getitem in place, then add uses getitem_1"),
        (shuffled, "iadd: it changes pixel_shuffle in place"),
        (data, "mul_: it changes getattr_1 in place"),
    ],
)
def test_what_a_later_use_may_or_may_not_see_is_refused(function, reason):
    with pytest.raises(ValueError, match=f"cannot trace {reason}"):
        trace(net(function))


def test_dropout_while_training_may_or_may_not_be_its_input():
    def dropped(m, x, y):
        m.dropout(y).relu_()
        return y

    trace(net(dropped))
    with pytest.raises(ValueError, match="relu_: it changes dropout in place, then output uses bn"):
        trace(net(dropped).train())


def assigned(m, x, y):
    y[:, 0] = 0
    return y


def given_out(m, x, y):
    torch.add(x, y, out=y)
    return y


def zeroed(m, x, y):
    y.zero_()
    return y


def initialised(m, x, y):
    nn.init.zeros_(y)
    return y


@pytest.mark.parametrize(
    ("function", "name"),
    [(assigned, "setitem"), (given_out, "add"), (zeroed, "zero_"), (initialised, "zero_")],
)
def test_in_place_operators_without_another_form_are_refused(function, name):
    with pytest.raises(ValueError, match=rf"cannot trace \w+: {name} changes a value in place and has no "):
        trace(net(function))


def test_a_network_that_changes_its_own_tensors_is_refused():
    def counted(m, x, y):
        m.total.add_(y.sum())
        return y * m.total

    with pytest.raises(ValueError, match="add_: it changes total, a tensor of the network, in place"):
        trace(net(counted))


@pytest.mark.parametrize(
    ("target", "form"),
    [
        *(("relu_", "relu"), ("relu", None), ("__add__", None), ("requires_grad_", None)),
        *((torch.relu_, torch.relu), (F.leaky_relu_, F.leaky_relu), (torch.relu, None)),
        *((operator.iadd, operator.add), (operator.and_, None), (difference, None)),
    ],
)
def test_out_of_place_forms(target, form):
    assert out_of_place(target) is form or out_of_place(target) == form
