"""Whether the model sees any of an uploaded mask through a crop.

The outline that is kept with the mask decides nearly always. Where it cannot, a child cuts the mask as the worker would:
`python -m jobs.spec.mask_cut TRANSFORM` reads the mask on standard input and answers like `jobs.storage.decoder`.
"""

import json
import math
import os
import resource
import sys
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
from PIL import Image

from jobs.spec.crop_transform import CropTransform
from jobs.storage.decoder import CPU_S, REFUSED, limit_process
from jobs.storage.decoding import WAIT_S, run_child
from jobs.storage.mask_outline import MaskOutline
from jobs.storage.picture_files import Refused
from jobs.storage.pictures import read_mask

MODULE = "jobs.spec.mask_cut"
BICUBIC_REACH = 2  # pixels of the mask beside a sample that it may depend on
MARGIN = 2  # pixels, for rounding


def outline_verdict(outline: MaskOutline, transform: CropTransform) -> bool | None:
    """Return whether the model sees any of the mask; None where only its pixels can tell.

    A pixel of the model's image is set for certain where everything around it is that it is made of; it is clear for certain
    where nothing is.
    """
    if outline.is_empty():
        return False
    if transform == CropTransform.whole(transform.resolution):
        return True
    if not outline.touches(*transform.bounds()):
        return False
    reach = math.sqrt(2) * transform.scale + BICUBIC_REACH + MARGIN  # from a point to what its nearest pixel is made of
    at = transform.to_model(outline.full_squares(2 * reach))
    return True if ((at >= 0) & (at <= transform.resolution - 1)).all(axis=-1).any() else None


def sees_any(parts: Iterable[bytes], transform: CropTransform, tenant: str, wait_s: float = WAIT_S) -> bool:
    """Cut a stored mask in a child, and return whether anything is set. Raises InvalidJob, DecoderBusy, Canceled."""
    answer = run_child([MODULE, json.dumps(asdict(transform))], parts, "movable", tenant, wait_s)
    answer.out.close()
    return bool(answer.description["any"])


def main() -> None:
    """Cut the mask on standard input."""
    limit_process()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    Image.MAX_IMAGE_PIXELS = None
    given = json.loads(sys.argv[1])
    transform = CropTransform(**given | {"center": tuple(given["center"]), "half": tuple(given["half"])})
    try:
        with os.fdopen(0, "rb", closefd=False) as file:
            mask = read_mask(file)
    except Refused as error:
        sys.stderr.write(str(error))
        sys.exit(REFUSED)
    sys.stderr.write(json.dumps({"any": bool(np.any(transform.cut_mask(mask)))}))


if __name__ == "__main__":
    main()
