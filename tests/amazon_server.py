"""A bucket of Amazon's in memory: moto's S3, with the attributes of `bucket_server.BucketServer`."""

import threading
from collections.abc import MutableMapping

from bucket_server import Refusal
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


class AmazonServer:
    """Serves one bucket; use it as a context manager.

    Attributes:
        objects: name -> (content, ETag).
        before: called with method and name of the object before each request, '' where there is none; may
            raise a `Refusal`, or wait.
        knows_conditions: whether it answers requests with a condition on the object.
        url: its address, for AWS_ENDPOINT_URL.
    """

    def __init__(self, bucket='bucket'):
        backend = get_backend('s3')[DEFAULT_ACCOUNT_ID]['aws']
        backend.reset()
        backend.create_bucket(bucket, 'us-east-1')
        self.objects, self.before = _Objects(backend, bucket), lambda method, name: None
        self.knows_conditions = True
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server('127.0.0.1', 0, self._answer, threaded=True, request_handler=_Quiet)
        self.url = f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def names(self, prefix=''):
        """Names of the objects, in order."""
        return sorted(name for name in self.objects if name.startswith(prefix))

    def _answer(self, environ, start_response):
        request = Request(environ)
        try:
            self.before(request.method, request.path.strip('/').partition('/')[2])
            if not self.knows_conditions and {'If-Match', 'If-None-Match'} & {*request.headers.keys()}:
                raise Refusal(501, 'no conditions')
        except Refusal as refusal:
            status, text = refusal.args
            codes = {401: 'InvalidAccessKeyId', 403: 'AccessDenied', 501: 'NotImplemented'}
            code = codes.get(status, 'InvalidRequest')
            body = f'<Error><Code>{code}</Code><Message>{text}</Message></Error>'
            return Response(body, status, content_type='application/xml')(environ, start_response)
        return self._app(environ, start_response)


class _Objects(MutableMapping):
    def __init__(self, backend, bucket):
        self._backend, self._bucket = backend, bucket

    def __getitem__(self, name):
        found = self._backend.get_object(self._bucket, name)
        if found is None:
            raise KeyError(name)
        return found.value, found.etag

    def __setitem__(self, name, content):
        self._backend.put_object(self._bucket, name, content[0])

    def __delitem__(self, name):
        self._backend.delete_object(self._bucket, name)

    def __iter__(self):
        return iter(list(self._backend.buckets[self._bucket].keys))

    def __len__(self):
        return len(list(iter(self)))


class _Quiet(WSGIRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log(self, *_):
        pass
