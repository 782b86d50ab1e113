"""A stand-in for `redis-server`: the commands that the driver and the fake LMCache server use, and failure on demand.

FAKE_LOG and FAKE_FAULTS are as in the fake worker; the place of this program's faults is `redis`.
"""

import os
import socketserver
import sys
import threading

FAULTS = {word.removesuffix("@redis") for word in os.environ.get("FAKE_FAULTS", "").split()}
OPTIONS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
PASSWORD = os.environ.get("FAKE_REDIS_PASSWORD")

lock = threading.Lock()
values = {}
servers = 0


def bulk(value):
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def array(entries):
    return b"*%d\r\n" % len(entries) + b"".join(entries)


def answer(words):
    global servers
    name = words[0].upper()
    if name == b"SET":
        values[words[1]] = words[2]
        return b"+OK\r\n"
    if name == b"GET":
        return bulk(values.get(words[1]))
    if name == b"EXISTS":
        return b":%d\r\n" % (words[1] in values)
    if name == b"STRLEN":
        return b":%d\r\n" % len(values.get(words[1], b""))
    if name == b"DEL":
        return b":%d\r\n" % sum(values.pop(word, None) is not None for word in words[1:])
    if name == b"DBSIZE":
        servers += 1  # the fake LMCache servers ask it once each
        if servers == 2 and "die" in FAULTS:
            os._exit(1)
        if servers == 2 and "vanish" in FAULTS:
            threading.Timer(0.5, os._exit, [1]).start()
        if servers == 2 and "forget" in FAULTS:
            values.clear()
        return b":%d\r\n" % len(values)
    if name == b"SCAN":
        suffix = words[words.index(b"MATCH") + 1].lstrip(b"*")
        return array([bulk(b"0"), array([bulk(key) for key in values if key.endswith(suffix)])])
    if name == b"INFO":
        return bulk(b"used_memory:1000\r\nmaxmemory:%s\r\n" % OPTIONS.get("--maxmemory", "0").encode())
    return b"+OK\r\n"


class Client(socketserver.StreamRequestHandler):
    def handle(self):
        known = PASSWORD is None
        while head := self.rfile.readline():
            words = []
            for _ in range(int(head[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2])
            if words[0].upper() == b"AUTH":
                known = words[-1] == PASSWORD.encode()
                self.wfile.write(b"+OK\r\n" if known else b"-WRONGPASS invalid username-password pair\r\n")
            elif not known:
                self.wfile.write(b"-NOAUTH Authentication required.\r\n")
            else:
                with lock:
                    reply = answer(words)
                self.wfile.write(reply)


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as log:
    if "variables" in FAULTS:
        log.write(f"variables of redis: {name_variables()}\n")
    log.write("start redis\n")
if "taken" in FAULTS and not os.path.exists(os.environ["FAKE_LOG"] + ".taken-redis"):
    open(os.environ["FAKE_LOG"] + ".taken-redis", "w").close()
    print("Could not create server TCP listening socket: bind: Address already in use", flush=True)
    sys.exit(1)
Listener((OPTIONS["--bind"], int(OPTIONS["--port"])), Client).serve_forever()
