"""How long an atlas of 500 cells takes and costs on 1, 8 and 64 GPUs, with and without a depot.

A simulation: units are started in the order of the plan on whichever GPU is free next. What each stage takes was measured on an H100 with all
of MMLU and a 135M model (docs/evidence/h100.md, "warm"); what an artifact weighs, and how long it takes to come, see SECONDS_TO_BRING.
Prints the table of docs/fleet.md. Needs Python's standard library alone.
"""

import heapq
import itertools
import random

VLLMS, LMCACHES, MODELS, ROUTES = 5, 5, 5, 4
# Seconds of a GPU, measured: questions and prompts; baseline and control beside each other; store, load and comparison over a server
# (85.4) and in process (51.8 + 1.0). Three of four routes have a server.
PREPARE, ARMS, SERVER, IN_PROCESS = 5.3, 48.8, 85.4, 52.8
# A baseline and a control of 14042 questions, some 60 MB of JSON lines, at 100 MB/s, a few round trips, and digests. Assumed.
SECONDS_TO_BRING = 2.0
# Models differ: by what their stages take more than the measured one. Assumed, from 135M to about 8B parameters.
WEIGHT = [1, 2, 4, 8, 16]


def cells():
    """Each cell's vLLM and model, and what its own stage takes, in the order of a plan."""
    for vllm, model, lmcache, route in itertools.product(range(VLLMS), range(MODELS), range(LMCACHES), range(ROUTES)):
        own = IN_PROCESS if route == ROUTES - 1 else SERVER
        yield (vllm, model), WEIGHT[model], own, lmcache


def simulate(gpus, mode):
    """Seconds until the last unit ends, and GPU-seconds that were worked."""
    free = [(0.0, gpu) for gpu in range(gpus)]
    heapq.heapify(free)
    known, there, worked, end = {}, {gpu: set() for gpu in range(gpus)}, 0.0, 0.0
    units = []
    if mode == "depot, arms first":
        units = [
            ("arms", arms, weight, 0.0) for arms, weight in sorted({(arms, weight) for arms, weight, _, _ in cells()})
        ]
    units += [("cell", arms, weight, own * weight) for arms, weight, own, _ in cells()]
    if mode == "depot, in any order":
        random.Random(1).shuffle(units)
    for kind, arms, weight, own in units:
        start, gpu = heapq.heappop(free)
        if mode == "nothing kept":
            first = PREPARE + ARMS * weight
        elif mode == "a cache on each machine":
            first = 0.0 if arms in there[gpu] else PREPARE + ARMS * weight
            there[gpu].add(arms)
        elif mode == "depot, arms first" and kind == "cell":
            # Cells wait for the arms of their model alone.
            start = max(start, known[arms])
            first = SECONDS_TO_BRING
        elif known.get(arms, float("inf")) <= start:
            first = SECONDS_TO_BRING
        else:
            # Nobody has put them there yet: this one makes them, too, and nobody waits.
            first = PREPARE + ARMS * weight
            known[arms] = min(known.get(arms, float("inf")), start + first)
        took = first + own
        worked += took
        end = max(end, start + took)
        heapq.heappush(free, (start + took, gpu))
    return end, worked


def main():
    count = sum(1 for _ in cells())
    print(
        f"{count} cells: {VLLMS} vLLM × {LMCACHES} LMCache × {MODELS} models × {ROUTES} routes, {VLLMS * MODELS} pairs of arms\n"
    )
    print("| GPUs | what is kept | wall time, hours | GPU-hours | less GPU-hours than with nothing kept |")
    print("|---|---|---|---|---|")
    for gpus in (1, 8, 64):
        _, most = simulate(gpus, "nothing kept")
        for mode in ("nothing kept", "a cache on each machine", "depot, in any order", "depot, arms first"):
            wall, worked = simulate(gpus, mode)
            print(f"| {gpus} | {mode} | {wall / 3600:.2f} | {worked / 3600:.1f} | {100 * (1 - worked / most):.0f} % |")


if __name__ == "__main__":
    main()
