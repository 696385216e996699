"""Why a bucket does not do what it is asked, in one line with a cure."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

_AMAZONS = {'botocore', 'aiobotocore', 's3fs'}
_LIBRARIES = {'aiohttp', 'asyncio', 'gcsfs', 'google', 'requests', 'socket', 'urllib3', *_AMAZONS}
# What gcsfs and Google's client say, whose errors have no common type.
_STATUS = re.compile(r'^Forbidden: |^(?P<status>\d{3}) [A-Z]+ https?://')
_SILENT = re.compile(r'tim(ed? ?out|eout)|connect|unreachable|resolve', re.IGNORECASE)
_OVERLOADED = (408, 429, 500, 502, 503, 504)
# What Amazon's client says of credentials, by the types of its errors or the codes of answers.
_LOGIN = re.compile('Credential|Token|SSO|ProfileNotFound|InvalidAccessKeyId|SignatureDoesNotMatch')


class _Words(NamedTuple):
    """What users of a service are told to do."""

    grant: str
    log_in: str
    address: str  # the variable that names other storage than the service's own


_GOOGLE = _Words(
    'grant it roles/storage.objectUser on the bucket',
    'run gcloud auth application-default login, or name a key file in GOOGLE_APPLICATION_CREDENTIALS',
    'STORAGE_EMULATOR_HOST',
)
_AMAZON = _Words(
    'allow it s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and s3:DeleteObject on its objects',
    'run aws configure or aws sso login, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
    'AWS_ENDPOINT_URL',
)


class BucketError(OSError):
    """A bucket cannot be read or written; the message says why and what to do."""


class Changed(Exception):
    """An object is not what it was when it was last seen."""


def reason(error: BaseException) -> str:
    """Why a bucket does not do what it is asked, and what to do; '' if the error is not that of a bucket."""
    found = _cause(error) if _in_use() else None
    return _told(*found) if found else ''


def unavailable(error: BaseException) -> str:
    """As `reason`, but '' too if the bucket did answer, such as that there is no such object."""
    found = _cause(error) if _in_use() else None
    if found is None:
        return ''
    seen, status, text = found
    if status and not _is_of_login(seen):
        failed = status in (401, 403, *_OVERLOADED)
    else:
        failed = isinstance(seen, BucketError) or _is_of_login(seen) or _is_silent(seen, text)
    return _told(*found) if failed else ''


def _in_use():
    """Whether a bucket has been named: then its libraries are there, and a silent one may be meant."""
    return 'gcsfs' in sys.modules or 's3fs' in sys.modules


def _cause(error):
    """The error of a library in a chain of errors, the status of its answer or 0, and its text; or None."""
    seen: BaseException | None = error
    while seen is not None:
        text = ' '.join(str(seen).split()) or type(seen).__name__
        found = _STATUS.search(text)
        library = type(seen).__module__.partition('.')[0]
        if found or library in _LIBRARIES or isinstance(seen, (BucketError, TimeoutError)):
            answer = getattr(seen, 'response', None)
            code = str(getattr(seen, 'code', ''))
            if isinstance(answer, dict):
                code = str(answer.get('ResponseMetadata', {}).get('HTTPStatusCode', ''))
            if found and not code.isdigit():
                code = found['status'] or '403'
            return seen, int(code) if code.isdigit() else 0, text
        seen = seen.__cause__ or seen.__context__
    return None


def _is_of_amazon(error):
    return type(error).__module__.partition('.')[0] in _AMAZONS


def _is_of_login(error):
    if _is_of_amazon(error):
        answer = (getattr(error, 'response', None) or {}).get('Error', {})
        return bool(_LOGIN.search(answer.get('Code', '') or type(error).__name__))
    return type(error).__module__.startswith('google.auth')


def _is_silent(error, text):
    return bool(_SILENT.search(f'{type(error).__name__} {text}'))


def _told(error, status, text):
    if isinstance(error, BucketError):
        return text
    words = _AMAZON if _is_of_amazon(error) else _GOOGLE
    short = re.sub(r'^\d{3} [A-Z]+ \S+ ', '', text)  # without the address that was asked, or the operation
    short = re.sub(r'^An error occurred \((\w+)\) when calling the \w+ operation', r'\1', short)[:200]
    if _is_of_login(error):
        return f'there are no credentials that work ({short}): {words.log_in}'
    if status == 401:
        return f'it does not know who asks (401): {words.log_in}'
    if status == 403:
        return f'it refuses this account (403; {short}): {words.grant}'
    if status == 404:
        return f'there is no such bucket or object (404; {short}): create the bucket, or correct its name'
    if status in _OVERLOADED:
        return f'it is overloaded ({status}): run the same again, and the run goes on'
    if _is_silent(error, text):
        return (
            f'it does not answer ({short}): check the network and {words.address}, which must be unset '
            'unless it names other storage; then run the same again'
        )
    return short


def temporary(why: str, file: str | None = None) -> str:
    """What is said of an error of this machine, where files lie on their way to a bucket or back."""
    where = file or tempfile.tempdir or os.environ.get('TMPDIR') or '/tmp'
    return f'{why}: {where}; free space there, or name another folder for temporary files in TMPDIR'


def explained(error: BaseException) -> str:
    """As `reason`, of an error that can only be that of a bucket."""
    if 'roject was not passed' in str(error):
        return 'no project is known: set GOOGLE_CLOUD_PROJECT'
    if found := _cause(error):
        return _told(*found)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return temporary(error.strerror or str(error), error.filename)
    if isinstance(error, FileNotFoundError):
        return _told(error, 404, str(error))
    return f'{type(error).__name__}: {error}'[:300]


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Turns what the libraries raise into a `BucketError`."""
    try:
        yield
    except (BucketError, Changed):
        raise
    except Exception as error:
        raise BucketError(explained(error)) from error
