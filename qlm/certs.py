"""A private CA and the certificates of a fleet, in one folder.

The CA is made once and kept; it signs a certificate for each part of a configuration, which says the part's role and name
(`protos.identity`), and one for the gateway's clients, which says the hosts at which they reach it. Every file can be
read by its owner alone. A certificate that is replaced is replaced whole, so whoever reads it meanwhile reads one of the two.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protos.identity import Part, parts_of
from qlm_core.config import Config
from qlm_core.config_doors import WILDCARDS
from qlm_core.config_rules import parse_address
from qlm_core.errors import QlmError

CA_DAYS = 3650
# So that a clock that is a little late takes it for valid.
EARLY = timedelta(minutes=5)
CA = "ca"
CLIENTS = "clients"
REVOKED = "revoked.txt"

_Signer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def hosts_of(config: Config, more: Sequence[str] = ()) -> list[str]:
    """The hosts at which clients reach the gateway, as far as the configuration tells."""
    section = config.gateway
    listeners = (("http_listen", section.http_listen), ("grpc_listen", section.grpc_listen))
    told = [parse_address(address, f"gateway.{key}")[0].strip("[]") for key, address in listeners]
    known = ["localhost", "127.0.0.1", "::1", *told, *more]
    return [host for host in dict.fromkeys(known) if host not in WILDCARDS]


class Folder:
    """The certificates in one folder.

    Args:
        now: from when new ones count.
        days: how long they do.
    """

    def __init__(self, path: Path, *, now: datetime, days: int) -> None:
        self.path = path
        self._now = now
        self._days = days

    def make(self, config: Config, hosts: Sequence[str]) -> list[str]:
        """Make what is not there yet; returns the names of what was made."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = []
        if not (self.path / f"{CA}.key").exists():
            self._make_ca()
            made.append(CA)
        revoked = self.path / REVOKED
        if not revoked.exists():
            _write(
                revoked, b"# SHA-256 fingerprints of certificates that count no more, one a line\n"
            )
        missing = [name for name in self._names(config) if not self._cert(name).exists()]
        return made + self.renew(config, hosts, missing)

    def renew(self, config: Config, hosts: Sequence[str], names: Sequence[str]) -> list[str]:
        """Make new certificates under these names, signed by the CA that is there. Raises QlmError.

        That of clients goes on saying the hosts that it says now, beside `hosts`.
        """
        ca = self._ca()
        known = self._names(config)
        for name in names:
            if name not in known:
                raise QlmError(f"{name}: no such certificate. Use some of {', '.join(known)}.")
            part = known[name]
            self._sign(ca, name, part, [] if part else [*hosts, *self._hosts_now(name)])
        return list(names)

    def revoke(self, name: str) -> str:
        """Note the present certificate of this name as one that counts no more; returns its fingerprint."""
        file = self._cert(name)
        if name in (CA, CLIENTS):
            raise QlmError(
                f"{name}: only parts look at {REVOKED}, and only for certificates of parts. Make a "
                "new CA in another folder (docs/security.md)."
            )
        if not file.exists():
            stems = sorted(path.stem for path in self.path.glob("*.crt"))
            known = ", ".join(stem for stem in stems if stem not in (CA, CLIENTS)) or "none"
            raise QlmError(f"{file}: there is no such certificate. In this folder are: {known}.")
        fingerprint = _read(file).fingerprint(hashes.SHA256()).hex()
        revoked = self.path / REVOKED
        before = revoked.read_bytes() if revoked.exists() else b""
        _write(revoked, before + f"{fingerprint}  # {name}, {self._now:%Y-%m-%d}\n".encode())
        return fingerprint

    @staticmethod
    def _names(config: Config) -> dict[str, Part | None]:
        """Every certificate by the name of its files, and the part it is of: clients see one of none."""
        parts: dict[str, Part | None] = {part.file: part for part in parts_of(config)}
        return parts | {CLIENTS: None}

    def _hosts_now(self, name: str) -> list[str]:
        file = self._cert(name)
        if not file.exists():
            return []
        said = _read(file).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = map(str, said.get_values_for_type(x509.IPAddress))
        return [*said.get_values_for_type(x509.DNSName), *addresses]

    def _cert(self, name: str) -> Path:
        return self.path / f"{name}.crt"

    def _ca(self) -> _Signer:
        try:
            key = serialization.load_pem_private_key((self.path / f"{CA}.key").read_bytes(), None)
            cert = x509.load_pem_x509_certificate(self._cert(CA).read_bytes())
        except (OSError, ValueError) as error:
            raise QlmError(
                f"{self.path}: no CA to sign with ({error}). `qlm certs new` makes one."
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise QlmError(f"{self.path / 'ca.key'}: not a key of an elliptic curve.")
        return cert, key

    def _make_ca(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("QLM private CA")
        usage = x509.KeyUsage(**_usage(key_cert_sign=True, crl_sign=True))
        cert = (
            self._builder(name, name, key, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        self._keep(CA, cert, key)

    def _sign(self, ca: _Signer, name: str, part: Part | None, hosts: Sequence[str]) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
        if part is None:
            named = [_host(host) for host in dict.fromkeys(hosts)]
        else:
            purposes.append(ExtendedKeyUsageOID.CLIENT_AUTH)
            named = [x509.DNSName(part.host), x509.UniformResourceIdentifier(part.uri)]
        signer = ca[1].public_key()
        cert = (
            self._builder(
                _name(f"QLM {part.role if part else CLIENTS}"), ca[0].subject, key, self._days
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**_usage(digital_signature=True)), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectAlternativeName(named), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False
            )
            .sign(ca[1], hashes.SHA256())
        )
        self._keep(name, cert, key)

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        public = key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - EARLY)
            .not_valid_after(self._now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    def _keep(self, name: str, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        secret = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        _write(self.path / f"{name}.key", secret)
        _write(self._cert(name), cert.public_bytes(serialization.Encoding.PEM))


def _read(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise QlmError(
            f"{file}: no certificate can be read there ({error}). Remove it; `qlm certs new` makes "
            "another."
        ) from None


def _write(path: Path, data: bytes) -> None:
    """Replace a file as a whole by one that only its owner reads."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(**used: bool) -> dict[str, bool]:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return {name: used.get(name, False) for name in names}
