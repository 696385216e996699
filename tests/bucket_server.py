"""A bucket in memory: the part of Google's JSON API that gcsfs and Google's own client use.

Objects have generations, and conditions on them are kept, as by the real service. Source: the reference of
the JSON API ("Objects: insert, get, list, delete, copy", "Uploads", "Batch requests").
"""

import base64
import email.parser
import email.policy
import hashlib
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_BUCKET = re.compile(r'/storage/v1/b/([^/]+)')
_OBJECTS = re.compile(
    r'(?:/download|/upload)?(?:/resumable/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?(?:/(.*))?'
)
_ENTITY = re.compile(r'bytes=(\d+)-(\d*)')


class Refusal(Exception):
    """An answer that is an error: its status and what it says."""


class BucketServer(ThreadingHTTPServer):
    """Serves one bucket; use it as a context manager.

    Attributes:
        objects: name -> (content, generation).
        before: called with method and name of the object before each request, '' where there is none; may
            raise a `Refusal`, or wait.
        url: its address, for STORAGE_EMULATOR_HOST.
    """

    daemon_threads = True

    def __init__(self, bucket='bucket', handler=None):
        super().__init__(('127.0.0.1', 0), handler or GoogleHandler)
        self.bucket, self.objects, self.uploads = bucket, {}, {}
        self.before = lambda method, name: None
        self.lock, self.numbers = threading.RLock(), itertools.count(1_000_000)
        self.url = f'http://127.0.0.1:{self.server_address[1]}'

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients may go away, or be killed."""

    def names(self, prefix=''):
        """Names of the objects, in order."""
        return sorted(name for name in self.objects if name.startswith(prefix))


class Handler(BaseHTTPRequestHandler):
    """Reads a request and writes what `reply` answers."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def _serve(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        if self.headers.get('Transfer-Encoding') == 'chunked':
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        status, headers, content = self.reply(self.command, self.path, self.headers, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status not in (204, 304):  # which have no content
            self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command != 'HEAD' and status not in (204, 304):
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve


class GoogleHandler(Handler):
    """Answers a request, or one of several in a batch."""

    def reply(self, method, path, headers, body):
        parts = urlsplit(path)
        asked = dict(parse_qsl(parts.query, keep_blank_values=True))
        if parts.path.startswith('/batch'):
            return self._batch(headers, body)
        found = _OBJECTS.fullmatch(parts.path)
        name = unquote(found[2]) if found and found[2] else asked.get('name', '')
        if asked.get('uploadType') == 'multipart':
            name = json.loads(_parts(headers['Content-Type'], body)[0])['name']
        try:
            self.server.before(method, name)
            with self.server.lock:
                answer = self._answer(method, parts.path, found, name, asked, headers, body)
        except Refusal as refusal:
            status, text = refusal.args
            answer = status, {}, json.dumps({'error': {'code': status, 'message': text}}).encode()
        status, more, content = answer
        return status, {'Content-Type': 'application/json'} | more, content

    def _answer(self, method, path, found, name, asked, headers, body):
        server = self.server
        bucket = _BUCKET.match(path.removeprefix('/upload').removeprefix('/download'))
        if bucket is None or bucket[1] != server.bucket:
            raise Refusal(404, 'The specified bucket does not exist.')
        if found is None:
            return 200, {}, json.dumps({'kind': 'storage#bucket', 'name': server.bucket}).encode()
        if 'upload' in path:
            return self._upload(name, asked, headers, body)
        if found[2] is None:
            return self._list(asked)
        if found[3]:
            return self._copy(name, found[3])
        content, generation = self._object(name, asked)
        if method == 'DELETE':
            del server.objects[name]
            return 204, {}, b''
        if asked.get('alt') != 'media' and not path.startswith('/download'):
            return 200, {}, json.dumps(self._facts(name)).encode()
        more = {'X-Goog-Generation': str(generation), 'Content-Type': 'application/octet-stream'}
        more |= {'X-Goog-Hash': f'md5={_md5(content)}', 'X-Goog-Metageneration': '1'}
        return answer_with(content, more, headers)

    def _object(self, name, asked):
        content, generation = self.server.objects.get(name, (None, 0))
        if content is None:
            raise Refusal(404, f'No such object: {self.server.bucket}/{name}')
        self._check(generation, asked)
        return content, generation

    def _check(self, generation, asked):
        wanted, known = asked.get('ifGenerationMatch'), asked.get('ifGenerationNotMatch')
        if wanted is not None and int(wanted) != generation:
            raise Refusal(412, 'At least one of the pre-conditions you specified did not hold.')
        if known is not None and int(known) == generation:
            raise Refusal(304, '')

    def _store(self, name, content, asked):
        self._check(self.server.objects.get(name, (None, 0))[1], asked)
        self.server.objects[name] = content, next(self.server.numbers)
        return 200, {}, json.dumps(self._facts(name)).encode()

    def _facts(self, name):
        content, generation = self.server.objects[name]
        return {
            'kind': 'storage#object',
            'name': name,
            'bucket': self.server.bucket,
            'size': str(len(content)),
            'generation': str(generation),
            'metageneration': '1',
            'md5Hash': _md5(content),
            'crc32c': _crc32c(content),
            'timeCreated': '2026-01-01T00:00:00.000Z',
            'updated': '2026-01-01T00:00:00.000Z',
        }

    def _upload(self, name, asked, headers, body):
        server = self.server
        if key := asked.get('upload_id'):
            name, wanted, content = server.uploads[key]
            server.uploads[key] = name, wanted, content + body
            if headers.get('Content-Range', '').endswith('/*'):
                return 308, {'Range': f'bytes=0-{len(content + body) - 1}'}, b''
            del server.uploads[key]
            return self._store(name, content + body, wanted)
        if asked['uploadType'] == 'resumable':
            name = name or json.loads(body)['name']
            key = str(next(server.numbers))
            server.uploads[key] = name, asked, b''
            where = f'{server.url}/upload/storage/v1/b/{server.bucket}/o?upload_id={key}&name={quote(name)}'
            return 200, {'Location': where}, b''
        if asked['uploadType'] == 'multipart':
            _, body = _parts(headers['Content-Type'], body)
        return self._store(name, body, asked)

    def _list(self, asked):
        prefix, delimiter = asked.get('prefix', ''), asked.get('delimiter', '')
        items, folders = [], set()
        for name in self.server.names(prefix):
            if not asked.get('startOffset', '') <= name or asked.get('endOffset', '\U0010ffff') <= name:
                continue
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, '', '')
            if cut:
                folders.add(f'{prefix}{head}{cut}')
            else:
                items.append(self._facts(name))
        items = items[: int(asked.get('maxResults', 10**6))]
        return 200, {}, json.dumps({'items': items, 'prefixes': sorted(folders)}).encode()

    def _copy(self, name, to):
        target = unquote(to.rpartition('/o/')[2])
        content, _ = self._object(name, {})
        answer = self._store(target, content, {})
        if to.startswith('rewriteTo'):
            facts = {'kind': 'storage#rewriteResponse', 'done': True, 'resource': self._facts(target)}
            facts |= {'objectSize': str(len(content)), 'totalBytesRewritten': str(len(content))}
            return 200, {}, json.dumps(facts).encode()
        return answer

    def _batch(self, headers, body):
        kind, answers = headers['Content-Type'], []
        for number, part in enumerate(_parts(kind, body)):
            first, _, _ = part.strip().partition(b'\r\n' if b'\r\n' in part else b'\n')
            method, path, _ = first.decode().split()
            status, _, content = self.reply(
                method, urlsplit(path)._replace(scheme='', netloc='').geturl(), {}, b''
            )
            answers.append(
                b'--answers\r\nContent-Type: application/http\r\nContent-ID: <response-%d>\r\n\r\n'
                b'HTTP/1.1 %d X\r\nContent-Type: application/json\r\n\r\n%s\r\n'
                % (number + 1, status, content)
            )
        return (
            200,
            {'Content-Type': 'multipart/mixed; boundary=answers'},
            b''.join(answers) + b'--answers--\r\n',
        )


def answer_with(content, facts, headers):
    """Status, headers and content of an answer: all of the content, or the range of it that was asked for."""
    if (cut := _ENTITY.fullmatch(headers.get('Range', ''))) is None:
        return 200, facts, content
    begin, end = int(cut[1]), min(int(cut[2] or len(content)), len(content) - 1)
    if begin >= len(content):
        raise Refusal(416, 'Requested range not satisfiable')
    facts |= {'Content-Range': f'bytes {begin}-{end}/{len(content)}'}
    return 206, facts, content[begin : end + 1]


def _parts(kind, body):
    """The contents of the parts of a body of several."""
    boundary = email.parser.HeaderParser().parsestr(f'Content-Type: {kind}').get_boundary().encode()
    pieces = re.split(rb'(?:^|\r?\n)--' + re.escape(boundary), body)[1:-1]
    return [re.split(rb'\r?\n\r?\n', piece, maxsplit=1)[1] for piece in pieces]


def _md5(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def _crc32c(content):
    from google_crc32c import value  # of Google's client, which compares it

    return base64.b64encode(value(content).to_bytes(4, 'big')).decode()


if __name__ == '__main__':
    with BucketServer() as running:
        print(running.url, flush=True)
        threading.Event().wait()
