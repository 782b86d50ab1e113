"""A stand-in for `lmcache server`: keeps names of chunks instead of KV, counts like the real one, fails on demand.

The worker's connection speaks JSON lines: {"lookup": tokens, "ranks": n} and {"store": tokens, "ranks": n}, answered with
a number of tokens; each rank has a shard of every chunk.
FAKE_LOG and FAKE_FAULTS are as in the fake worker; the place of this program's faults is `server`.
"""

import hashlib
import json
import os
import signal
import socketserver
import struct
import sys
import threading
import time

FAULTS = {word.removesuffix("@server") for word in os.environ.get("FAKE_FAULTS", "").split()}
OPTIONS = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=True))
CHUNK = int(OPTIONS["--chunk-size"])
METRICS = (
    "lookups_requests",
    "lookup_requested_tokens",
    "lookup_hit_tokens",
    "lookup_hit_l1_tokens",
    "l1_write_chunks",
    "l1_read_chunks",
)

lock = threading.Lock()
stored = set()
arriving = {}
counts = dict.fromkeys(METRICS, 0)


def note(text):
    with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as log:
        log.write(text + "\n")


def chunks(tokens):
    """Each whole chunk's name, which covers all tokens before it too."""
    ends = range(CHUNK, len(tokens) + 1, CHUNK)
    return [hashlib.sha256(struct.pack(f"<{end}I", *tokens[:end])).hexdigest() for end in ends]


def look_up(tokens, ranks):
    names = chunks(tokens)
    hits = 0
    for name in names:
        if name not in stored or "empty" in FAULTS or ("lose" in FAULTS and name < "4"):
            break
        hits += 1
    counts["lookups_requests"] += 1
    counts["lookup_requested_tokens"] += len(names) * CHUNK
    counts["lookup_hit_tokens"] += hits * CHUNK
    counts["lookup_hit_l1_tokens"] += hits * CHUNK
    counts["l1_read_chunks"] += hits * (1 if "unread" in FAULTS else ranks)
    return hits * CHUNK


def store(tokens, ranks):
    fresh = [name for name in chunks(tokens) if name not in stored and name not in arriving]
    if "drop" in FAULTS:
        return 0
    arriving.update(dict.fromkeys(fresh, 1 if "unwritten" in FAULTS else ranks))
    if "late" not in FAULTS:
        arrive()
    return len(fresh) * CHUNK


def arrive():
    stored.update(arriving)
    counts["l1_write_chunks"] += sum(arriving.values())
    arriving.clear()


def metrics():
    if "leave" in FAULTS and stored:
        print("RuntimeError: the fake server was told to leave", file=sys.stderr, flush=True)
        os._exit(1)
    lines = []
    for name, value in counts.items():
        if "lie" in FAULTS and name == "lookup_hit_tokens" and value:
            value += CHUNK
        lines.append(f"# TYPE lmcache_mp_{name}_total counter")
        shown = "NaN" if "garbled" in FAULTS else f"{float(value)}"
        lines.append(f'lmcache_mp_{name}_total{{model_name="fake"}} {shown}')
    arrive()
    return "\n".join(lines) + "\n"


class Worker(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            request = json.loads(line)
            with lock:
                if "lookup" in request:
                    answer = look_up(request["lookup"], request["ranks"])
                else:
                    answer = store(request["store"], request["ranks"])
            self.wfile.write(f"{answer}\n".encode())


class Http(socketserver.StreamRequestHandler):
    def handle(self):
        request = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        with lock:
            status, text = self.answer(request[:2])
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
        self.wfile.write((head + text).encode())

    def answer(self, request):
        if request == ["GET", "/healthcheck"]:
            return ("503 Service Unavailable" if "unhealthy" in FAULTS else "200 OK"), "{}"
        if request == ["GET", "/metrics"]:
            return "200 OK", metrics()
        if request == ["POST", "/cache/clear"]:
            note(f"clear {len(stored)}")
            stored.clear()
            return "200 OK", "{}"
        return "404 Not Found", ""


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def main():
    note("start server")
    if "die" in FAULTS:
        print("OSError: the fake server was told to die", file=sys.stderr, flush=True)
        sys.exit(3)
    if "stubborn" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for option, handler in (("--port", Worker), ("--http-port", Http)):
        listener = Listener(("127.0.0.1", int(OPTIONS[option])), handler)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
    while True:
        time.sleep(60)


main()
