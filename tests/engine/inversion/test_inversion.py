import pytest
import torch
from safetensors.torch import load, save

from engine.errors import InvalidEdit, InversionDiverged
from engine.inversion.inversion import (
    Inversion,
    InversionOptions,
    InversionState,
    changed_tensors,
    learning_rate_factor,
    noise_regularization,
    normalize_noise,
    replace_tensors,
)
from engine.inversion.losses import DiscriminatorLoss, Lpips, load_lpips, pixel_loss
from engine.networks.config import DiscriminatorConfig
from engine.networks.discriminator import Discriminator
from engine.networks.latent_statistics import latent_statistics
from tests.generators import reference_generator, tiny_generator

SHORT = InversionOptions(steps=60, tuning_steps=40, learning_rate=0.05)


@pytest.fixture(scope="module")
def generator():
    return reference_generator()


@pytest.fixture(scope="module")
def target(generator):
    return generator.images(generator.map(seed=5, truncation_psi=0.7)).clamp(-1, 1)


@pytest.fixture(scope="module")
def inverted(generator, target):
    inversion = Inversion(generator, target, SHORT)
    return inversion, list(inversion.run())


def test_projection_and_tuning_come_nearer_to_the_picture(inverted):
    _, steps = inverted
    projection = [step for step in steps if step.phase == "projection"]
    tuning = [step for step in steps if step.phase == "tuning"]
    assert [step.iteration for step in projection] == list(range(60))
    assert projection[-1].psnr_db > projection[0].psnr_db + 3
    assert tuning[-1].psnr_db > projection[-1].psnr_db + 1
    assert {tuple(step.w.shape) for step in steps} == {(1, 10, 64)}


def test_the_model_itself_is_left_alone(generator, inverted):
    inversion, _ = inverted
    assert inversion.original is generator
    assert not any(parameter.requires_grad for parameter in inversion.generator.parameters())
    fresh = reference_generator().state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in generator.state_dict().items())


def test_the_changed_tensors_make_the_tuned_generator_again(generator, inverted):
    inversion, _ = inverted
    changes = changed_tensors(generator, inversion.generator)
    assert changes
    assert not any(name.startswith("mapping") for name in changes)
    again = replace_tensors(generator, changes)
    assert torch.equal(again.images(inversion.w), inversion.generator.images(inversion.w))


def test_tensors_of_another_model_are_refused(generator):
    with pytest.raises(InvalidEdit, match="does not fit this model"):
        replace_tensors(generator, {"synthesis.b4.const": torch.zeros(3)})
    with pytest.raises(InvalidEdit, match=r"mapping\.w_avg"):  # the copies share the mapping network
        replace_tensors(generator, {"mapping.w_avg": torch.zeros_like(generator.mapping.w_avg)})


def test_a_tuned_generator_knows_how_the_models_w_is_distributed(generator, inverted):
    tuned = inverted[0].generator
    assert tuned is not generator
    assert latent_statistics(tuned) is latent_statistics(generator)


def test_all_rows_stay_equal_in_w_and_differ_in_w_plus(generator, target):
    def rows_differ(space):
        inversion = Inversion(generator, target, InversionOptions(space=space, steps=5))
        for _ in inversion.project():
            pass
        return not torch.equal(inversion.w, inversion.w[:, :1].expand_as(inversion.w))

    assert (rows_differ("w"), rows_differ("w+")) == (False, True)


def test_an_inversion_can_be_left_between_steps(generator, target):
    inversion = Inversion(generator, target, SHORT)
    for step in inversion.run():
        if step.phase == "tuning" and step.iteration == 2:
            break
    assert not torch.equal(inversion.w, generator.broadcast(generator.mapping.w_avg[None]))
    assert inversion.generator is not generator


def test_a_projection_starts_at_the_encoders_estimate(generator, target):
    guess = torch.full((1, 64), 0.5)
    first = next(Inversion(generator, target, SHORT, start=guess).run())
    torch.testing.assert_close(first.w, guess[:, None].expand(-1, 10, -1))


def test_two_runs_end_with_the_same_image(generator, target):
    def final():
        inversion = Inversion(generator, target, InversionOptions(steps=4, tuning_steps=4))
        for _ in inversion.run():
            pass
        return inversion.generator.images(inversion.w)

    assert torch.equal(final(), final())


def test_optimized_noise_belongs_to_the_tuned_generator(target):
    generator = tiny_generator(64)
    options = InversionOptions(steps=3, tuning_steps=0, optimize_noise=True)
    inversion = Inversion(generator, target, options)
    for _ in inversion.run():
        pass
    assert all(name.endswith("noise_const") for name in changed_tensors(generator, inversion.generator))
    noise = inversion.generator.synthesis.b64.conv1.noise_const
    assert noise.mean().abs() < 1e-5
    assert noise.square().mean() == pytest.approx(1, abs=1e-4)


