"""Buckets of Google Cloud Storage and Amazon S3 in the place of folders: gs://BUCKET/NAME, s3://BUCKET/NAME.

A path in a bucket is an `epath.Path`, which reads, writes and lists like a `pathlib.Path`. An object appears
whole when its last byte has arrived, so none is ever half written; but it cannot be appended to or renamed,
and there are no folders to make.
"""
