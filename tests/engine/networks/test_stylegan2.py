import numpy as np
import pytest
import torch

from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import Generator, modulate, to_pixels, upsample
from tests.generators import DATA, random_generator, reference_generator, some_w, tiny_generator


@pytest.fixture(scope="module")
def reference():
    return np.load(DATA / "sg2-64.npz")


@pytest.mark.parametrize("psi", [1.0, 0.7])
def test_seeds_map_to_nvidias_w(reference, psi):
    generator = reference_generator()
    ws = torch.cat([generator.map(seed=seed, truncation_psi=psi) for seed in (1, 2, 3)])
    np.testing.assert_allclose(ws, reference[f"ws_psi{psi}"], atol=1e-5)


@pytest.mark.parametrize("psi", [1.0, 0.7])
@pytest.mark.parametrize("noise_mode", ["const", "none"])
def test_images_are_nvidias(reference, psi, noise_mode):
    with torch.no_grad():
        images = reference_generator().images(torch.from_numpy(reference[f"ws_psi{psi}"]), noise_mode=noise_mode)
    np.testing.assert_allclose(images, reference[f"image_psi{psi}_{noise_mode}"], atol=1e-4)


def test_a_clamp_bounds_the_activations():
    config = GeneratorConfig(
        resolution=32, z_dim=16, w_dim=16, mapping_layers=2, channel_base=512, channel_max=16, conv_clamp=0.5
    )
    torch.manual_seed(0)
    generator = Generator(config).requires_grad_(False)
    features = generator.synthesis.features(modulate(generator.synthesis.layers(), some_w(generator)), 16)
    assert features.abs().max() == 0.5


@pytest.mark.parametrize("resolution", [32, 64, 128, 256, 512, 1024])
def test_every_resolution_renders(resolution):
    generator = tiny_generator(resolution)
    assert generator.config.num_ws == 2 * resolution.bit_length() - 4
    assert generator.render(some_w(generator)).shape == (resolution, resolution, 3)


SMALL = {"resolution": 32, "z_dim": 16, "w_dim": 24, "mapping_layers": 2, "channel_base": 512, "channel_max": 16}


def test_classes_change_the_picture():
    generator = random_generator(GeneratorConfig(**SMALL, c_dim=3))
    pictures = [generator.render(generator.map(seed=1, class_index=label)) for label in range(3)]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()


@pytest.mark.parametrize(("c_dim", "label"), [(3, None), (3, 3), (3, -1), (0, 0)])
def test_a_class_that_does_not_fit_is_refused(c_dim, label):
    with pytest.raises(ValueError, match="class"):
        random_generator(GeneratorConfig(**SMALL, c_dim=c_dim)).map(seed=1, class_index=label)


def test_only_the_last_block_of_orig_and_resnet_makes_the_image():
    for architecture in ("orig", "resnet"):
        generator = random_generator(GeneratorConfig(**SMALL, architecture=architecture))
        assert [name for name in generator.state_dict() if "torgb.weight" in name] == ["synthesis.b32.torgb.weight"]
        assert generator.render(some_w(generator)).std() > 0


def test_a_residual_block_is_half_its_branch_and_half_its_layers():
    """Both by variance; the branch is the input doubled by the filter and mixed by a 1x1 convolution."""
    generator = random_generator(GeneratorConfig(**SMALL, architecture="resnet"))
    block, x = generator.synthesis.b8, torch.randn(1, 16, 4, 4)
    layers = [layer for layer in generator.synthesis.layers(until=8) if layer.name.startswith("b8")]
    conv0, conv1 = modulate(layers, some_w(generator)).values()
    branch = torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0] / 4, upsample(x, block.resample_filter))
    expected = 0.5**0.5 * (branch + block.conv1(block.conv0(x, conv0), conv1))
    torch.testing.assert_close(block(x, conv0, conv1, "const"), expected)


def test_parameter_count_of_ffhq_is_nvidias():
    generator = Generator(GeneratorConfig(resolution=1024))
    assert sum(parameter.numel() for parameter in generator.parameters()) == 30_370_060


@pytest.mark.parametrize("wrong", [{"resolution": 48}, {"resolution": 2048}, {"resolution": 64, "w_dim": 0}])
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        GeneratorConfig(**wrong)


def test_pixels_are_rounded_down_and_clipped():
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert to_pixels(images)[0, :, :, 0].tolist() == [[0, 0], [128, 255]]
