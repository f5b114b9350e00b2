"""The autoencoder's task: its loss terms, its two players, its normalised latents, its start."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from latentgen.models import AutoencoderKL, PatchDiscriminator
from training.perceptual import SqueezeNetFeatures, perceptual_distance
from training.tasks.autoencoder import (
    AutoencoderLossConfig,
    AutoencoderModelConfig,
    Discrimination,
    Reconstruction,
    make_autoencoder,
    normalise_latents,
)


@pytest.fixture
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return make_autoencoder(
        AutoencoderModelConfig(block_out_channels=(8, 16), latent_channels=3, norm_num_groups=4), 32
    )


@pytest.fixture
def batch() -> dict:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    return {"image": image, "noise": torch.randn(2, 3, 16, 16, generator=generator), "adversarial": True}


def gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def test_each_player_moves_itself_alone(vae, batch):
    judge = PatchDiscriminator(base_channels=8, num_layers=1)
    reconstruction = Reconstruction(vae, AutoencoderLossConfig(adversarial=1.0), judge)
    discrimination = Discrimination(judge)
    loss, scalars, left = reconstruction(batch)
    loss.backward()
    assert "adversarial" in scalars
    assert len(gradients(vae)) == len(list(vae.parameters()))
    assert not gradients(judge)
    vae.zero_grad()
    discrimination(batch | left)[0].backward()
    assert not gradients(vae)
    assert len(gradients(judge)) == len(list(judge.parameters()))


def test_adversarial_gradient_raises_the_judges_logits(vae, batch):
    """One small step along the adversarial gradient alone must please the judge more."""
    judge = PatchDiscriminator(base_channels=8, num_layers=1)
    config = AutoencoderLossConfig(l1=1e-30, kl=0, adversarial=1.0)
    player = Reconstruction(vae, config, judge)

    def verdict() -> float:
        with torch.no_grad():
            return judge(player(batch)[2]["reconstruction"]).mean().item()

    before = verdict()
    player(batch)[0].backward()
    with torch.no_grad():
        for p in vae.parameters():
            p -= 1e-3 * p.grad
    assert verdict() > before


@pytest.mark.parametrize("term", ["l1", "l2", "edges", "kl", "perceptual"])
def test_every_term_reaches_what_it_should(term, vae, batch, squeezenet):
    weights = dict.fromkeys(("l1", "l2", "edges", "kl", "perceptual"), 0.0) | {"l1": 1e-30, term: 1.0}
    player = Reconstruction(vae, AutoencoderLossConfig(**weights, perceptual_features=str(squeezenet)), None)
    player(batch | {"adversarial": False})[0].backward()
    encoder = sum(g.abs().sum() for g in gradients(vae.encoder))
    assert encoder > 1e-12
    decoder = sum((g.abs().sum() for g in gradients(vae.decoder)), torch.tensor(0.0))
    assert (decoder > 1e-12) == (term != "kl")


def test_terms_equal_their_definitions(vae, batch):
    config = AutoencoderLossConfig(l1=0.7, l2=0.3, edges=0.2, kl=0.1)
    loss, *_ = Reconstruction(vae, config, None)(batch | {"adversarial": False})
    posterior = vae.encode(batch["image"]).latent_dist
    error = vae.decode(posterior.mean + posterior.std * batch["noise"]).sample - batch["image"]
    rows, columns = error[:, :, 1:] - error[:, :, :-1], error[..., 1:] - error[..., :-1]
    normal = torch.distributions.Normal(0, 1)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(posterior.mean, posterior.std), normal)
    expected = 0.7 * error.abs().mean() + 0.3 * (error**2).mean() + 0.2 * (rows.abs().mean() + columns.abs().mean())
    expected = expected + 0.1 * kl.sum() / batch["image"].numel()
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_normalised_latents_have_unit_moments_and_the_same_pictures(vae):
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    before = vae(images).sample
    deviation = vae.encode(images).latent_dist.std / vae.encode(images).latent_dist.mean.std((0, 2, 3), keepdim=True)
    normalise_latents(vae, images)
    posterior = vae.encode(images).latent_dist
    torch.testing.assert_close(posterior.mean.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.mean.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.std, deviation, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(vae(images).sample, before, atol=1e-4, rtol=1e-4)
    assert vae.config.scaling_factor == 1.0


@torch.no_grad()
def test_what_the_configuration_said_of_the_latents_is_replaced():
    """An autoencoder to go on from may shift and scale; one without quant_conv can say it in the configuration only."""
    images = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    for quant, channelwise in ((True, True), (False, False)):
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=3,
            norm_num_groups=4,
            shift_factor=0.5,
            scaling_factor=0.3,
            latents_mean=[1.0, 2.0, 3.0],
            latents_std=[2.0, 2.0, 2.0],
            use_quant_conv=quant,
            use_post_quant_conv=quant,
        )
        before = vae(images).sample
        normalise_latents(vae, images)
        z = vae.scale_latents(vae.encode(images).latent_dist.mean)
        dims = (0, 2, 3) if channelwise else (0, 1, 2, 3)
        torch.testing.assert_close(z.mean(dims), torch.zeros_like(z.mean(dims)), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std(dims), torch.ones_like(z.std(dims)), atol=1e-3, rtol=0)
        torch.testing.assert_close(vae(images).sample, before, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(vae.unscale_latents(z), vae.encode(images).latent_dist.mean, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_colour_passes_the_autoencoder_from_the_start():
    """Pictures that differ in hue alone leave the untrained network different, more so than by torch's start."""
    reds, blues = (torch.full((1, 3, 32, 32), -1.0) for _ in range(2))
    reds[:, 0], blues[:, 2] = 1.0, 1.0

    def separation(vae: AutoencoderKL) -> float:
        a, b = vae.encode(reds).latent_dist, vae.encode(blues).latent_dist
        return ((a.mean - b.mean).norm() / (a.std.norm() + b.std.norm())).item()

    config = AutoencoderModelConfig(block_out_channels=(16, 32, 64, 128), latent_channels=8)
    ours, plain = [], []
    for seed in range(3):
        torch.manual_seed(seed)
        vae = make_autoencoder(config, 32)
        ours.append(separation(vae))
        keywords = {k: v for k, v in vae.config.items() if not k.startswith("_")}
        plain.append(separation(AutoencoderKL(**keywords)))
    assert min(ours) > 10 * max(plain)


