"""Signatures of versions after OpenSSF's model signing: who vouches for these files, whatever the registry says.

`model.sig` is a Sigstore bundle over an in-toto statement with the SHA-256 of every file of a version; it stands beside
the files it signs, and isn't one of them. `gemma-ops pull` brings it along, so that the project's own command verifies
a copy too: `model_signing verify key FOLDER --signature FOLDER/model.sig --public_key KEY`.

Digests are signed, not files read again: the registry compares every byte with its digest anyway. That is why the
hashing configuration given to the library is ours.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from gemma_ops.errors import ConfigError, GateError, MachineError
from gemma_ops.registry.points import INTEGRITY
from gemma_ops.runs import digest

SIGNATURE = "model.sig"
"""Name of the signature's file in a version."""
PASSPHRASE = "GEMMA_OPS_SIGNING_PASSPHRASE"  # noqa: S105
"""Environment variable that holds the passphrase of the signing key, or the PIN of its token."""
_UNSIGNED = (SIGNATURE, "README.md")
"""Files of a pulled copy that no signature covers: the signature itself, and what `pull` writes."""


def sign_files(files: Mapping[str, str], name: str, key: str, signature: Path) -> None:
    """Write the signature of `files` ({path: SHA-256}) of the version `name`. `key` is a PEM file with an
    elliptic-curve private key, or a `pkcs11:` URI.

    Raises ConfigError for a key that can't be used, MachineError where the package is not installed.
    """
    config = _library("signing").Config()
    scheme, secret = re.match(r"([a-z0-9+.-]+):", key), os.environ.get(PASSPHRASE)
    try:
        if key.startswith("pkcs11:"):
            config.use_pkcs11_signer(pkcs11_uri=_with_pin(key, secret))
        elif scheme:
            raise ValueError(f"{scheme[1]} is no kind of key that model signing knows")
        else:
            config.use_elliptic_key_signer(
                private_key=Path(key).expanduser(), password=secret.encode() if secret else None
            )
        config.set_hashing_config(_Hashed(name, files))
        config.sign(name, signature)
    except Exception as error:  # tokens raise kinds of their own
        raise ConfigError(
            f"machine.signing_key {key!r} can't sign: {(str(error) or type(error).__name__).splitlines()[0]}",
            "give the PEM file of an elliptic-curve private key (openssl ecparam -name prime256v1 -genkey -noout -out "
            f"KEY), with its passphrase in {PASSPHRASE}, or a pkcs11: URI with the package model-signing[pkcs11]",
        ) from error


def _with_pin(uri: str, pin: str | None) -> str:
    """Return a token's URI with its PIN (RFC 7512, section 2.4), which no configuration holds."""
    return f"{uri}{'&' if '?' in uri else '?'}pin-value={quote(pin, safe='')}" if pin else uri


def check_signature(files: Mapping[str, str], name: str, signature: Path | None, keys: Sequence[str]) -> str:
    """Say which of the trusted `keys` signed exactly these files. `signature` is None where there is none.

    Raises GateError for a signature that is missing, of another key, or of other files; ConfigError for a key that
    can't be read; MachineError where the package is not installed.
    """
    if signature is None or not signature.is_file():
        raise _refused(name, "it is not signed")
    config = _library("verifying").Config
    why = []
    for key in keys:
        path = Path(key).expanduser()
        try:
            verifier = config().use_elliptic_key_verifier(public_key=path)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(
                f"machine.trusted_keys: {path} is no public key: {str(error).splitlines()[0]}",
                "give the PEM file of an elliptic-curve public key (openssl ec -in KEY -pubout -out KEY.pub)",
            ) from error
        try:
            verifier.set_hashing_config(_Hashed(name, files)).verify(Path(name), signature)
        except Exception as error:  # the library raises many kinds for what it can't read or verify
            why.append(_why(error, files, signature))
            continue
        return f"{path.name} ({digest.of_file(path)[:12]})"
    # What differs tells more than that another key did not fit.
    raise _refused(name, next((one for one in why if one.startswith("it ")), why[0]))


class _Hashed:
    """Stand-in for the library's hashing configuration: the digests are known already."""

    def __init__(self, name: str, files: Mapping[str, str]) -> None:
        self._name, self._files = name, files

    def hash(self, _path: Any, *, files_to_hash: Any = None) -> Any:
        """Return the library's manifest of these digests."""
        manifest = _library("manifest")
        kind = manifest.SerializationType.from_args(
            {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(_UNSIGNED)}
        )
        items = [
            manifest.FileManifestItem(
                path=PurePosixPath(path), digest=manifest.hashing.Digest("sha256", bytes.fromhex(sha256))
            )
            for path, sha256 in sorted(self._files.items())
        ]
        return manifest.Manifest(self._name, items, kind)

    def add_ignored_paths(self, *, model_path: Any, paths: Any) -> None:
        """Ignore paths to leave out: none of them is among these files."""


def _why(error: Exception, files: Mapping[str, str], signature: Path) -> str:
    """Return why a signature doesn't hold, in words: of another key, or of other files, which are named."""
    if not str(error).startswith("Signature mismatch"):
        return "none of the trusted keys made it"
    payload = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]["payload"]
    covers = {one["name"]: one["digest"] for one in json.loads(base64.b64decode(payload))["predicate"]["resources"]}
    changed = [name for name in sorted(files) if name in covers and covers[name] != files[name]]
    told = [f"it was made of other bytes of {', '.join(changed)}"] if changed else []
    extra, gone = sorted(set(files) - set(covers)), sorted(set(covers) - set(files))
    told += [f"it doesn't cover {', '.join(extra)}"] if extra else []
    return "; ".join(told + ([f"it covers {', '.join(gone)}, which isn't there"] if gone else []))


def _refused(name: str, why: str) -> GateError:
    return GateError(
        f"{INTEGRITY}: the signature of {name} does not hold: {why}",
        "register it where the signing key is (machine.signing_key, --redo register), or name the key that "
        "signed it in machine.trusted_keys",
    )


def _library(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise MachineError(
            f"signatures need the package model-signing: {error}", "install it: pip install 'gemma-ops[sign]'"
        ) from error
