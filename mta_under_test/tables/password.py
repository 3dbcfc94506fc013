"""Passwords: only their hashes are kept, in the formats of crypt(5), and libcrypt compares them.

ctypes, since Python's crypt module is gone from 3.13 on (PEP 594), and libcrypt is what every login uses. Each call has
its own memory (crypt_rn(3)), so that threads do not meet.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hmac

DEFAULT_PREFIX = b"$6$"  # SHA-512: what every libcrypt can do
_DATA_BYTES = 32768  # struct crypt_data
_OUTPUT_BYTES = 384  # CRYPT_OUTPUT_SIZE
# Compared with where there is no such user, so that both cases take as long.
NOBODY = "$6$seatbelt$XR1w3xs0eTZ/8JWZNEk4Rrtfl3V6JP8jGLpbT6Zg2FLQ0q0K8V1u2kqTXh5rXQmbUtnoA/Z7Ob6G0ZJ2jdkuU/"


class PasswordError(Exception):
    """No hash can be made or compared here; says why."""


@functools.cache
def _libcrypt() -> ctypes.CDLL:
    for name in ("libcrypt.so.1", "libcrypt.so.2", ctypes.util.find_library("crypt")):
        if name is None:
            continue
        try:
            library = ctypes.CDLL(name, use_errno=True)
            library.crypt_rn.restype = ctypes.c_char_p
            library.crypt_gensalt_rn.restype = ctypes.c_char_p
        except (OSError, AttributeError):
            continue
        return library
    raise PasswordError("there is no libcrypt with crypt_rn(3); install libcrypt1")


def is_hash(text: str) -> bool:
    """Whether it looks like a hash of crypt(5), and not like a password somebody wrote down."""
    return text.startswith("$") and text.count("$") >= 3


def encrypt(password: str, prefix: bytes = DEFAULT_PREFIX) -> str:
    """A new hash, salted by the system. Raises PasswordError."""
    library = _libcrypt()
    buffer = ctypes.create_string_buffer(_OUTPUT_BYTES)
    salt = library.crypt_gensalt_rn(prefix, ctypes.c_ulong(0), None, 0, buffer, _OUTPUT_BYTES)
    if salt is None:
        raise PasswordError(f"libcrypt makes no hashes of the kind {prefix.decode()}")
    return _crypt(password, salt)


def verify(password: str, hashed: str) -> bool:
    """Whether this is the password. Takes as long as the hash wants: not for an event loop."""
    try:
        return hmac.compare_digest(_crypt(password, hashed.encode()), hashed)
    except (PasswordError, UnicodeError, TypeError):
        return False


def _crypt(password: str, setting: bytes) -> str:
    if "\0" in password:
        raise PasswordError("a NUL in the password")
    data = ctypes.create_string_buffer(_DATA_BYTES)
    hashed = _libcrypt().crypt_rn(password.encode(), setting, data, _DATA_BYTES)
    if hashed is None or hashed.startswith(b"*"):
        raise PasswordError("libcrypt does not know this kind of hash")
    return str(hashed, "ascii")
