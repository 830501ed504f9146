import math

import pytest
import torch

from pibench.models.training.losses import (
    attention,
    cross_entropy,
    distillation,
    lasso,
    pram,
    standardized_distillation,
)

LOGITS = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.2, -1.0]])
TEACHER = torch.tensor([[0.5, 0.5, 3.0], [-1.0, 2.0, 0.0]])


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand(smoothing):
    labels, expected = [2, 0], 0.0
    for row, label in zip(LOGITS.tolist(), labels, strict=True):
        for index, p in enumerate(softmax(row)):
            q = smoothing / 3 + (1 - smoothing if index == label else 0)
            expected -= q * math.log(p) / 2
    assert cross_entropy(LOGITS, torch.tensor(labels), smoothing).item() == pytest.approx(expected, rel=1e-6)


def test_distillation_by_hand():
    expected = 0.0
    for student, teacher in zip(LOGITS.tolist(), TEACHER.tolist(), strict=True):
        pairs = zip(softmax(student, 4.0), softmax(teacher, 4.0), strict=True)
        expected += 16 * sum(p * math.log(p / q) for q, p in pairs) / 2
    assert distillation(LOGITS, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    assert distillation(TEACHER, TEACHER).item() == pytest.approx(0, abs=1e-6)


def test_standardized_distillation_by_hand():
    def scores(row):
        mean = sum(row) / 3
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / 2)
        return [(value - mean) / deviation for value in row]

    expected = 0.0
    for student, teacher in zip(LOGITS.tolist(), TEACHER.tolist(), strict=True):
        pairs = zip(softmax(scores(student), 2.0), softmax(scores(teacher), 2.0), strict=True)
        expected += 4 * sum(p * math.log(p / q) for q, p in pairs) / 2
    assert standardized_distillation(LOGITS, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    other = torch.tensor([[3.0], [0.2]]) * LOGITS + torch.tensor([[5.0], [-1.0]])
    assert standardized_distillation(other, TEACHER).item() == pytest.approx(expected, rel=1e-4)


def stage(seed):
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def by_hand(f):
    """A / ||A||_2 of one image, position by position."""
    A = [sum(float(f[c, h, w]) ** 2 for c in range(3)) / 3 for h in range(4) for w in range(4)]
    norm = math.sqrt(sum(a * a for a in A))
    return [a / norm for a in A]


def test_pram_by_hand():
    students, teachers = [stage(0), stage(1)], [stage(2), stage(3)]
    expected = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        differences = [
            (a - b) ** 2
            for image in range(2)
            for a, b in zip(by_hand(student[image]), by_hand(teacher[image]), strict=True)
        ]
        expected += sum(differences) / len(differences)
    assert pram(students, teachers).item() == pytest.approx(expected, rel=1e-5)
    assert attention(students[0])[1].tolist() == pytest.approx(by_hand(students[0][1]), rel=1e-5)
    assert pram(students, students).item() == 0


def test_pram_does_not_see_the_scale_and_passes_gradients():
    student = stage(0).requires_grad_()
    assert pram([3 * student], [student]).item() == pytest.approx(0, abs=1e-10)
    pram([student], [stage(1)]).backward()
    assert student.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="shorter"):
        pram([student], [])


def test_pram_in_bfloat16_is_close():
    one, other = (torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    low = [value.bfloat16().contiguous(memory_format=torch.channels_last) for value in (one, other)]
    assert pram(low[:1], low[1:]).item() == pytest.approx(pram([one], [other]).item(), rel=0.05)


def test_lasso_sums_the_slopes():
    assert lasso([torch.tensor([0.5, -0.25]), torch.tensor([1.0])]).item() == 1.75
