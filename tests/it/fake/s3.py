"""An object store that speaks enough of S3 to keep artifacts, and misbehaves on demand.

    s3.py PORT FOLDER|http://HOST:PORT [SEED SHARE COUNTER]

Keeps objects in a folder, or hands each request on to a real server. With a seed, that share of the requests meets a fault: an
error, a cut answer, one that comes too late, a wrong byte, an object that is stored wrong, or the end of this process. Each fault
adds a line to the file COUNTER.
"""

import http.client
import os
import random
import re
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, PLACE = int(sys.argv[1]), sys.argv[2]
SHARE = float(sys.argv[4]) if len(sys.argv) > 4 else 0.0
FAULTS = ["error", "slow down", "close", "cut", "late", "wrong byte", "stored wrong", "lost answer", "die"]
LATE = 3.0


def seed():
    """Another one after each end of this process, or the faults behind the first such end would never come."""
    met = 0
    if len(sys.argv) > 5 and os.path.exists(sys.argv[5]):
        with open(sys.argv[5], encoding="utf-8") as counter:
            met = len(counter.readlines())
    return (int(sys.argv[3]) if len(sys.argv) > 3 else 0) * 1_000_003 + met


chance = random.Random(seed())
lock = threading.Lock()


def draw():
    with lock:
        if chance.random() >= SHARE:
            return None
        fault = chance.choice(FAULTS)
        with open(sys.argv[5], "a", encoding="utf-8") as counter:
            counter.write(fault + "\n")
        return fault


class Folder:
    def answer(self, method, target, headers, body):
        path, _, query = target.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        name = urllib.parse.unquote(path).lstrip("/")
        place = os.path.join(PLACE, name)
        if method == "GET" and "list-type" in query:
            return 200, self.list(name.rstrip("/"), query.get("prefix", ""))
        if method == "POST" and "delete" in query:
            for key in re.findall(rb"<Key>([^<]*)</Key>", body):
                self.remove(os.path.join(PLACE, name.rstrip("/"), key.decode()))
            return 200, b"<DeleteResult></DeleteResult>"
        if method == "PUT":
            os.makedirs(os.path.dirname(place), exist_ok=True)
            draft = f"{place}.{threading.get_ident()}.draft"
            with open(draft, "wb") as file:
                file.write(body)
            with lock:
                if headers.get("If-None-Match") == "*" and os.path.exists(place):
                    os.remove(draft)
                    return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
                os.replace(draft, place)
            return 200, b""
        if method == "DELETE":
            self.remove(place)
            return 204, b""
        if not os.path.isfile(place):
            return 404, b"<Error><Code>NoSuchKey</Code></Error>"
        with open(place, "rb") as file:
            return 200, file.read()

    def remove(self, place):
        if os.path.exists(place):
            os.remove(place)

    def list(self, bucket, prefix):
        found = []
        for folder, _, files in os.walk(os.path.join(PLACE, bucket)):
            for file in files:
                place = os.path.join(folder, file)
                key = os.path.relpath(place, os.path.join(PLACE, bucket))
                if key.startswith(prefix) and not key.endswith(".draft"):
                    found.append((key, os.path.getsize(place)))
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;x&quot;</ETag><Size>{size}</Size></Contents>"
            for key, size in sorted(found)
        )
        return (f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>").encode()


class Upstream:
    def __init__(self):
        self.host = urllib.parse.urlsplit(PLACE).netloc

    def answer(self, method, target, headers, body):
        connection = http.client.HTTPConnection(self.host, timeout=30)
        connection.request(method, target, body or None, dict(headers.items()))
        answer = connection.getresponse()
        answered = answer.status, answer.read()
        connection.close()
        return answered


STORE = Upstream() if PLACE.startswith("http:") else Folder()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = draw()
        if fault == "die":
            os._exit(1)
        if fault == "close":
            self.close_connection = True
            return
        if fault in ("error", "slow down"):
            status, words = (500, b"<Error/>") if fault == "error" else (503, b"<Error><Code>SlowDown</Code></Error>")
            self.tell(status, words, len(words))
            return
        if fault == "stored wrong" and self.command == "PUT" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        status, answer = STORE.answer(self.command, self.path, self.headers, body)
        if fault == "late":
            time.sleep(LATE)
        if fault == "lost answer":
            self.close_connection = True
            return
        length = len(answer)
        if fault == "wrong byte" and answer:
            answer = answer[: length // 2] + bytes([answer[length // 2] ^ 1]) + answer[length // 2 + 1 :]
        if fault == "cut":
            self.close_connection = True
            answer = answer[: length // 2]
        self.tell(status, answer, length)

    def tell(self, status, answer, length):
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", '"x"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)
        except OSError:
            self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = serve


ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
