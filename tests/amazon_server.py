"""A bucket of Amazon's in memory: the part of S3's REST API that s3fs and Amazon's own client use.

Objects have ETags, and conditions on them are kept, as by the real service. Source: the reference of the API
("ListObjectsV2", "GetObject", "HeadObject", "PutObject", "CopyObject", "DeleteObject", "Error responses").
"""

import hashlib
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from bucket_server import BucketServer, Handler, Refusal, answer_with

CODES = {
    304: 'NotModified',
    401: 'InvalidAccessKeyId',
    403: 'AccessDenied',
    404: 'NoSuchKey',
    412: 'PreconditionFailed',
    416: 'InvalidRange',
    501: 'NotImplemented',
    503: 'SlowDown',
}


class AmazonServer(BucketServer):
    """Serves one bucket; its second element of an object is not used, for the ETag is that of the content.

    Attributes:
        knows_conditions: whether it answers requests with a condition on the object.
    """

    def __init__(self, bucket='bucket'):
        super().__init__(bucket, AmazonHandler)
        self.knows_conditions = True


class AmazonHandler(Handler):
    """Answers a request."""

    def reply(self, method, path, headers, body):
        parts = urlsplit(path)
        bucket, _, name = unquote(parts.path).lstrip('/').partition('/')
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
        try:
            self.server.before(method, name)
            if bucket != self.server.bucket:
                raise Refusal(404, 'The specified bucket does not exist', 'NoSuchBucket')
            if not self.server.knows_conditions and ('If-Match' in headers or 'If-None-Match' in headers):
                raise Refusal(501, 'A header you provided implies functionality that is not implemented')
            with self.server.lock:
                return self._answer(method, name, asked, headers, body)
        except Refusal as refusal:
            status, text, *code = refusal.args
            code = code[0] if code else CODES.get(status, 'InvalidRequest')
            content = f'<Error><Code>{code}</Code><Message>{escape(text)}</Message></Error>'
            return status, {'Content-Type': 'application/xml'}, content.encode()

    def _answer(self, method, name, asked, headers, body):
        server = self.server
        if not name:
            return 200, {'Content-Type': 'application/xml'}, b'' if method == 'HEAD' else self._list(asked)
        found = server.objects.get(name, (None,))[0]
        self._check(found, headers)
        if method == 'PUT':
            if source := headers.get('x-amz-copy-source'):
                body = server.objects[unquote(source).lstrip('/').partition('/')[2]][0]
            server.objects[name] = body, next(server.numbers)
            copied = f'<CopyObjectResult><ETag>{etag(body)}</ETag></CopyObjectResult>' if source else ''
            return 200, {'ETag': etag(body)}, copied.encode()
        if method == 'DELETE':
            server.objects.pop(name, None)
            return 204, {}, b''
        if found is None:
            raise Refusal(404, 'The specified key does not exist.')
        facts = {
            'ETag': etag(found),
            'Last-Modified': 'Thu, 01 Jan 2026 00:00:00 GMT',
            'Accept-Ranges': 'bytes',
        }
        return answer_with(found, facts, headers)

    def _check(self, found, headers):
        wanted, known = headers.get('If-Match'), headers.get('If-None-Match')
        if wanted and found is None:
            raise Refusal(404, 'The specified key does not exist.')
        if wanted and wanted != etag(found) or known == '*' and found is not None:
            raise Refusal(412, 'At least one of the pre-conditions you specified did not hold')

    def _list(self, asked):
        prefix, delimiter = asked.get('prefix', ''), asked.get('delimiter', '')
        after, most = asked.get('continuation-token', ''), int(asked.get('max-keys', 1000))
        rows, last = {}, ''
        for name in self.server.names(prefix):
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, '', '')
            key = f'{prefix}{head}{cut}' if cut else name
            if key <= after or key in rows:
                continue
            if len(rows) == most:
                last = [*rows][-1]
                break
            shown = quote(key, safe='/')
            content = self.server.objects[name][0]
            rows[key] = (
                f'<CommonPrefixes><Prefix>{shown}</Prefix></CommonPrefixes>'
                if cut
                else f'<Contents><Key>{shown}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>'
                f'<ETag>{etag(content)}</ETag><Size>{len(content)}</Size></Contents>'
            )
        more = f'<NextContinuationToken>{escape(last)}</NextContinuationToken>' if last else ''
        return (
            f'<ListBucketResult><EncodingType>url</EncodingType><KeyCount>{len(rows)}</KeyCount>'
            f'<IsTruncated>{str(bool(last)).lower()}</IsTruncated>{more}{"".join(rows.values())}'
            '</ListBucketResult>'
        ).encode()


def etag(content):
    """The ETag of an object that was written at once."""
    return f'"{hashlib.md5(content).hexdigest()}"'
