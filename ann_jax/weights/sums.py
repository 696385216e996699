"""Checksums that are known of a file: in its name, in a file beside it, or from the hub it came from."""

import contextlib
import hashlib
import re
from datetime import datetime
from pathlib import Path

from ann_jax.errors import DataError
from ann_jax.weights.folder import sha256


def check(path: Path) -> str:
    """Compares a file with every checksum that is known of it.

    Returns:
        Its SHA-256, as 64 hexadecimal digits.

    Raises:
        DataError: it has another checksum.
    """
    digest = sha256(path)
    beside = path.with_name(f'{path.name}.sha256')
    if not beside.is_file():
        beside = path.with_suffix('.sha256')
    if beside.is_file():
        lines = beside.read_text(encoding='utf-8', errors='replace').lower().splitlines()
        lines = [line for line in lines if path.name.lower() in line] or lines
        sums = re.findall(r'\b[0-9a-f]{64}\b', '\n'.join(lines))
        if not sums:
            raise DataError(f'{beside}: holds no SHA-256 of 64 digits for {path.name}: correct or remove it')
        if digest not in sums:
            raise DataError(
                f'{path}: its SHA-256 begins with {digest[:8]}, but {beside.name} says {sums[0][:8]}: get it '
                'again'
            )
    blob = path.resolve()  # a hub's cache calls files by their SHA-256
    if blob.parent.name == 'blobs' and re.fullmatch('[0-9a-f]{64}', blob.name) and blob.name != digest:
        raise DataError(f'{path}: is damaged, its hub says {blob.name[:8]}: delete {blob}, to get it again')
    promised = _digits(path)
    broken = promised and not digest.startswith(promised) and not _other_digits(promised, path)
    if broken and len(promised) not in _LENGTHS:
        raise DataError(
            f'{path}: its name promises a checksum that begins with {promised}, but it is {digest[:8]}: '
            'get it again, or rename it if you have changed it or the digits mean something else'
        )
    return digest


# Digits of an MD5 and of an SHA-1, which may be that of a commit.
_LENGTHS = {32: 'MD5', 40: 'SHA-1'}


def doubt(path: Path) -> str:
    """What to tell of a file whose name holds an SHA-1 or an MD5 that is not its own; '' of others."""
    digits = _digits(path)
    if len(digits) not in _LENGTHS or sha256(path).startswith(digits) or _other_digits(digits, path):
        return ''
    kind = _LENGTHS[len(digits)]
    return f'{digits} in its name is not the {kind} of the file; if it should be, the file is damaged'


def _digits(path):
    """The digits at the end of a name where a checksum may stand, or ''."""
    found = re.search(r'-([0-9a-f]{8,64})(\.[a-z]\w*)+$', path.name)
    return found[1] if found else ''


def _other_digits(digits, path):
    """Whether digits in a name are no SHA-256 but a date, a number, or the file's SHA-1 or MD5."""
    if digits.isdecimal():
        if len(digits) != 8:
            return True
        for form in ('%Y%m%d', '%d%m%Y', '%m%d%Y'):
            with contextlib.suppress(ValueError):
                if 1990 <= datetime.strptime(digits, form).year < 2100:
                    return True
    with open(path, 'rb') as file:
        sha1 = hashlib.file_digest(file, lambda: hashlib.new('sha1', usedforsecurity=False))
        file.seek(0)
        md5 = hashlib.file_digest(file, lambda: hashlib.new('md5', usedforsecurity=False))
    return sha1.hexdigest().startswith(digits) or md5.hexdigest().startswith(digits)
