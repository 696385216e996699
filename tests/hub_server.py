"""A hub of models in a thread, which speaks as much of the hub's protocol as downloads and uploads need."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading


class Hub:
    """Repositories: name -> revision -> file -> bytes; the commit of a revision is its digest."""

    def __init__(self):
        self.repositories, self.asked = {}, []
        self.status = 200  # of every answer to a question for a file
        self.cut = False  # whether answers end in the middle

    def commit(self, files):
        return hashlib.sha1(
            b''.join(name.encode() + data for name, data in sorted(files.items()))
        ).hexdigest()

    def put(self, name, files, revision='main'):
        """Stores files; returns the commit, which is a revision too."""
        commit = self.commit(files)
        self.repositories.setdefault(name, {}).update({revision: files, commit: files})
        return commit


def handler(hub):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, body=b'', **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace('_', '-'), value)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(body[: len(body) // 2] if hub.cut else body)
                self.close_connection = self.close_connection or hub.cut

        def do_GET(self):
            hub.asked.append((self.command, self.path))
            if hub.status != 200:
                return self.answer(hub.status)
            found = re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self.path)
            if not found or found[1] not in hub.repositories:
                return self.answer(404, X_Error_Code='RepoNotFound')
            revisions = hub.repositories[found[1]]
            if found[2] not in revisions:
                return self.answer(404, X_Error_Code='RevisionNotFound')
            files = revisions[found[2]]
            commit = hub.commit(files)
            if found[3] not in files:
                return self.answer(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
            data = files[found[3]]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            linked = {'X_Linked_ETag': etag, 'X_Linked_Size': len(data)}
            self.answer(200, data, ETag=etag, X_Repo_Commit=commit, **linked)

        do_HEAD = do_GET

        def do_POST(self):
            hub.asked.append((self.command, self.path))
            body = self.rfile.read(int(self.headers['Content-Length'] or 0))
            here = f'http://{self.headers["Host"]}'
            say = lambda **content: self.answer(200, json.dumps(content).encode())
            if self.path == '/api/repos/create':
                asked = json.loads(body)
                name = '/'.join(filter(None, (asked.get('organization'), asked['name'])))
                hub.repositories.setdefault(name, {})
                return say(url=f'{here}/{name}', id=name)
            if self.path == '/api/validate-yaml':
                return say(errors=[], warnings=[])
            path = self.path.split('?')[0]
            kind = re.fullmatch(r'/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)', path)
            if not kind or kind[1] not in hub.repositories:
                return self.answer(404, X_Error_Code='RepoNotFound')
            if kind[2] == 'preupload':
                plain = {'uploadMode': 'regular', 'shouldIgnore': False, 'oid': None}
                return say(files=[{'path': file['path'], **plain} for file in json.loads(body)['files']])
            files = {
                line['value']['path']: base64.b64decode(line['value']['content'])
                for line in map(json.loads, body.splitlines())
                if line['key'] == 'file'
            }
            commit = hub.put(kind[1], files, kind[3])
            say(commitUrl=f'{here}/{kind[1]}/commit/{commit}', commitOid=commit, pullRequestUrl=None)

    return Handler


@contextlib.contextmanager
def serving(hub):
    """Serves a hub; yields its address."""
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
