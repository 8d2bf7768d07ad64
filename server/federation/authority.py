"""Who says that this is the federation's server? Its own certificate authority, and nobody else's.

The rules: the authority's key is made here on the first start, lies in the coordinator's key
directory, and signs certificates for this one server. Its fingerprint is the SHA-256 of its
certificate's DER, which ``openssl x509 -fingerprint -sha256`` prints, and which every invitation
carries; no public authority is ever asked. A server's certificate is short-lived, names hosts and
addresses that its operator gave, has a key of its own that is new each time, and is kept in one
file with that key, so that a renewal replaces both or neither.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.enrolment import certificate_fingerprint
from common.errors import InputError, TrustError
from common.invitation import is_host
from common.keys import KeyDirectory

AUTHORITY = "authority.pem"  # in the key directory: the authority's key and certificate
TLS = "tls.pem"  # in the key directory: the server's key, its certificate, the authority's
AUTHORITY_DAYS = 3652
SERVER_DAYS = 30
RENEW_DAYS = 15  # a certificate with less than this left is renewed
SKEW = timedelta(hours=1)  # clients' clocks may be this far behind
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class ServerCertificate:
    """The server's certificate, as it stands.

    Args:
        names: host names and IP addresses that it is valid for.
        begins, ends: when it is valid, UTC.
        serial: its serial number.
    """

    names: tuple[str, ...]
    begins: datetime
    ends: datetime
    serial: int


class Authority:
    """The federation's certificate authority: its certificate, and its key in a key directory."""

    def __init__(self, keys: KeyDirectory) -> None:
        """Read it.

        Raises:
            OperationError: ``key-missing``: there is none yet.
            TrustError: it is damaged, or others could have read it.
        """
        self._keys = keys
        self._key, self._certificate = _read_pair(keys.read(AUTHORITY), AUTHORITY)

    @classmethod
    def create(cls, keys: KeyDirectory, name: str, now: datetime | None = None) -> Authority:
        """Make it, once.

        Args:
            name: a common name, which people see; it proves nothing.
            now: the clock.
        """
        moment = now or datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP384R1())
        subject = _name(f"Privet {name[:40]}")
        builder = (
            _builder(subject, subject, key.public_key(), moment, AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
        )
        certificate = builder.sign(key, hashes.SHA384())
        keys.store(AUTHORITY, _key_bytes(key) + certificate.public_bytes(_PEM))
        return cls(keys)

    @property
    def certificate(self) -> str:
        """The authority's certificate, PEM."""
        return self._certificate.public_bytes(_PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate's DER, 64 hexadecimal digits."""
        return certificate_fingerprint(self.certificate)

    @property
    def ends(self) -> datetime:
        return self._certificate.not_valid_after_utc

    def issue(self, names: Sequence[str], now: datetime | None = None) -> ServerCertificate:
        """Make a new certificate with a new key for this server, and put both in place.

        Args:
            names: host names and IP addresses under which clients reach it, at least one.
            now: the clock.

        Raises:
            InputError: ``bad-address``: a name is none.
        """
        moment = now or datetime.now(UTC)
        for name in names:
            if not is_host(name):
                raise InputError(f"{name!r} is no host", code="bad-address")
        key = ec.generate_private_key(ec.SECP256R1())
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            _builder(
                _name("Privet server"),
                self._certificate.subject,
                key.public_key(),
                moment,
                SERVER_DAYS,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(list(map(_alternative, names))), False)
            .add_extension(authority_id, critical=False)
            .sign(self._key, hashes.SHA384())
        )
        chain = certificate.public_bytes(_PEM) + self._certificate.public_bytes(_PEM)
        self._keys.store(TLS, _key_bytes(key) + chain, again=True)
        return self.server_certificate()

    def server_certificate(self) -> ServerCertificate:
        """The server's certificate, checked against this authority.

        Raises:
            OperationError: ``key-missing``: none was issued yet.
            TrustError: it is damaged, or another authority's.
        """
        _, certificate = _read_pair(self._keys.read(TLS), TLS)
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise TrustError(
                f"{self._keys.path / TLS} is not a certificate of this federation's authority",
                hint="privet server rotate makes a new one",
                code="bad-certificate",
            ) from error
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return ServerCertificate(
            names=tuple(str(item.value) for item in alternative.value),
            begins=certificate.not_valid_before_utc,
            ends=certificate.not_valid_after_utc,
            serial=certificate.serial_number,
        )

    def renew(self, names: Sequence[str], now: datetime | None = None) -> bool:
        """Issue a certificate if there is none, or it ends soon or names others; whether it did."""
        moment = now or datetime.now(UTC)
        if self._keys.has(TLS):
            current = self.server_certificate()
            soon = current.ends - moment < timedelta(days=RENEW_DAYS)
            if not soon and current.begins <= moment and set(current.names) == set(names):
                return False
        self.issue(names, moment)
        return True


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    moment: datetime,
    days: int,
) -> x509.CertificateBuilder:
    start = moment.replace(microsecond=0) - SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + SKEW + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _read_pair(data: bytes, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A private key and the first certificate after it, which must be that key's."""
    try:
        key = serialization.load_pem_private_key(data, password=None)
        certificate = x509.load_pem_x509_certificates(data)[0]
    except (ValueError, TypeError, IndexError) as error:
        raise TrustError(
            f"{name} is damaged: {error}",
            hint="restore it from a backup of the key directory",
            code="bad-certificate",
        ) from error
    if (
        not isinstance(key, ec.EllipticCurvePrivateKey)
        or certificate.public_key() != key.public_key()
    ):
        raise TrustError(f"{name} holds a key and another's certificate", code="bad-certificate")
    return key, certificate
