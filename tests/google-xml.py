#!/usr/bin/env python3
"""Puts objects into fake-gcs-server by Google's XML interface, which it knows else: google-xml.py PORT SERVER_PORT.

A put becomes an upload by the JSON interface, the precondition with it; every other request passes as it is.
"""

import http.client
import json
import sys
import uuid
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, server_port = (int(argument) for argument in sys.argv[1:])


class Handler(BaseHTTPRequestHandler):
    """Answers as Google would."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Says nothing: the server has a log."""

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        """Returns the server's status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", server_port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def respond(self) -> None:
        """Serves one request."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "PUT":
            status, headers, content = self.put(body)
        else:
            status, headers, content = self.ask(self.command, self.path, body, dict(self.headers))
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content)

    def put(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Uploads an object."""
        _, bucket, name = self.path.split("/", 2)
        condition = self.headers.get("x-goog-if-generation-match")
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart&name={name}"
        path += f"&ifGenerationMatch={condition}" if condition else ""
        edge = uuid.uuid4().hex.encode()
        name_part = b"--%b\r\nContent-Type: application/json\r\n\r\n{}\r\n" % edge
        content_part = b"--%b\r\nContent-Type: text/plain\r\n\r\n%b\r\n--%b--\r\n" % (edge, body, edge)
        kind = {"Content-Type": f"multipart/related; boundary={edge.decode()}"}
        status, _, content = self.ask("POST", path, name_part + content_part, kind)
        if status != HTTPStatus.OK:
            return status, {}, content
        uploaded = json.loads(content)
        return status, {"ETag": uploaded["etag"], "x-goog-generation": uploaded["generation"]}, b""

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = respond


ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
