"""Of what format a file of tensors is, by its first bytes: its ending is often another's.

Downloads are also often something else: a web page, a pointer of git-lfs, an archive that must be unpacked.
"""

from ann_jax.errors import DataError

BEGIN = 512  # bytes that tell
_COMPRESSED = {
    b'\x1f\x8b': 'gzip',
    b'BZh': 'bzip2',
    b'\xfd7zXZ': 'xz',
    b'\x28\xb5\x2f\xfd': 'zstd',
    b'7z\xbc\xaf': '7-Zip',
    b'Rar!': 'RAR',
}
_OTHERS = {
    b'\x89HDF': 'HDF5, as Keras writes it',
    b'\x93NUMPY': 'NumPy, of a single array',
}


def format_of(begin: bytes, suffix: str) -> str:
    """'torch', 'safetensors' or 'Paddle'; what the ending says, where the bytes do not tell.

    Args:
        begin: the first `BEGIN` bytes of the file.
        suffix: the ending of its name.

    Raises:
        DataError: it is of another kind; the message says what to do.
    """
    if begin.startswith(b'version https://git-lfs'):
        raise DataError('is a pointer of git-lfs, not the file: run git lfs pull where it was cloned')
    if begin.lstrip()[:1] == b'<':
        raise DataError(
            'is a web page, not weights: the address was that of a page, or asks for a login. Get the file'
        )
    for first, name in _COMPRESSED.items():
        if begin.startswith(first):
            raise DataError(f'is compressed with {name}: unpack it, and convert what it holds')
    for first, name in _OTHERS.items():
        if begin.startswith(first):
            raise DataError(f'is a file of {name}, not a state dict: save one with torch or safetensors')
    if begin.startswith(b'PK\x03\x04') or begin[257:262] == b'ustar':
        return 'torch'
    if begin[8:9] == b'{':
        return 'safetensors'
    return {'.safetensors': 'safetensors', '.pdparams': 'Paddle'}.get(suffix, 'torch')
