"""The reference drag again, as plainly as the paper says it: image-size feature maps, loops, per-sample weights.

Slow, and written from the reference only; the engine must agree with it in float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.drag.options import DragOptions
from engine.networks.stylegan2 import Generator, SynthesisLayer


def plain_layer(layer: SynthesisLayer, x: Tensor, w: Tensor) -> Tensor:
    style = w @ (layer.affine.weight / math.sqrt(w.shape[1])).t() + layer.affine.bias  # [1, Cin]
    weight = layer.weight * style[:, :, None, None]  # [Cout, Cin, 3, 3] for this one sample
    weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
    if layer.up:
        spread = x.new_zeros(1, x.shape[1], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        spread[:, :, ::2, ::2] = x
        x = F.conv2d(F.pad(spread, (2, 2, 2, 2)), weight.flip(2, 3))  # the transposed convolution, written out
        line = x.new_tensor([1, 3, 3, 1]) / 8
        kernel = torch.outer(line, line) * 4
        x = F.conv2d(F.pad(x, (1, 1, 1, 1))[0][:, None], kernel[None, None])[:, 0][None]
    else:
        x = F.conv2d(x, weight, padding=1)
    x = x + layer.noise_const * layer.noise_strength + layer.bias[None, :, None, None]
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def plain_features(generator: Generator, w: Tensor, until: int) -> Tensor:
    x = generator.synthesis.b4.const[None]
    row = 0
    for resolution in generator.config.block_resolutions:
        if resolution > until:
            break
        block = generator.synthesis.block(resolution)
        for layer in ([] if resolution == 4 else [block.conv0]) + [block.conv1]:
            x = plain_layer(layer, x, w[:, row])
            row += 1
    return x


def plain_watched(generator: Generator, w: Tensor, block: int, context: int) -> list[Tensor]:
    """The features of the block and of coarser ones, each at its own size."""
    coarse = [0.5 * plain_features(generator, w, block // 2**k) for k in range(1, context + 1)]
    return [plain_features(generator, w, block), *coarse]


def image_size(maps: list[Tensor], size: int) -> Tensor:
    return torch.cat([F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False) for x in maps], dim=1)


def at_point(image_features: Tensor, x: float, y: float) -> Tensor:
    """Bilinear read of an image-size map: [C]."""
    left, top = math.floor(x), math.floor(y)
    a, b = x - left, y - top
    return (
        (1 - a) * (1 - b) * image_features[0, :, top, left]
        + a * (1 - b) * image_features[0, :, top, left + 1]
        + (1 - a) * b * image_features[0, :, top + 1, left]
        + a * b * image_features[0, :, top + 1, left + 1]
    )


def plain_track(image_features: Tensor, reference: Tensor, handle: list[float], radius: int, subpixel: bool) -> list[float]:
    size = image_features.shape[-1]
    center_x, center_y = round(handle[0]), round(handle[1])

    def cost(x: int, y: int) -> float:
        return (image_features[0, :, y, x] - reference).square().sum().item()

    window = [
        (x, y) for y in range(center_y - radius, center_y + radius + 1) for x in range(center_x - radius, center_x + radius + 1)
    ]
    x, y = min(((x, y) for x, y in window if 0 <= x < size and 0 <= y < size), key=lambda point: cost(*point))
    if not subpixel:
        return [float(x), float(y)]
    shift_x = vertex(cost(x - 1, y), cost(x, y), cost(x + 1, y))
    shift_y = vertex(cost(x, y - 1), cost(x, y), cost(x, y + 1))
    return [x + shift_x, y + shift_y]


def vertex(before: float, here: float, after: float) -> float:
    curvature = before - 2 * here + after
    return 0.0 if curvature <= 0 else max(-0.5, min(0.5, 0.5 * (before - after) / curvature))


def plain_drag(
    generator: Generator, w: Tensor, handles: list[list[float]], targets: list[list[float]], fixed: Tensor | None,
    options: DragOptions, iterations: int,
) -> tuple[Tensor, list[list[float]]]:  # fmt: skip
    """w+ and handles after some optimizer steps; points must stay away from the border."""
    size = generator.config.resolution
    block = options.feature_resolution or min(128, size // 2)
    scale = size / 512
    radius = max(1, round(options.tracking_radius * scale))
    variable = w[:, : options.trainable_layers].clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=options.learning_rate)
    context = options.context_blocks if fixed is None else 0
    start = [x.detach() for x in plain_watched(generator, w, block, context)]
    span = int(options.motion_radius)
    disc = [(i, j) for i in range(-span, span + 1) for j in range(-span, span + 1) if math.hypot(i, j) < options.motion_radius]
    origins, reference = handles, None
    for iteration in range(iterations + 1):
        latent = torch.cat([variable, w[:, options.trainable_layers :]], dim=1)
        features = plain_watched(generator, latent, block, context)
        image_features = image_size(features, size)
        if reference is None:
            start_image = image_features.detach()
            reference = [at_point(start_image, x, y) for x, y in handles]
        if iteration > 0:
            found = image_features.detach()
            handles = [plain_track(found, r, h, radius, options.subpixel) for r, h in zip(reference, handles, strict=True)]
        if iteration == iterations:
            break
        loss = image_features.new_zeros([])
        far = [math.hypot(to_x - x, to_y - y) for (x, y), (to_x, to_y) in zip(handles, targets, strict=True)]
        for (x, y), (from_x, from_y), (to_x, to_y), distance in zip(handles, origins, targets, far, strict=True):
            if options.overstep and distance <= options.stop_distance:
                continue
            length = 1.0 if options.overstep else min(1.0, distance)
            ux, uy = length * (to_x - x) / distance, length * (to_y - y) / distance
            for i, j in disc:
                now, near = (image_features.detach(), x, y), distance <= options.anchor_distance * scale
                wanted, wanted_x, wanted_y = (start_image, from_x, from_y) if near else now
                here = at_point(wanted, wanted_x + i * scale, wanted_y + j * scale)
                there = at_point(image_features, x + i * scale + ux, y + j * scale + uy)
                loss = loss + (here - there).abs().mean() / len(disc)
        if fixed is not None:
            weight = F.avg_pool2d(fixed[None, None], size // block)
            change = (features[0] - start[0]).abs()
            penalty = F.relu(change - 1e-3) if options.mask_metric == "l1" else change**2 / 0.08
            loss = loss + options.mask_weight * (penalty * weight).mean()
        if options.latent_weight:
            loss = loss + options.latent_weight * (variable - w[:, : options.trainable_layers]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.cat([variable, w[:, options.trainable_layers :]], dim=1).detach(), handles
