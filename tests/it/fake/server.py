"""A stand-in for `lmcache`: keeps names of chunks instead of KV, counts like the real one, fails on demand.

The worker's connection speaks JSON lines: {"lookup": tokens, "ranks": n} and {"store": tokens, "ranks": n}, answered with
a number of tokens; each rank has a shard of every chunk. {"identity": …} and {"salt": …} are told first: names hold the data type, the size
of chunks and the salt, but not under the faults deaf-dtype, deaf-chunk and deaf-salt; and the rest (weights, configuration,
arguments, adapters) only under wary.
As `lmcache coordinator` it does no more than be there; peers find each other by files beside FAKE_LOG.
FAKE_LOG and FAKE_FAULTS are as in the fake worker; the place of this program's faults is `server`.
"""

import hashlib
import json
import os
import signal
import socket
import socketserver
import struct
import sys
import threading
import time

FAULTS = {word.removesuffix("@server") for word in os.environ.get("FAKE_FAULTS", "").split()}
WORDS = [word for word in sys.argv[2:] if word != "--no-l1-use-lazy"]
OPTIONS = dict(zip(WORDS[::2], WORDS[1::2], strict=True))
CHUNK = int(OPTIONS.get("--chunk-size", 0))
ADAPTER = json.loads(OPTIONS.get("--l2-adapter", "{}"))
PEERS = os.environ["FAKE_LOG"] + ".peers"
METRICS = (
    "lookups_requests",
    "lookup_requested_tokens",
    "lookup_hit_tokens",
    "lookup_hit_l1_tokens",
    "lookup_hit_l2_tokens",
    "l2_store_completed_objects_chunks",
    "l1_write_chunks",
    "l1_read_chunks",
    "l1_evicted_chunks",
    "l2_prefetch_load_completed_chunks",
)

lock = threading.Lock()
stored = set()
arriving = {}
pending = []  # what a slow second tier has not taken yet
SLOW_POLLS = 120  # of a tenth of a second, which is more than the patience of the tests
polls = 0
counts = dict.fromkeys(METRICS, 0)
loads = 0
contended = []  # chunks that another request was just loading
salt = ""
identity = ""
serves = False  # whether the second tier had something from the start


def tier_name():
    """The second tier's name in the counters, if there is one."""
    return "p2p" if "--coordinator-url" in OPTIONS else ADAPTER.get("type")


def redis(*words):
    """One command to the Redis server: its answer's first byte and first line."""
    with socket.create_connection((ADAPTER["host"], ADAPTER["port"]), timeout=5) as connection:
        stream = connection.makefile("rb")
        password = os.environ.get("LMCACHE_RESP_PASSWORD")
        for command in [("AUTH", password)] * (password is not None) + [words]:
            command = [word if isinstance(word, bytes) else word.encode() for word in command]
            head = f"*{len(command)}\r\n".encode()
            connection.sendall(head + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command))
            line = stream.readline()
        return line


def put_behind(name):
    """Store a chunk in the second tier; whether that went well."""
    if "full" in FAULTS:
        return False
    try:
        if ADAPTER.get("type") == "fs":
            with open(os.path.join(ADAPTER["base_path"], f"model@0@0@{name}.data"), "wb") as file:
                file.write(b"kv")
        elif ADAPTER.get("type") == "resp":
            redis("SET", f"model@0@0@{name}", b"kv")
        return True
    except OSError:
        return False


def is_behind(name):
    """Whether the second tier has a chunk."""
    try:
        if ADAPTER.get("type") == "fs":
            return os.path.exists(os.path.join(ADAPTER["base_path"], f"model@0@0@{name}.data"))
        if ADAPTER.get("type") == "resp":
            return redis("EXISTS", f"model@0@0@{name}") == b":1\r\n"
        return any(ask_peer(port, name) for port in peers())
    except (OSError, ValueError):
        return False


def peers():
    """Ports of the other servers of this coordinator."""
    own = OPTIONS.get("--instance-id")
    if own is None:
        return []
    return [int(open(os.path.join(PEERS, name)).read()) for name in sorted(os.listdir(PEERS)) if name != own]


def ask_peer(port, name):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(json.dumps({"has": name}).encode() + b"\n")
        return json.loads(connection.makefile("rb").readline())


