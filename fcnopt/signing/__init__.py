"""Who made a bundle, and that what was checked is what is used: keys, signatures, files read once."""

from fcnopt.signing.keys import Passphrase, TrustedKeys, fingerprint, new_key, read_private_key, required_keys
from fcnopt.signing.members import hash_member, read_member
from fcnopt.signing.signature import MANIFEST, SIGNATURE, check, sign_bytes

__all__ = [
    "MANIFEST",
    "SIGNATURE",
    "Passphrase",
    "TrustedKeys",
    "check",
    "fingerprint",
    "hash_member",
    "new_key",
    "read_member",
    "read_private_key",
    "required_keys",
    "sign_bytes",
]
