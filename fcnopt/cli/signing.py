"""The command that signs bundles, and the option of those that load them."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fcnopt.cli.console import BUNDLE, PATH, Command, InputPath
from fcnopt.errors import UsageError

_KEY = InputPath("give a private key's PEM file; `fcnopt sign --new-key PATH` makes one", file=True)
_PUBLIC_KEY = InputPath("give a public key's PEM file, or a folder of them")

trusted_key_option = click.option(
    "--trusted-key",
    "trusted_keys",
    type=_PUBLIC_KEY,
    multiple=True,
    help="Public key (PEM), or a folder of them, that must have signed it; repeatable [env: FCNOPT_TRUSTED_KEYS]",
)
"""`--trusted-key`, for each command that loads bundles; its parameter is `trusted_keys`."""


@click.command(cls=Command)
@click.argument("bundle", type=BUNDLE, required=False)
@click.option("--key", type=_KEY, help="Private key: an Ed25519 PEM file.")
@click.option(
    "--new-key", type=PATH, help="Make a private key here, and PATH.pub; sign BUNDLE with it if one is given."
)
@click.option(
    "--passphrase-env",
    metavar="NAME",
    help="Environment variable with the key's passphrase [default: a prompt for an encrypted key; none for a new one]",
)
def sign(bundle: Path | None, key: Path | None, new_key: Path | None, passphrase_env: str | None) -> None:
    """Sign BUNDLE, all files of which are verified first.

    Where keys are required (--trusted-key, FCNOPT_TRUSTED_KEYS, trusted_keys in Python), only bundles that one of them
    signed, and of which no byte was changed since, are loaded. Keep the private key away from the machines that load.
    """
    if (key is None) == (new_key is None):
        what = "neither --key nor --new-key was given" if key is None else "--key and --new-key were both given"
        raise UsageError(what, fix="sign with a key (--key PATH), or make one (--new-key PATH)")
    if bundle is None and key is not None:
        raise UsageError("no bundle was given to sign", fix=f"run fcnopt sign engines/NAME --key {key}")
    from fcnopt.bundle import sign as run
    from fcnopt.signing import new_key as make

    if new_key is not None:
        public = make(new_key, passphrase=_from_environment(passphrase_env) if passphrase_env else None)
        click.echo(f"wrote {new_key} (private: keep it secret) and {public} (for those who load bundles)")
    used = key or new_key
    if bundle is not None and used is not None:
        fingerprint = run(bundle, used, passphrase=lambda: _passphrase(used, passphrase_env))
        click.echo(f"signed {bundle} with key {fingerprint}")


def _passphrase(key: Path, variable: str | None) -> str:
    """The passphrase of an encrypted key."""
    if variable is not None:
        return _from_environment(variable)
    try:
        answer: str = click.prompt(f"Passphrase of {key}", hide_input=True, err=True)
    except click.Abort as error:
        raise UsageError(
            f"{key}: is encrypted, and no passphrase was given", fix="type it, or name a variable with --passphrase-env"
        ) from error
    return answer


def _from_environment(variable: str) -> str:
    if variable not in os.environ:
        raise UsageError(f"--passphrase-env {variable}: there is no such variable", fix=f"set {variable}")
    return os.environ[variable]
