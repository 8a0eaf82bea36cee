import math

import numpy as np
import pytest
from PIL import Image

from jobs.errors import InvalidJob
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Box, FivePoints, Landmarks, Shape

FACE = {"left_eye": (40, 50), "right_eye": (60, 50), "nose": (50, 60), "mouth_left": (43, 72), "mouth_right": (57, 72)}


def landmarks(**changed):
    return Landmarks(landmarks=FivePoints(**(FACE | changed)))


def smooth_photo(width=200, height=160):
    """Red grows to the right, green downwards, so that colors tell places."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=2).astype(np.uint8))


def test_the_models_own_image_is_left_as_it_is():
    transform = CropTransform.whole(64)
    points = np.array([[0.0, 0.0], [63.0, 20.5]])
    np.testing.assert_allclose(transform.to_model(points), points)
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 255, (64, 64, 3), dtype=np.uint8))
    assert (np.asarray(transform.cut(picture)) == np.asarray(picture)).all()


def test_a_photo_without_a_crop_is_cut_at_its_center():
    transform = CropTransform.of_photo(None, 200, 160, 80)
    np.testing.assert_allclose(transform.to_model(np.array([[20 - 0.5, -0.5], [99.5, 79.5]])), [[-0.5, -0.5], [39.5, 39.5]])


def test_pixels_and_points_go_the_same_way():
    transform = CropTransform.of_photo(Box(box=(30, 20, 110, 100)), 200, 160, 40)
    cut = np.asarray(transform.cut(smooth_photo())).astype(float)
    x, y = transform.to_model(np.array([70.0, 60.0]))
    column, row = round(x), round(y)
    back = np.array([70.0, 60.0]) + (np.array([column, row]) - [x, y]) * transform.scale
    np.testing.assert_allclose(cut[row, column, :2], back, atol=0.6)


def test_a_level_face_is_cut_upright_with_its_eyes_level():
    transform = CropTransform.of_photo(landmarks(), 200, 160, 64)
    left, right = transform.to_model(np.array([FACE["left_eye"], FACE["right_eye"]], dtype=float))
    assert left[1] == pytest.approx(right[1])
    assert transform.scale * 64 == pytest.approx(2 * 2.0 * 20, rel=0.01)  # twice the larger of 2 x 20 and 1.8 x 22


def test_a_tilted_face_is_turned_upright():
    turn, middle = math.radians(20), np.array([50.0, 60.0])
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    tilted = {name: tuple(rotation @ (np.array(point) - middle) + middle) for name, point in FACE.items()}
    transform = CropTransform.of_photo(landmarks(**tilted), 200, 160, 64)
    left, right = transform.to_model(np.array([tilted["left_eye"], tilted["right_eye"]]))
    assert left[1] == pytest.approx(right[1], abs=1e-6)
    assert left[0] < right[0]


@pytest.mark.parametrize(
    ("crop", "reason"),
    [
        (Box(box=(-1, 0, 50, 51)), "within the photo of 200 x 160 pixels"),
        (Box(box=(0, 0, 100, 161)), "within the photo"),
        (Box(box=(0, 0, 50, 60)), "must be a square, is 50 x 60 pixels"),
        (Box(box=(50, 0, 0, 50)), "must be a square"),
        (Box(box=(0, 0, 8, 8)), "at least 16 pixels wide, is 8"),
        (landmarks(left_eye=(-1, 50)), r"landmarks.left_eye: \(-1, 50\) is outside the photo"),
        (landmarks(left_eye=(5, 20), right_eye=(195, 20), mouth_left=(40, 150), mouth_right=(160, 150)), "may be 1.5 times"),
        (landmarks(left_eye=(60, 50), right_eye=(40, 50)), "do not make a quadrilateral"),
        (landmarks(mouth_left=(50, 50)), "do not make a quadrilateral"),
    ],
)
def test_a_crop_that_cannot_be_cut_is_refused(crop, reason):
    with pytest.raises(InvalidJob, match=reason):
        CropTransform.of_photo(crop, 200, 160, 64)


def test_putting_the_crop_back_changes_nothing_outside_it():
    photo = Image.fromarray(np.random.RandomState(1).randint(0, 255, (160, 200, 3), dtype=np.uint8))
    transform = CropTransform.of_photo(Box(box=(30, 20, 110, 100)), 200, 160, 40)
    edited = np.zeros((40, 40, 3), dtype=np.uint8)
    back = np.asarray(transform.put_back(photo, edited))
    outside = np.ones((160, 200), dtype=bool)
    outside[20:100, 30:110] = False
    assert (back[outside] == np.asarray(photo)[outside]).all()
    assert back[40:80, 50:90].max() == 0


def test_what_was_cut_and_put_back_is_nearly_the_photo():
    photo = smooth_photo()
    transform = CropTransform.of_photo(landmarks(left_eye=(80, 62), right_eye=(101, 60), nose=(91, 72), mouth_left=(85, 84),
                                         mouth_right=(100, 82)), 200, 160, 64)  # fmt: skip
    back = np.asarray(transform.put_back(photo, np.asarray(transform.cut(photo)))).astype(int)
    assert abs(back - np.asarray(photo)).max() <= 3


def test_shapes_are_placed_where_the_model_sees_them():
    transform = CropTransform.of_photo(Box(box=(30, 20, 110, 100)), 200, 160, 40)
    circle = transform.to_model_shape(Shape(circle=(69.5, 59.5, 20))).circle
    assert circle == pytest.approx((19.5, 19.5, 10))
    assert transform.to_model_shape(Shape(box=(29.5, 19.5, 109.5, 99.5))).box == pytest.approx((-0.5, -0.5, 39.5, 39.5))


def test_beyond_the_photo_its_edge_repeats():
    photo = Image.new("RGB", (100, 100), (10, 20, 30))
    corner = landmarks(left_eye=(8, 10), right_eye=(22, 10), nose=(15, 16), mouth_left=(10, 22), mouth_right=(20, 22))
    assert (np.asarray(CropTransform.of_photo(corner, 100, 100, 32).cut(photo)) == (10, 20, 30)).all()


def test_a_crop_smaller_than_the_models_image_is_put_back_smoothly():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    transform = CropTransform.of_photo(Box(box=(20, 20, 36, 36)), 60, 60, 64)
    back = np.asarray(transform.put_back(Image.new("RGB", (60, 60)), stripes))
    assert abs(back[24:32, 24:32].astype(int) - 127).max() < 20


def test_a_mask_of_the_photo_is_cut_like_it():
    transform = CropTransform.of_photo(Box(box=(30, 20, 110, 100)), 200, 160, 40)
    movable = np.zeros((160, 200), dtype=bool)
    movable[20:60, 30:70] = True
    seen = transform.cut_mask(movable)
    assert seen[:20, :20].all()
    assert not seen[20:].any()
    assert not seen[:, 20:].any()
