import av
import numpy as np
import pytest
from PIL import Image

from engine.media.animation import write_animation


def moving_bar(count: int = 12) -> list[np.ndarray]:
    frames = np.zeros((count, 64, 64, 3), dtype=np.uint8)
    for k, frame in enumerate(frames):
        frame[:, 4 * k : 4 * k + 8] = (250, 120, 30)
    return list(frames)


def test_mp4_keeps_every_frame(tmp_path):
    frames = moving_bar()
    write_animation(frames, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == len(frames)
    assert np.abs(decoded[5].astype(int) - frames[5]).mean() < 12


def test_mp4_begins_with_its_index(tmp_path):
    write_animation(moving_bar(), tmp_path / "a.mp4")
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_webp_and_gif_keep_every_frame(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_animation(iter(moving_bar()), path, frames_per_s=20)
    with Image.open(path) as image:
        assert image.n_frames == 12
        image.load()
        assert image.info["duration"] == 50


def test_no_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_animation([], tmp_path / "a.mp4")


def test_another_suffix_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="mp4, webp or gif"):
        write_animation(moving_bar(), tmp_path / "a.avi")