def test_a_loss_that_is_not_finite_ends_the_inversion_and_keeps_the_latent(generator, target):
    inversion = Inversion(generator, target, InversionOptions(steps=2, tuning_steps=5, tuning_learning_rate=1e30))
    with pytest.raises(InversionDiverged, match="the loss became"):
        for _ in inversion.run():
            pass
    assert inversion.w.isfinite().all()


def test_a_gradient_that_is_not_finite_never_ends_in_a_result(generator, target):
    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, image):
            return image.sum() * 0

        @staticmethod
        def backward(ctx, gradient):
            return torch.full((1, 3, 64, 64), torch.nan)

    for options in (
        InversionOptions(steps=1, tuning_steps=0),
        InversionOptions(steps=3),
        InversionOptions(steps=0, tuning_steps=1),
    ):
        inversion = Inversion(generator, target, options, perceptual=lambda image, wanted: Spoiled.apply(image))
        with pytest.raises(InversionDiverged):
            list(inversion.run())
        assert inversion.w.isfinite().all()


def test_a_perceptual_loss_is_computed_at_every_step_and_after_each_phase(generator, target):
    seen = []

    def perceptual(images, wanted):
        seen.append(images.shape)
        return pixel_loss(images, wanted)

    inversion = Inversion(generator, target, InversionOptions(steps=2, tuning_steps=2, locality_weight=0), perceptual=perceptual)
    assert [step.phase for step in inversion.run()] == ["projection"] * 2 + ["tuning"] * 2
    assert seen == [(1, 3, 64, 64)] * 6  # once more after each phase


def test_a_discriminators_features_tell_pictures_apart(target):
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(resolution=64, channel_base=512, channel_max=8)).requires_grad_(False)
    loss = DiscriminatorLoss(discriminator)
    other = (target + 0.1).requires_grad_()
    assert loss(target, target) == 0
    near, far = loss(other, target), loss(target.flip(3), target)
    assert 0 < near < far
    near.backward()
    assert other.grad.abs().max() > 0


def test_the_learning_rate_rises_and_falls():
    assert learning_rate_factor(0) < 0.05
    assert learning_rate_factor(0.4) == 1
    assert learning_rate_factor(0.999) < 0.01


def test_noise_that_repeats_is_told_from_noise_that_does_not():
    white = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    smooth = (white + white.roll(1, 0) + white.roll(1, 1) + white.roll((1, 1), (0, 1))) / 2
    assert noise_regularization(smooth) > 10 * noise_regularization(white)
    normalize_noise(smooth)
    assert smooth.std() == pytest.approx(1, abs=1e-3)


def test_an_lpips_file_is_the_packages_state_dict(tmp_path):
    network = Lpips()
    names = {0: 1, 3: 2, 4: 2, 6: 3, 7: 3, 9: 4, 10: 5, 11: 6, 12: 7}  # layer -> slice of the package
    tensors = {f"lin{k}.model.1.weight": torch.rand(1, head.shape[1], 1, 1) for k, head in enumerate(network.heads)}
    for name, tensor in network.features.state_dict().items():
        tensors[f"net.slice{names[int(name.split('.')[0])]}.{name}"] = torch.randn_like(tensor) * 0.1
    torch.save(tensors, tmp_path / "lpips.pth")
    loaded = load_lpips(tmp_path / "lpips.pth")
    one, other = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert loaded(one, one) == 0
    assert loaded(one, other) > 0
    tensors.pop("net.slice4.9.squeeze.weight")
    torch.save(tensors, tmp_path / "lpips.pth")
    with pytest.raises(Exception, match=r"lpips\.pth cannot be read: .*lacks features\.9\.squeeze\.weight"):
        load_lpips(tmp_path / "lpips.pth")


@pytest.mark.parametrize(("phase", "left_at"), [("projection", 3), ("tuning", 0), ("tuning", 5)])
@pytest.mark.parametrize("optimize_noise", [False, True])
def test_an_inversion_resumed_from_a_state_ends_with_the_same_bytes(generator, target, phase, left_at, optimize_noise):
    options = InversionOptions(steps=8, tuning_steps=8, optimize_noise=optimize_noise, noise_weight=1.0)
    whole = Inversion(generator, target, options)
    steps = list(whole.run())
    left = Inversion(generator, target, options)
    next(step for step in left.run() if (step.phase, step.iteration) == (phase, left_at))
    again = Inversion(generator, target, options)
    again.restore(InversionState.read(load(save(left.state().tensors()))))
    rest = list(again.run())
    assert [(step.phase, step.iteration, step.loss) for step in rest] == [
        (step.phase, step.iteration, step.loss) for step in steps[-len(rest) :]
    ]
    assert (rest[0].phase, rest[0].iteration) == (phase, left_at)
    assert torch.equal(again.generator.images(again.w), whole.generator.images(whole.w))
