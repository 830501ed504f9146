"""The losses: cross-entropy, distillation, PRAM, SNL's lasso. Each returns a scalar in float32."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 4.0


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Returns the mean over the batch of -sum_c q_c log p_c, p = softmax(logits [N, C]).

    q_c is 1 - s + s / C for the label's class and s / C for the others, where s is the smoothing.
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def distillation(logits: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(logits / T)) for logits [N, C], averaged over the batch.

    The factor T^2 keeps the size of the gradient when T changes (Hinton et al., arXiv 1503.02531).
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)


def standardized_distillation(logits: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """Returns `distillation` of the logits' standard scores: each row [C] minus its mean, over its deviation.

    The student need then not have logits as large as the teacher's (arXiv 2403.01683).
    """
    scores = [
        (row.float() - row.float().mean(1, keepdim=True)) / (row.float().std(1, keepdim=True) + 1e-7)
        for row in (logits, teacher)
    ]
    return distillation(*scores, temperature)


def attention(activation: Tensor) -> Tensor:
    """Maps f [N, C, H, W] to A / ||A||_2 [N, H W], where A is the channel mean of f^2.

    A 1x1 convolution computes the mean. In bfloat16 a reduction over the channels of channels_last memory,
    with its gradient, takes three times as long.
    """
    channels = activation.shape[1]
    mean = activation.new_full((1, channels, 1, 1), 1 / channels)
    return F.normalize(F.conv2d(activation.square(), mean).float().flatten(1), dim=1)


def pram(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Returns SENet's PRAM: the sum over stage outputs of the mean squared difference of their attention.

    Both arguments hold each stage's output, [N, C, H, W]. The mean is over images and positions. Source:
    arXiv 2301.09254 (its weight there is 1000).
    """
    return sum(
        F.mse_loss(attention(student), attention(teacher))
        for student, teacher in zip(students, teachers, strict=True)
    )


def lasso(alphas: Iterable[Tensor]) -> Tensor:
    """Returns sum |a| over all slopes [1, C, H, W] of all layers (SNL; its weight there starts at 1e-5)."""
    return torch.stack([alpha.abs().sum() for alpha in alphas]).sum()
