"""How does a file lie on the disk so that this device alone can open it, as what it was?

The rule: AES-256-GCM under a key that is used once, derived (HKDF-SHA-256, RFC 5869) from a secret
of the device, a salt of the file's own, and what the file is. So what opens was sealed by this
device, as this, and was not changed: it need not be hashed again. There is no public key, since
nobody else seals anything for a device. A file is read into memory that this process alone has, and
opened there; nothing of it is handed out before its last byte was authenticated.

    salt (32 bytes)   what was sealed, encrypted   tag (16 bytes)
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common import durable
from common.errors import TrustError

SALT, TAG = 32, 16
LONGER = SALT + TAG  # bytes that sealing adds
_NONCE = bytes(12)  # each key is used once
_LARGE = 2**20  # from here on memory comes in large pages, where the system has them
_PAGE = 2**21


def seal(data: bytes, secret: bytes, purpose: bytes) -> bytes:
    """Encrypt; 48 bytes longer.

    Args:
        secret: of the device, 32 bytes.
        purpose: all that has to be the same when it is opened.
    """
    salt = os.urandom(SALT)
    return salt + AESGCM(_key(secret, salt, purpose)).encrypt(_NONCE, data, None)


def memory(size: int, shift: int = 0) -> memoryview:
    """So many zeros, which begin ``shift`` bytes after a multiple of 16.

    A large page is one fault where small ones are 512, and those cost more than decrypting does.
    """
    whole = size + shift
    if whole < _LARGE:
        return memoryview(bytearray(whole))[shift:]
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, -(-whole // _PAGE) * _PAGE, flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)[shift:whole]


def open_file(
    file: Path, secret: bytes, purpose: bytes, *, most: int, shift: int = 0
) -> memoryview:
    """What :func:`seal` was given, read only, from a file that holds what it gave.

    Args:
        most: bytes that it may have.
        shift: of its first byte from a multiple of 16 in memory, in [0, 16): so that what lies
            inside of it can begin at one.

    Raises:
        OSError: the file cannot be read.
        TrustError: ``not-ours``: it was sealed by another device, as something else, or changed.
    """
    with open(file, "rb", buffering=0, opener=durable.without_waiting) as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _not_ours()
        size = status.st_size - LONGER
        salt = stream.read(SALT)
        if not 0 <= size <= most or len(salt) != SALT:
            raise _not_ours()
        held = memory(size, shift)
        done = 0
        while done < size:
            got = stream.readinto(held[done:])
            if not got:
                raise _not_ours()
            done += got
        opener = Cipher(AES(_key(secret, salt, purpose)), GCM(_NONCE)).decryptor()
        opener.update_into(held, held)
        try:
            opener.finalize_with_tag(stream.read(TAG))
        except (InvalidTag, ValueError) as error:
            raise _not_ours() from error
    return held.toreadonly()


def _key(secret: bytes, salt: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt, purpose).derive(secret)


def _not_ours() -> TrustError:
    return TrustError(
        "it does not open with this device's key: it was changed, or sealed as another release or "
        "by another device",
        code="not-ours",
    )
