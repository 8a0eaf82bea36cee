import numpy as np

from engine.media.overlay import HANDLE, TARGET, draw_overlay


def test_marks_lie_where_the_points_are():
    pixels = np.full((128, 128, 3), 100, dtype=np.uint8)
    overlay = draw_overlay(pixels, [[(20, 40)], [(30, 40)]], [(60, 40)])
    assert overlay.shape == (512, 512, 3)
    assert tuple(overlay[40 * 4 + 4, 20 * 4]) == HANDLE
    assert tuple(overlay[40 * 4 + 4, 60 * 4 + 1]) == TARGET


def test_what_must_stay_is_darkened():
    pixels = np.full((64, 64, 3), 100, dtype=np.uint8)
    movable = np.zeros((64, 64), dtype=bool)
    movable[:, :32] = True
    overlay = draw_overlay(pixels, [[(10, 10)]], [(20, 10)], movable)
    assert overlay[400, 100].tolist() == [100, 100, 100]
    assert overlay[400, 400].tolist() == [60, 60, 60]