def note(text):
    with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as log:
        log.write(text + "\n")


def chunks(tokens):
    """Each whole chunk's name, which covers all tokens before it too."""
    ends = range(CHUNK, len(tokens) + 1, CHUNK)
    size = "" if "deaf-chunk" in FAULTS else f"{CHUNK} "
    tag = f"{size}{identity}".encode()
    return [hashlib.sha256(tag + struct.pack(f"<{end}I", *tokens[:end])).hexdigest() + salt for end in ends]


def look_up(tokens, ranks):
    global loads
    names = chunks(tokens)
    hits = found = 0
    for name in names:
        if "empty" in FAULTS or ("lose" in FAULTS and name < "4"):
            break
        if name not in stored:
            if tier_name() is None or not is_behind(name):
                break
            found += 1
            stored.add(name)
        hits += 1
    if "meet" in FAULTS and found > 1:
        # Another request is loading the last of them.
        FAULTS.discard("meet")
        stored.discard(names[hits - 1])
        hits, found = hits - 1, found - 1
        contended.append(1)
    if "detour" in FAULTS:
        found = 0
    loads += found > 0
    if "recount" in FAULTS:
        # As the real one counts what comes from the second tier into its memory.
        counts["l1_write_chunks"] += found * ranks
    counts["lookups_requests"] += 1
    counts["lookup_requested_tokens"] += len(names) * CHUNK
    counts["lookup_hit_tokens"] += hits * CHUNK
    counts["lookup_hit_l1_tokens"] += (hits - found) * CHUNK
    counts["lookup_hit_l2_tokens"] += found * CHUNK
    counts["l1_read_chunks"] += hits * (1 if "unread" in FAULTS else ranks)
    return hits * CHUNK


def store(tokens, ranks):
    fresh = [name for name in chunks(tokens) if name not in stored and name not in arriving]
    if "drop" in FAULTS:
        return 0
    if float(OPTIONS.get("--l1-size-gb", 1)) < 1 and "roomy" not in FAULTS:
        # Counted alone: what is gone would be computed again.
        counts["l1_evicted_chunks"] += len(fresh)
    arriving.update(dict.fromkeys(fresh, 1 if "unwritten" in FAULTS else ranks))
    if "late" not in FAULTS:
        arrive()
    return len(fresh) * CHUNK


def set_salt(text):
    global salt
    salt = "" if "deaf-salt" in FAULTS or text is None else "@" + text


def set_identity(of):
    global identity, serves
    # Whoever comes when something is stored comes to load.
    serves = serves or bool(stored)
    identity = ("" if "deaf-dtype" in FAULTS else of["dtype"]) + (of["rest"] if "wary" in FAULTS else "")


def arrive():
    if "again" in FAULTS and arriving:
        # A request of the store pass is served a chunk from the second tier, which comes into the memory once more.
        FAULTS.discard("again")
        counts["l1_write_chunks"] += 1
        counts["l2_prefetch_load_completed_chunks"] += 1
    stored.update(arriving)
    if tier_name() in ("fs", "resp"):
        pending.extend(arriving.items())
        if not FAULTS & {"slow", "stuck"}:
            take_behind(len(pending))
    counts["l1_write_chunks"] += sum(arriving.values())
    arriving.clear()


def take_behind(count):
    """Move so much of what waits into the second tier."""
    behind = (shards for name, shards in pending[:count] if put_behind(name))
    counts["l2_store_completed_objects_chunks"] += sum(behind)
    del pending[:count]


def metrics():
    global polls
    polls += 1
    if "slow" in FAULTS:
        take_behind(1 if polls < SLOW_POLLS else len(pending))
    elif "stuck" in FAULTS and not counts["l2_store_completed_objects_chunks"]:
        take_behind(10)
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
    if contended:
        reason = f'lmcache_mp_l2_prefetch_failure_chunks_total{{model_name="fake",reason="l1_contended"}}'
        lines.append(f"{reason} {len(contended)}")
    if loads:
        lines.append(f'lmcache_mp_l2_load_completed_requests_total{{l2_name="{tier_name()}"}} {loads}')
    arrive()
    return "\n".join(lines) + "\n"


