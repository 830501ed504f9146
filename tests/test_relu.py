import pytest
import torch

from pibench.models.graph.relu import MaskedReLU

SHAPE = (3, 4, 5)


def pixel_mask():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.4


def test_relu_on_the_mask_and_identity_elsewhere():
    mask, x = pixel_mask(), torch.randn(2, *SHAPE)
    y = MaskedReLU(mask)(x)
    assert torch.equal(y[:, mask], x[:, mask].clamp(min=0))
    assert torch.equal(y[:, ~mask], x[:, ~mask])


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
def test_a_channel_mask_covers_all_pixels(shape):
    mask, x = torch.tensor([True, False, True]).view(shape), torch.randn(2, *SHAPE)
    relu = MaskedReLU(mask)
    assert relu.per_channel
    y = relu(x)
    assert torch.equal(y[:, [0, 2]], x[:, [0, 2]].clamp(min=0))
    assert torch.equal(y[:, 1], x[:, 1])
    assert relu.kept(SHAPE) == 40
    assert relu.expanded(SHAPE).flatten().nonzero().flatten().tolist() == [*range(20), *range(40, 60)]


def test_a_mask_of_pixels_keeps_its_positions_of_the_flattened_image():
    mask, x = pixel_mask(), torch.randn(1, *SHAPE)
    relu = MaskedReLU(mask)
    positions = mask.flatten().nonzero().flatten()
    assert torch.equal(relu.expanded(SHAPE), mask)
    assert relu.kept(SHAPE) == len(positions) == int(mask.sum())
    by_hand = x.flatten().clone()
    by_hand[positions] = by_hand[positions].relu()
    assert torch.equal(relu(x).flatten(), by_hand)
    assert not relu.per_channel


def test_a_mask_after_a_linear_layer():
    mask, x = torch.tensor([True, False]), torch.tensor([[-1.0, -2.0]])
    assert MaskedReLU(mask)(x).tolist() == [[0.0, -2.0]]


def test_the_mask_is_saved_copied_and_kept_through_dtypes():
    mask = pixel_mask()
    relu = MaskedReLU(mask).double()
    mask[:] = True
    assert not relu.mask.all()
    assert relu.mask.dtype == torch.bool
    assert list(relu.state_dict()) == ["mask"]
    assert "kept=" in repr(relu)


def test_an_activation_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"mask of shape \[3, 4, 5\] does not fit an activation of shape \[3, 5, 4\]"
    ):
        MaskedReLU(pixel_mask())(torch.zeros(1, 3, 5, 4))
    with pytest.raises(ValueError, match="does not fit"):
        MaskedReLU(torch.ones(2, dtype=torch.bool)).kept(SHAPE)


def test_masks_of_another_type_or_rank_are_refused():
    with pytest.raises(TypeError, match=r"boolean, this one is torch\.float32"):
        MaskedReLU(torch.ones(3))
    with pytest.raises(ValueError, match="shape"):
        MaskedReLU(torch.ones(4, 5, dtype=torch.bool))
