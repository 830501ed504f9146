import pytest
import torch
from training_setup import banded, tiny_images

from pibench.models.data import DataError, normalised
from pibench.models.training.images import PAD, Images, accuracy, crop_and_flip, standardised, stratified


def test_the_held_out_part_is_stratified_seeded_and_disjoint():
    labels = torch.arange(10).repeat(30)[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    out = stratified(labels, 50)
    assert labels[out].bincount().tolist() == [5] * 10
    assert torch.equal(out, stratified(labels, 50))
    assert not torch.equal(out, stratified(labels, 50, seed=1))
    assert int(stratified(labels, 53).sum()) == 53
    with pytest.raises(DataError, match="class 0 has 30 training images, 30 cannot be held out"):
        stratified(labels, 300)
    images = torch.arange(300, dtype=torch.int32).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    split = Images.split((images % 251).to(torch.uint8), labels, 50, 10)
    assert (len(split.labels), len(split.heldout)) == (250, 50)
    assert torch.equal(split.heldout[:, 0, 0, 0], (images[out, 0, 0, 0] % 251).to(torch.uint8))
    assert torch.equal(split.heldout_labels, labels[out])


def test_crops_are_shifted_windows_and_half_are_mirrored():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (1, 3, 32, 32), generator=generator, dtype=torch.uint8)
    padded = torch.nn.functional.pad(images, (PAD,) * 4)
    crops = crop_and_flip(padded.permute(0, 2, 3, 1), torch.zeros(400, dtype=torch.int64), generator)
    assert crops.shape == (400, 32, 32, 3)
    windows = {}
    for top in range(9):
        for left in range(9):
            window = padded[0, :, top : top + 32, left : left + 32].permute(1, 2, 0)
            windows[window.contiguous().numpy().tobytes()] = (top, left, False)
            windows[window.flip(1).contiguous().numpy().tobytes()] = (top, left, True)
    found = [windows[crop.contiguous().numpy().tobytes()] for crop in crops]
    assert {top for top, _, _ in found} == {left for _, left, _ in found} == set(range(9))
    assert 0.4 < sum(mirrored for _, _, mirrored in found) / 400 < 0.6


def test_an_epoch_is_a_permutation_and_can_be_repeated_alone():
    images = tiny_images(88, 8)
    batches = list(images.epoch(32, seed=3, epoch=5))
    assert [len(labels) for _, labels in batches] == [32, 32]
    assert images.steps(32) == 2
    assert images.steps(1000) == 1
    for (x, labels), (again, same) in zip(batches, images.epoch(32, seed=3, epoch=5), strict=True):
        assert torch.equal(x, again)
        assert torch.equal(labels, same)
        assert x.is_contiguous(memory_format=torch.channels_last)
    for seed, epoch in ((3, 6), (4, 5)):
        assert not torch.equal(batches[0][0], next(images.epoch(32, seed, epoch))[0])
    assert sum(len(x) for x, _ in images.epoch(1000, 0, 0)) == 80


def test_what_is_seen_is_normalised_as_everywhere():
    images, labels = banded(12)
    expected = normalised(images)
    assert torch.equal(standardised(images.permute(0, 2, 3, 1)), expected)
    split = Images.split(images, labels, 4, 4)
    kept = expected[~stratified(labels, 4)]
    (sample,) = split.sample(100)
    assert sorted(sample.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(kept.sum((1, 2, 3)).tolist()))
    assert len(next(split.sample(3))) == 3


def test_accuracy_counts_right_answers_and_leaves_the_mode():
    class Brightest(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            assert not self.training
            return x.mean((1, 3)).unflatten(1, (4, 8)).mean(2) * self.scale

    model = Brightest().train()
    images, labels = banded(22)
    assert accuracy(model, images, labels, batch=10) == 1
    assert accuracy(model, images, (labels + (torch.arange(22) < 11)) % 4, batch=10) == 0.5
    assert model.training


def test_missing_data_is_one_clear_sentence(tmp_path):
    with pytest.raises(DataError, match=r"train cannot be read .*make data"):
        Images.cifar100(tmp_path)
