import subprocess
import sys
from contextlib import suppress
from itertools import product

import pytest

from engine.defaults import default_feature_resolution, has_early_mask
from engine.drag.mask_term import check_early
from engine.errors import InvalidEdit
from engine.networks.config import GeneratorConfig


def accepted(config, rows, block):
    with suppress(InvalidEdit):
        check_early(config, rows, block)
        return True
    return False


def test_the_rule_for_the_early_mask_is_what_the_engine_accepts():
    for architecture, resolution, rows, block in product(("skip", "orig", "resnet"), (32, 64, 128), (6, 7), (16, 32, 64)):
        config = GeneratorConfig(resolution=resolution, architecture=architecture)
        assert has_early_mask(architecture, resolution, rows, block) == accepted(config, rows, block)


@pytest.mark.parametrize(("resolution", "block"), [(32, 16), (128, 64), (256, 128), (1024, 128)])
def test_the_feature_block_is_128_or_half_of_a_smaller_image(resolution, block):
    assert default_feature_resolution(resolution) == block


def test_the_defaults_load_no_torch():
    code = "import sys, engine.defaults; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
