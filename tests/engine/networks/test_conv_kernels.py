import pytest
import torch
import torch.nn.functional as F

from engine.networks.config import GeneratorConfig
from engine.networks.conv_kernels import MIN_PACKED_NUMEL, PackedConvKernel, PlainConvKernel, can_pack, convolve
from engine.networks.frozen_synthesis import trunk_of
from engine.networks.stylegan2 import Generator, SynthesisLayer, channels_last

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


def kernel(cout, cin):
    torch.manual_seed(0)
    return torch.randn(cout, cin, 3, 3).contiguous(memory_format=torch.channels_last)


def both_ways(convolve, x):
    """The output, and the gradient of the sum of its squares."""
    x = x.clone().requires_grad_()
    y = convolve(x)
    y.square().sum().backward()
    return y.detach(), x.grad


@pytest.mark.parametrize("size", [4, 9, 16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_packed_convolution_is_the_usual_one(batch, size, padding):
    weight, x = kernel(48, 32), torch.randn(batch, 32, size, size)
    packed = PackedConvKernel(weight, up=False)
    found = both_ways(lambda x: convolve(x, packed, padding), x)
    expected = both_ways(lambda x: F.conv2d(x, weight, padding=padding), x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [4, 9])
def test_a_packed_layer_that_goes_up_is_the_usual_transposed_convolution(size):
    weight, x = kernel(48, 32), torch.randn(2, 32, size, size)
    packed = PackedConvKernel(weight, up=True)
    found = both_ways(lambda x: convolve(x, packed, 0), x)
    expected = both_ways(lambda x: F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("up", "padding"), [(False, 0), (False, 1), (True, 0)])
def test_a_plain_convolution_of_frozen_weights_has_the_same_bytes_and_keeps_no_input(up, padding):
    weight, x = kernel(48, 32), torch.randn(2, 32, 9, 9)
    kept = []

    def usual(x):
        return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2) if up else F.conv2d(x, weight, padding=padding)

    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        convolve(x.clone().requires_grad_(), PlainConvKernel.of_layer(weight, up), padding)
    found, expected = both_ways(lambda x: convolve(x, PlainConvKernel.of_layer(weight, up), padding), x), both_ways(usual, x)
    assert not kept
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_it_is_laid_out_anew_for_maps_of_another_size():
    weight = kernel(192, 192)  # whose layout depends on the size
    packed = PackedConvKernel(weight, up=False)
    for size in (4, 16, 4):
        x = torch.randn(1, 192, size, size)
        torch.testing.assert_close(convolve(x, packed, 1), F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-3)


def test_only_large_float32_weights_on_a_cpu_are_packed():
    large = torch.zeros(512, MIN_PACKED_NUMEL // 512 // 9 + 1, 3, 3)
    assert can_pack(large)
    assert not can_pack(large[:256])
    assert not can_pack(large.double())
    assert not can_pack(large.to("meta"))


def test_drags_through_windows_pack_and_the_generator_itself_does_not():
    generator = channels_last(Generator(GeneratorConfig(resolution=32)).requires_grad_(False))

    def packed(synthesis):
        layers = [layer for layer in synthesis.modules() if isinstance(layer, SynthesisLayer)]
        return [isinstance(layer.conv_kernel, PackedConvKernel) for layer in layers]

    windowed, whole = (
        trunk_of(generator, 8, rgb=False, precision="float32", windowed=windowed).synthesis for windowed in (True, False)
    )
    assert packed(windowed) == [True, True, True, False, False, False, False]  # nothing beyond the 8 block
    assert not any(packed(whole) + packed(generator.synthesis))
    assert isinstance(whole.block(8).conv0.conv_kernel, PlainConvKernel)
    assert generator.synthesis.block(8).conv0.conv_kernel is None
    assert windowed.block(8).conv0.weight is generator.synthesis.block(8).conv0.weight
