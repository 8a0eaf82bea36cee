"""Checks of this host: model files, certificate, device and disk."""

import importlib.util
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cli.doctor.findings import Finding, Findings, first_line, ok, problem, run_check, warning
from cli.models import sha256_of
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.settings import Settings

LITTLE_SPACE, TOO_LITTLE_SPACE = 2 * 10**9, 10**8  # bytes
LITTLE_VALIDITY = timedelta(days=30)  # of a certificate


def check_models(settings: Settings) -> Findings:
    """Yield a finding for each model of the manifest."""
    try:
        manifest = ModelManifest.load(settings.checkpoints)
    except Exception as error:  # whatever the error is, it is a finding
        yield problem(
            "checkpoints",
            f"{settings.checkpoints}: {first_line(error)}",
            "see that DRAGQUEUE_CHECKPOINTS is a folder with a manifest.toml",
        )
        return
    for name, reason in manifest.invalid.items():
        yield problem(f"model {name}", f"its entry is not valid: {reason}", "mend manifest.toml, or dragqueue models remove")
    if not manifest.models:
        yield warning("checkpoints", f"{settings.checkpoints} has no model", "run dragqueue models import or download")
    for entry in manifest.models.values():
        needed = entry.pool == settings.pool
        yield run_check(f"model {entry.name}", check_model, manifest, entry, needed, advice="see that its files can be read")
    if settings.lpips_file is not None and not settings.lpips_file.is_file():
        yield warning("lpips", f"there is no {settings.lpips_file}", "put it there or unset DRAGQUEUE_LPIPS_FILE")


def check_model(name: str, manifest: ModelManifest, entry: ModelEntry, needed: bool) -> Finding:
    """Report files that are missing or damaged.

    Args:
        needed: whether a worker of this host's pool serves the model; every job needs the generator's file, few the others.
    """
    files = manifest.files(entry)
    missing = [path for path in files if not path.is_file()]
    damaged = [path.name for path, sha256 in files.items() if path not in missing and sha256_of(path) != sha256]
    if damaged:
        return problem(
            name, f"the hash of {', '.join(damaged)} is not the manifest's", "copy the file again, or import the model again"
        )
    found = f"there is no {', '.join(map(str, missing))}"
    if manifest.path(entry) in missing and needed:
        return problem(name, found, "copy the file there, or take the model out by dragqueue models remove")
    if missing:
        return warning(name, found, f"copy it to the hosts of the workers of pool {entry.pool}; some of their jobs need it")
    return ok(name, f"{entry.resolution} px, {len(files)} files with the right hash")


def check_certificate(settings: Settings) -> Findings:
    """Yield whether a reconciler on this host can sign copies, if it is to."""
    from worker.reconciler.c2pa import C2paSettingsInvalid, C2paSigner

    name = "content credentials"
    try:
        signer = C2paSigner.from_settings(settings)
    except C2paSettingsInvalid as error:
        yield problem(name, str(error), "see docs/provenance.md; only the host of the reconciler needs these files")
        return
    if signer is None:
        return
    valid = f"{signer.subject}, valid until {signer.valid_until:%Y-%m-%d}"
    if signer.valid_until < datetime.now(UTC) + LITTLE_VALIDITY:
        yield warning(name, valid, "have it renewed, then start the reconciler again")
    else:
        yield ok(name, valid)


def check_device(settings: Settings) -> Findings:
    """Yield what a worker on this host would compute on."""
    if importlib.util.find_spec("torch") is None:
        yield ok("device", "PyTorch is not installed", "to run a worker here: pip install 'dragqueue[engine]'")
        return
    import torch

    yield check_chosen_device(settings.device, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def check_chosen_device(wanted: str, count: int) -> Finding:
    """Report a device that does not exist among `count` CUDA devices."""
    found = f"DRAGQUEUE_DEVICE is {wanted}; {count} CUDA devices"
    kind, _, number = wanted.partition(":")
    if wanted not in ("auto", "cpu", "cuda", f"cuda:{number}") or (number and not number.isdigit()):
        return problem("device", found, "set DRAGQUEUE_DEVICE to auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= count:
        return problem(
            "device", found, "see nvidia-smi, install a CUDA build of PyTorch, or set DRAGQUEUE_DEVICE to what there is"
        )
    return ok("device", found)


def check_disk(settings: Settings) -> Findings:
    """Yield how much space the temporary folder has, where workers keep a running job's animation."""
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile() as file:
        file.write(b"probe")
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LITTLE_SPACE:
        yield (problem if free < TOO_LITTLE_SPACE else warning)("disk", found, "make room, or set TMPDIR to a larger disk")
    else:
        yield ok("disk", found)
