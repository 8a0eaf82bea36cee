"""Decoding in the test's own process, as the child does it."""

import hashlib
import io
import tempfile

from jobs.storage import decoder
from jobs.storage.decoding import Decoded


def read(data, command="picture"):
    out = io.BytesIO()
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        description = vars(decoder.COMMANDS[command](file, out, decoder.no_budget))
    outline = description["outline"]
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    return Decoded(**description | {"outline": outline and bytes.fromhex(outline)}, sha256=digest, body=out)
