"""The patch discriminator's geometry and its losses against their definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latentgen.models import ADVERSARIAL_LOSSES, PatchDiscriminator


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_the_patch_of_the_paper(num_layers: int, patch: int) -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(base_channels=4, num_layers=num_layers, norm="none")
    picture = torch.randn(1, 3, 160, 160, requires_grad=True)
    logits = critic(picture)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], picture)
    rows = gradient.abs().sum(dim=(0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == patch


@pytest.mark.parametrize("norm", ["group", "spectral", "none"])
def test_a_picture_does_not_see_its_neighbours(norm: str) -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(base_channels=8, num_layers=2, norm=norm).eval()
    pictures = torch.randn(3, 3, 32, 32)
    together = critic(pictures)
    for i in range(3):
        torch.testing.assert_close(critic(pictures[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-6)


def test_spectral_norm_bounds_every_convolution() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(base_channels=8, num_layers=2, norm="spectral").train()
    for _ in range(50):  # power iterations
        critic(torch.randn(1, 3, 32, 32))
    for module in critic.modules():
        if isinstance(module, torch.nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
            torch.testing.assert_close(largest, torch.ones(()), rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", ["group", "batch", "spectral", "none"])
@pytest.mark.parametrize("loss", ADVERSARIAL_LOSSES)
def test_it_learns_to_tell(norm: str, loss: str, tmp_path) -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(base_channels=8, num_layers=2, norm=norm)
    optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    real, fake = (torch.rand(4, 3, 1, 1) + F.avg_pool2d(torch.randn(4, 3, 32, 32), k, 1, k // 2) for k in (1, 5))
    for _ in range(30):
        optimizer.zero_grad()
        value = ADVERSARIAL_LOSSES[loss].discriminator(critic(real), critic(fake))
        value.backward()
        optimizer.step()
    critic.eval()
    with torch.no_grad():
        assert critic(real).mean() > critic(fake).mean()
        generator_loss = ADVERSARIAL_LOSSES[loss].generator
        assert generator_loss(critic(real)) < generator_loss(critic(fake))
        critic.save_pretrained(tmp_path)
        torch.testing.assert_close(PatchDiscriminator.from_pretrained(tmp_path)(real), critic(real))


def test_losses_against_their_definitions() -> None:
    real, fake = torch.randn(2, 1, 5, 5), torch.randn(2, 1, 5, 5)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    cross_entropy = F.binary_cross_entropy_with_logits
    hinge, saturating = ADVERSARIAL_LOSSES["hinge"], ADVERSARIAL_LOSSES["non_saturating"]
    torch.testing.assert_close(
        saturating.discriminator(real, fake), (cross_entropy(real, ones) + cross_entropy(fake, zeros)) / 2
    )
    torch.testing.assert_close(saturating.generator(fake), cross_entropy(fake, ones))
    expected = sum(
        (1 - r).clamp(min=0) + (1 + f).clamp(min=0) for r, f in zip(real.view(-1), fake.view(-1), strict=True)
    )
    torch.testing.assert_close(hinge.discriminator(real, fake), expected / (2 * real.numel()))
    torch.testing.assert_close(hinge.generator(fake), -fake.mean())


def test_hinge_leaves_patches_beyond_the_margin_alone() -> None:
    real, fake = torch.tensor([0.5, 1.5], requires_grad=True), torch.tensor([-0.5, -1.5], requires_grad=True)
    ADVERSARIAL_LOSSES["hinge"].discriminator(real, fake).backward()
    assert real.grad[0] < 0 < fake.grad[0]
    assert real.grad[1] == fake.grad[1] == 0


@pytest.mark.parametrize(("name", "value"), [("norm", "layer"), ("num_layers", 0)])
def test_unsupported_keyword_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        PatchDiscriminator(**{name: value})
