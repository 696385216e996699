"""Objects of Amazon S3, and of storage with its interface, by Amazon's own client; see `services`.

AWS_ENDPOINT_URL names other storage, such as MinIO's.
"""

import functools
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from ann_jax.buckets.reasons import Changed, explained
from ann_jax.errors import ConfigError

TIMEOUT = 30.0  # seconds
# The second is said to one of two that write at the same time.
_CHANGED = ('PreconditionFailed', 'ConditionalRequestConflict', 'NoSuchKey')


def look(bucket: str) -> None:
    """Asks for a name in the bucket."""
    client(attempts=1).list_objects_v2(Bucket=bucket, MaxKeys=1)


def read(bucket: str, name: str) -> tuple[str, str | int]:
    """Text and ETag of an object; '' and 0 if it is not there."""
    try:
        found = client().get_object(Bucket=bucket, Key=name)
        return found['Body'].read().decode(), found['ETag']
    except client().exceptions.NoSuchKey:
        return '', 0


def write_if(bucket: str, name: str, text: str, version: Any) -> str:
    """Writes an object if its ETag still is the given one, 0 if it must not be there.

    An ETag is that of a content: others do not see that the same text was written again.
    """
    content = {'Bucket': bucket, 'Key': name, 'Body': text.encode()}
    condition = {'IfMatch': version} if version else {'IfNoneMatch': '*'}
    try:
        return client().put_object(**content, **condition)['ETag']
    except client().exceptions.ClientError as error:
        code = error.response['Error']['Code']
        if code in _CHANGED:
            raise Changed from error
        if code != 'NotImplemented':  # other storage may know no conditions
            raise
    return client().put_object(**content)['ETag']


def remove_if(bucket: str, name: str, version: Any) -> None:
    """Removes an object if its ETag still is the given one."""
    try:
        client().delete_object(Bucket=bucket, Key=name, IfMatch=version)
    except client().exceptions.ClientError as error:
        code = error.response['Error']['Code']
        if code == 'NotImplemented' and read(bucket, name)[1] == version:
            remove(bucket, name)
        elif code not in ('NotImplemented', *_CHANGED):
            raise


def upload(bucket: str, name: str, file: Path) -> None:
    """Copies a file of this machine, of at most 5 GB, into an object, whole or not at all."""
    with open(file, 'rb') as content:
        client().put_object(Bucket=bucket, Key=name, Body=content)


def download(bucket: str, name: str, file: Path) -> None:
    """Copies an object into a file of this machine."""
    content = client().get_object(Bucket=bucket, Key=name)['Body']
    with open(file, 'wb') as copy:
        shutil.copyfileobj(content, copy, 2**24)


def names(bucket: str, prefix: str) -> list[str]:
    """Names of the objects that begin with the prefix."""
    pages = client().get_paginator('list_objects_v2').paginate(Bucket=bucket, Prefix=prefix)
    return [each['Key'] for page in pages for each in page.get('Contents', ())]


def copy(bucket: str, name: str, target: str) -> None:
    """Copies an object within its bucket."""
    client().copy_object(Bucket=bucket, Key=target, CopySource={'Bucket': bucket, 'Key': name})


def remove(bucket: str, name: str) -> None:
    """Removes an object if it is there."""
    client().delete_object(Bucket=bucket, Key=name)


@functools.cache
def client(attempts: int = 8) -> Any:
    """The client of Amazon's own library, after s3fs has been set up.

    Args:
        attempts: of each request; 8 take a bucket that is overloaded about half a minute.
    """
    os.environ.setdefault('EPATH_USE_TF', 'false')  # where it is installed, it reports errors in its own way
    for library in ('fsspec', 's3fs', 'aiobotocore', 'botocore', 'urllib3'):  # which print every failure
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        import fsspec
        import s3fs  # noqa: F401
        from botocore.config import Config
        from botocore.session import get_session
    except ImportError as error:
        raise ConfigError(f"s3:// needs s3fs ({error}): pip install 'ann_jax[s3]'") from error
    limits = {'connect_timeout': TIMEOUT, 'read_timeout': TIMEOUT}
    # Other processes write too, so what was listed before does not count.
    settings = fsspec.config.conf.setdefault('s3', {})
    settings.setdefault('use_listings_cache', False)
    settings.setdefault('config_kwargs', limits)
    try:
        retries = {'mode': 'standard', 'total_max_attempts': attempts}
        return get_session().create_client('s3', config=Config(**limits, retries=retries))
    except Exception as error:
        raise ConfigError(f's3:// cannot be used: {explained(error)}') from error
