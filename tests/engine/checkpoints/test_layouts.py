import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from engine.checkpoints.canonical import write_generator
from engine.checkpoints.layouts import read_generator_file
from engine.checkpoints.load import load_generator
from engine.errors import CheckpointDamaged, CheckpointUnsupported, EngineError
from tests.generators import DATA

FILES = {
    "nvidia": "sg2-64-nvidia.pkl",
    "tensorflow": "sg2-64-tf.pkl",
    "rosinality": "sg2-64-rosinality.pt",
    "mmagic": "sg2-64-mmagic.pth",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    for layout, name in FILES.items():
        write_generator(read_generator_file(DATA / name), folder / f"{layout}.safetensors")
    return folder


@pytest.mark.parametrize("noise_mode", ["const", "none"])
@pytest.mark.parametrize(
    ("layout", "psi"), [(name, psi) for name in FILES for psi in (1.0, 0.7) if (name, psi) != ("mmagic", 0.7)]
)
def test_every_layout_renders_nvidias_images(converted, layout, psi, noise_mode):
    """mmagic's file stores no mean of w, so that only psi 1 can be compared."""
    generator, reference = load_generator(converted / f"{layout}.safetensors"), np.load(DATA / "sg2-64.npz")
    ws = torch.cat([generator.map(seed=seed, truncation_psi=psi) for seed in (1, 2, 3)])
    with torch.no_grad():
        images = generator.images(ws, noise_mode=noise_mode)
    np.testing.assert_allclose(images, reference[f"image_psi{psi}_{noise_mode}"], atol=1e-4)


def test_the_same_generator_makes_the_same_file(converted):
    files = [(converted / f"{layout}.safetensors").read_bytes() for layout in ("nvidia", "tensorflow", "rosinality")]
    assert files[0] == files[1] == files[2]


def test_a_mean_of_w_that_is_not_stored_is_computed(converted):
    generator = load_generator(converted / "mmagic.safetensors")
    w = torch.cat([generator.map(seed=seed)[:, 0] for seed in range(2000)])
    assert (generator.mapping.w_avg - w.mean(dim=0)).abs().max() < 5 * (w.std(dim=0) / 2000**0.5).max()


def test_blue_first_becomes_red_first(tmp_path):
    found = read_generator_file(DATA / FILES["mmagic"])
    for bgr in (False, True):
        write_generator(found, tmp_path / f"{bgr}.safetensors", bgr=bgr)
    rgb, bgr = (load_generator(tmp_path / f"{order}.safetensors") for order in (False, True))
    torch.testing.assert_close(rgb.images(rgb.map(seed=1)), bgr.images(bgr.map(seed=1)).flip(1))


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "system": pickle.dumps(Hostile(os.system, "echo gotcha > gotcha")),
    "eval": pickle.dumps(Hostile(eval, "1")),
    "nested": pickle.dumps({"G_ema": [Hostile(os.system, "echo gotcha > gotcha")]}),
    "import": b"cthis_module_does_not_exist\nx\n(tR.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.",
    "extension": b"\x80\x02\x82\x01.",
    "instance": b"(ios\nsystem\n.",
    "build on text": b"\x80\x02X\x01\x00\x00\x00a}b.",
    "call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "no end": b"\x80\x02]",
    "empty stack": b"\x80\x020.",
    "unknown memo": b"\x80\x02h\x05.",
    "huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x3fx.",
    "huge number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "hash bomb": b"\x80\x02)" + b"2\x86" * 200 + b"}2\x4b\x01s.",
    "text": b"not a pickle at all",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(EngineError) as caught:
        read_generator_file(tmp_path / "file.pkl")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pkl"]


def test_a_global_that_no_checkpoint_needs_is_named(tmp_path):
    (tmp_path / "file.pkl").write_bytes(HOSTILE["system"])
    with pytest.raises(CheckpointDamaged, match=r"the pickle names (posix|nt)\.system, which no checkpoint needs: refused"):
        read_generator_file(tmp_path / "file.pkl")


