"""Certificates as text that carries the sha256 of its content, and what is said of those that do not hold."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from ..artifact import atomic


class CertificateError(ValueError):
    """A certificate that is refused; the message says why."""


@dataclass(frozen=True)
class Sealed:
    """A certificate as a JSON text that carries the sha256 of its content."""

    def as_json(self) -> str:
        """The certificate with the sha256 of its content, JSON."""
        content = asdict(self)
        return json.dumps(content | {"sha256": _seal(content)}, indent=1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file, as a whole or not at all."""
        atomic.write(path, [np.frombuffer(self.as_json().encode() + b"\n", np.uint8)])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a certificate.

        Raises:
            CertificateError: it is not one, or was altered.
        """
        try:
            content = json.loads(text)
            seal = content.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CertificateError(f"this is not a certificate: {error}") from None
        if seal != _seal(content):
            raise CertificateError(
                "the certificate was altered: its content does not have the sha256 it states"
            )
        if set(content) != {field.name for field in fields(cls)} or content["version"] != 1:
            raise CertificateError(f"this is no {cls.__name__} of version 1: its fields are others")
        found = cls(**content | {"box": tuple(content["box"])})
        if text.strip() != found.as_json():
            raise CertificateError("the certificate was altered: it is not written the way certificates are")
        return found


def same(what: str, stated: object, found: object, hint: str = "") -> None:
    """Refuse what is not as stated."""
    if stated != found:
        if "sha256" in what:
            stated, found = str(stated)[:12], str(found)[:12]
        shown = f"stated {stated}, found {found}"
        raise CertificateError(f"{what} differ from the certificate{': ' + hint if hint else ''} ({shown})")


def close(what: str, stated: float | None, found: float | None) -> None:
    """Refuse a number that is not as stated, to nine digits."""
    if stated is None or found is None:
        same = stated is found
    else:
        same = math.isclose(stated, found, rel_tol=1e-9)
    if not same:
        raise CertificateError(f"{what} differs from the certificate: stated {stated}, found {found}")


def _seal(content: Mapping[str, Any]) -> str:
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()