@pytest.fixture(scope="module")
def squeezenet(tmp_path_factory):
    from torchvision.models import squeezenet1_0

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("squeezenet")
    state = {k: v.half() for k, v in squeezenet1_0(weights=None).state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


def test_perceptual_distance_is_a_distance(squeezenet):
    distance = perceptual_distance(str(squeezenet))
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert distance(a, a).item() == 0
    assert distance(a, b).item() == pytest.approx(distance(b, a).item(), rel=1e-5)
    assert 0 < distance(a, a + 0.1 * b) < distance(a, b)
    assert not any(p.requires_grad for p in distance.parameters())


def test_missing_perceptual_features_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"squeezenet1_0"):
        SqueezeNetFeatures(tmp_path)


def test_lpips_needs_its_weights_and_says_so(tmp_path, monkeypatch):
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody is there
    with pytest.raises(FileNotFoundError, match="weights of lpips-squeeze are not here and cannot be fetched"):
        perceptual_distance("lpips-squeeze")
    torch.manual_seed(0)
    kept = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"  # where torchvision keeps what it fetched
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(squeezenet1_1(weights=None).state_dict(), kept)
    distance = perceptual_distance("lpips-squeeze")
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert distance(a, a).item() == 0
    assert 0 < distance(a, a + 0.1 * b) < distance(a, b)