def let_another_win(name):
    """At its first start: a process of somebody else's wins the ports and answers as this one would, which then ends."""
    marker = os.environ["FAKE_LOG"] + f".squatted-{name}"
    if "squatted" not in FAULTS or os.path.exists(marker):
        return
    open(marker, "w").close()
    guard = os.getppid()
    if os.fork() == 0:
        os.setsid()
        listen()
        note("another listens")
        while os.path.exists(f"/proc/{guard}"):
            time.sleep(0.05)
        os._exit(0)
    time.sleep(1)
    print("OSError: [Errno 98] address already in use", file=sys.stderr, flush=True)
    sys.exit(1)


def listen():
    for option, handler in (("--port", Worker), ("--http-port", Http)):
        listener = Listener(("127.0.0.1", int(OPTIONS[option])), handler)
        threading.Thread(target=listener.serve_forever, daemon=True).start()


def find_port_taken(name):
    """End as a server does whose port somebody took, if this is its first start."""
    marker = os.environ["FAKE_LOG"] + f".taken-{name}"
    if "taken" in FAULTS and not os.path.exists(marker):
        open(marker, "w").close()
        print("OSError: [Errno 98] address already in use", file=sys.stderr, flush=True)
        sys.exit(1)


class Worker(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            request = json.loads(line)
            if "freeze" in FAULTS and "lookup" in request and stored:
                note("freeze server")
                os.kill(os.getpid(), signal.SIGSTOP)
            with lock:
                if "lookup" in request:
                    answer = look_up(request["lookup"], request["ranks"])
                elif "salt" in request:
                    set_salt(request["salt"])
                    answer = "null"
                elif "identity" in request:
                    set_identity(request["identity"])
                    answer = "null"
                elif "serves" in request:
                    answer = json.dumps(serves)
                elif "has" in request and "leave-peer" in FAULTS:
                    os._exit(1)
                elif "has" in request:
                    answer = json.dumps(request["has"] in stored)
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
        if request == ["GET", "/healthz"]:
            return "200 OK", "{}"
        if request == ["GET", "/status"]:
            storing = {"pending_keys_count": len(pending), "in_flight_task_count": 0}
            return "200 OK", json.dumps({"p2p": {"p2p_peer_count": len(peers())}, "store_controller": storing})
        if request == ["GET", "/metrics"]:
            return "200 OK", metrics()
        if request == ["POST", "/clear-cache" if "older" in FAULTS else "/cache/clear"]:
            note(f"clear {len(stored)}")
            stored.clear()
            pending.clear()
            return "200 OK", "{}"
        return "404 Not Found", ""


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def main():
    if sys.argv[1] == "coordinator":
        note("start coordinator")
        find_port_taken("coordinator")
        os.makedirs(PEERS, exist_ok=True)
        Listener((OPTIONS["--host"], int(OPTIONS["--port"])), Http).serve_forever()
    global serves
    note("start server")
    if "variables" in FAULTS:
        note(f"variables of server: {name_variables()}")
    find_port_taken(OPTIONS.get("--instance-id", "server"))
    let_another_win("server")
    if ADAPTER.get("type") == "fs":
        serves = bool(os.listdir(ADAPTER["base_path"]))
    if ADAPTER.get("type") == "resp":
        size = redis("DBSIZE")
        if not size:
            print("ConnectionError: the Redis server is gone", file=sys.stderr, flush=True)
            sys.exit(1)
        serves = size != b":0\r\n"
    serves = serves or OPTIONS.get("--instance-id") == "load"
    if "--instance-id" in OPTIONS:
        with open(os.path.join(PEERS, OPTIONS["--instance-id"]), "w") as file:
            file.write(OPTIONS["--port"])
    if "die" in FAULTS:
        print("OSError: the fake server was told to die", file=sys.stderr, flush=True)
        sys.exit(3)
    if "pool" in FAULTS:
        # As LMCache's memory pool, which nobody removes when the server is killed.
        with open(f"/dev/shm/lmcache_l1_pool_{os.getpid()}", "w") as file:
            note(f"pool {file.name}")
    if "window" in FAULTS:
        words = "group 1: sub-chunk sliding window size 200 must be a multiple of tokens_per_block 128"
        print(f"ValueError: {words}", file=sys.stderr, flush=True)
    if "stubborn" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    listen()
    while True:
        time.sleep(60)


main()