@pytest.mark.parametrize("shape", [(10**9,), (2**31, 2**31), (-1,), (33,)])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, shape):
    torch.save({"g_ema": {"input.input": torch.zeros(32)}}, tmp_path / "small.pt")
    data = (tmp_path / "small.pt").read_bytes()
    stored, wanted = pickle.dumps((32,), 2)[2:-3], pickle.dumps(shape, 2)[2:-3]
    assert data.count(stored) == 1
    (tmp_path / "large.pt").write_bytes(rezipped(data, stored, wanted))
    with pytest.raises(EngineError):
        read_generator_file(tmp_path / "large.pt")


def rezipped(data: bytes, old: bytes, new: bytes) -> bytes:
    """The same archive with its pickle changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            target.writestr(member.filename, content.replace(old, new) if member.filename.endswith("data.pkl") else content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"state_dict": {}}, "no StyleGAN2 generator"),
        ({"g_ema": {"conv.weight": torch.zeros(3)}}, "no StyleGAN2 generator"),
        ([1, 2, 3], "no StyleGAN2 generator"),
    ],
)
def test_what_holds_no_generator_is_said(tmp_path, value, message):
    torch.save(value, tmp_path / "file.pt")
    with pytest.raises(CheckpointUnsupported, match=message):
        read_generator_file(tmp_path / "file.pt")


def test_a_generator_of_pictures_that_are_not_square_is_refused_by_name(tmp_path):
    checkpoint = torch.load(DATA / FILES["rosinality"], weights_only=True)
    const = checkpoint["g_ema"]["input.input"]
    checkpoint["g_ema"]["input.input"] = torch.cat([const, const], dim=2)  # 8 high, 4 wide, as StyleGAN-Human's
    torch.save(checkpoint, tmp_path / "file.pt")
    with pytest.raises(CheckpointUnsupported, match="not square"):
        write_generator(read_generator_file(tmp_path / "file.pt"), tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file.pt"]


def test_a_generator_that_lacks_a_tensor_is_damaged(tmp_path):
    checkpoint = torch.load(DATA / FILES["rosinality"], weights_only=True)
    del checkpoint["g_ema"]["convs.2.conv.weight"]
    torch.save(checkpoint, tmp_path / "file.pt")
    with pytest.raises(CheckpointDamaged, match=r"lacks synthesis\.b16\.conv0\.weight"):
        write_generator(read_generator_file(tmp_path / "file.pt"), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_numbers_that_are_not_finite_are_damage(tmp_path):
    checkpoint = torch.load(DATA / FILES["rosinality"], weights_only=True)
    checkpoint["g_ema"]["conv1.conv.weight"][0, 0, 0, 0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "file.pt")
    with pytest.raises(CheckpointDamaged, match="not finite"):
        write_generator(read_generator_file(tmp_path / "file.pt"), tmp_path / "out.safetensors")


def test_older_torch_files_are_read_too(tmp_path, converted):
    checkpoint = torch.load(DATA / FILES["rosinality"], weights_only=True)
    torch.save(checkpoint, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    write_generator(read_generator_file(tmp_path / "old.pt"), tmp_path / "old.safetensors")
    assert (tmp_path / "old.safetensors").read_bytes() == (converted / "rosinality.safetensors").read_bytes()


def test_psps_files_are_read_too(tmp_path, converted):
    checkpoint = torch.load(DATA / FILES["rosinality"], weights_only=True)
    state = {f"decoder.{key}": tensor for key, tensor in checkpoint["g_ema"].items()}
    torch.save({"state_dict": state, "latent_avg": checkpoint["latent_avg"].expand(10, -1)}, tmp_path / "psp.pt")
    write_generator(read_generator_file(tmp_path / "psp.pt"), tmp_path / "psp.safetensors")
    assert (tmp_path / "psp.safetensors").read_bytes() == (converted / "rosinality.safetensors").read_bytes()
