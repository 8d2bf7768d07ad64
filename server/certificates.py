"""Which certificate does the public listener show, and who vouches for it?

The rules: a first start makes an authority of its own and a server certificate, keys readable by
their owner alone; what is there already is used, so an operator may bring their own. A TLS context
is made anew when a file changes: the connections that are there go on, the next one sees the new
certificate. A pair that does not fit leaves the old one in use.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import durable
from common.errors import InputError, TrustError

AUTHORITY_DAYS, SERVER_DAYS = 3650, 397
_BACK = dt.timedelta(hours=1)  # for clients whose clocks are a little behind


class Certificates:
    """The files of one listener.

    Args:
        public: directory of ``ca.pem`` and ``server.pem``.
        keys: key directory (0700) of ``ca.key`` and ``server.key``.
    """

    def __init__(self, public: Path, keys: Path) -> None:
        self.authority, self.server = public / "ca.pem", public / "server.pem"
        self.authority_key, self.server_key = keys / "ca.key", keys / "server.key"

    def ensure(self, names: Sequence[str]) -> bool:
        """Make what is missing, for these host names and addresses; whether something was made.

        Raises:
            TrustError: a certificate is there without its key, and no authority to make another.
        """
        if self.server.exists() and self.server_key.exists():
            return False
        if self.authority.exists() and not self.authority_key.exists():
            raise TrustError(
                f"{self.authority} is there, and its key is not: no certificate can be made",
                hint=f"bring {self.server} and {self.server_key}, issued by that authority",
                code="no-authority-key",
            )
        if not self.authority.exists():
            self._make_authority()
        self._make_server(names)
        return True

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 and nothing older, with the pair as it is on disk now.

        Raises:
            TrustError: certificate and key cannot be read, or do not fit.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.server, self.server_key)
        except (OSError, ssl.SSLError) as error:
            raise TrustError(
                f"{self.server} and {self.server_key} cannot be used: {error}",
                hint="both are PEM, and the key is the certificate's",
                code="bad-certificate",
            ) from error
        return context

    def version(self) -> tuple[int, ...]:
        """What changes when a file is replaced."""
        stats = [file.stat() for file in (self.server, self.server_key)]
        return tuple(n for s in stats for n in (s.st_ino, s.st_mtime_ns, s.st_size))

    def _make_authority(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Privet federation authority")])
        certificate = (
            _begin(name, name, key.public_key(), AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        durable.replace(self.authority_key, _pem(key), mode=0o600)
        durable.replace(self.authority, certificate.public_bytes(serialization.Encoding.PEM))

    def _make_server(self, names: Sequence[str]) -> None:
        issuer = x509.load_pem_x509_certificate(self.authority.read_bytes())
        signer = serialization.load_pem_private_key(self.authority_key.read_bytes(), None)
        if not isinstance(signer, ec.EllipticCurvePrivateKey):
            raise TrustError(f"{self.authority_key} is no EC key", code="bad-certificate")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Privet server")])
        alternatives = x509.SubjectAlternativeName([_name(name) for name in names])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        certificate = (
            _begin(subject, issuer.subject, key.public_key(), SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
            .add_extension(alternatives, critical=False)
            .add_extension(authority, critical=False)
            .sign(signer, hashes.SHA256())
        )
        durable.replace(self.server_key, _pem(key), mode=0o600)
        durable.replace(self.server, certificate.public_bytes(serialization.Encoding.PEM))


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise InputError(f"{name!r} is neither a host name nor an address") from error


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
