"""Opening a bundle's engine, and signing a bundle: both only when all of it is what its manifest says."""

from __future__ import annotations

from pathlib import Path

from fcnopt.backends import open_engine
from fcnopt.backends.base import Mode
from fcnopt.backends.provenance import Provenance, checked
from fcnopt.bundle.folder import Bundle, read_bundle
from fcnopt.bundle.staging import write_text
from fcnopt.engine import Engine
from fcnopt.selftest import SELFTEST, run_selftest
from fcnopt.signing import SIGNATURE, Passphrase, TrustedKeys, fingerprint, read_private_key, sign_bytes


def load(path: str | Path, *, mode: Mode = "latency", selftest: bool = True, trusted_keys: TrustedKeys = ()) -> Engine:
    """Open a bundle: check its signature and hashes, load its engine, run its known-answer test.

    Args:
        path: The folder engines/NAME.
        mode: "latency" computes one batch at a time, as fast as can be; "throughput" several in a `stream`, for most
            frames a second.
        selftest: Run the known-answer test. Leave it on unless the caller runs it.
        trusted_keys: Public keys of which one must have signed the bundle: PEM files, folders of them, or 32 bytes.
            The runtime then loads a private copy of the very bytes that were verified (`Bundle.verified_copy`).
            Empty: those that the environment variable FCNOPT_TRUSTED_KEYS names. Where neither names any, a bundle
            may be unsigned, hashes guard against damage only, and the runtime opens the files where they lie.

    Raises:
        BundleError: The bundle is damaged, not signed by a trusted key where one is required, or its engine answers
            wrongly.
        BackendError: The runtime or the device is missing, or is another one than the engine was built for.
        UsageError: A trusted key cannot be used.
    """
    bundle = Bundle.read_trusted(path, trusted_keys)
    if bundle.trusted:
        with bundle.verified_copy() as folder:
            return _opened(bundle, folder, mode, selftest)
    bundle.verify()
    return _opened(bundle, bundle.path, mode, selftest)


def _opened(bundle: Bundle, folder: Path, mode: Mode, selftest: bool) -> Engine:
    """The engine of a bundle, its verified files in `folder`."""
    manifest = bundle.manifest
    files = tuple(folder / name for name in manifest.engine)
    built = Provenance(
        manifest.name, bundle.target, manifest.precision, manifest.runtime, manifest.device, manifest.machine
    )
    with checked(built):
        engine = Engine(open_engine(files, bundle.target, manifest.precision, manifest.spec, mode), manifest)
        try:
            if selftest:
                run_selftest(engine, folder / SELFTEST, manifest.min_agreement)
        except BaseException:
            engine.close()
            raise
    return engine


def sign(path: str | Path, key: str | Path, *, passphrase: Passphrase | None = None) -> str:
    """Sign a bundle, once every file in it is what its manifest says; an earlier signature is replaced.

    Args:
        path: The folder engines/NAME.
        key: PEM file of the private key; `fcnopt.new_key` makes one.
        passphrase: Of an encrypted key, or what is asked for it.

    Returns:
        The key's fingerprint, as errors name it.

    Raises:
        BundleError: The bundle is damaged, or was changed after it was signed.
        UsageError: The key cannot be used.
        FcnoptError: The signature cannot be written.
    """
    private = read_private_key(key, passphrase)
    bundle, manifest = read_bundle(Path(path), {})
    bundle.verify()
    write_text(bundle.path / SIGNATURE, sign_bytes(manifest, private))
    return fingerprint(private.public_key().public_bytes_raw())
