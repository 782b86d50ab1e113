//! What the help of commands says behind their options.

pub(super) const AFTER_HELP: &str = "\
Examples:
  kv-correctness run                                 the embedded suite on this machine
  kv-correctness run --suite mmlu --subjects 2       two subjects of MMLU on a GPU
  kv-correctness run --faults                        prove that the test sees faults
  kv-correctness report --format html                the last run as a page
  kv-correctness doctor                              what can run here, and what is missing

Exit codes: 0 equivalent, 1 degraded, 2 error (no verdict), 3 inconclusive, 4 not exercised, 5 insensitive";

pub(super) const BISECT_EXIT_CODES: &str = "\
Exit codes: 0 the first bad revision is named, 1 an end is not as it was said to be, 2 error, \
3 the range cannot be narrowed to one revision";
pub(super) const REPRODUCE_EXIT_CODES: &str = "\
Exit codes: 0 reproduced, 1 not reproduced, 2 error, 3 cannot be reproduced here";
pub(super) const RUN_EXAMPLES: &str = "\
Examples:
  kv-correctness run --subjects 1 --device cpu       the shortest whole run
  kv-correctness run --route mp,in-process           two routes against one baseline
  kv-correctness run --data mmlu.tar.xz --subjects 5 other questions, in MMLU's layout
  kv-correctness run --json > report.json            the report to a program

Writes report.json, report.html, junit.xml, summary.md, summary.txt and log.jsonl to --out.
Exit codes: 0 equivalent, 1 degraded, 2 error (no verdict), 3 inconclusive, 4 not exercised, 5 insensitive";

pub(super) const PLAN_EXAMPLES: &str = "\
Examples:
  kv-correctness plan --shards 8                     what there is to do, with keys, as JSON
  kv-correctness plan --shards 8 --format buildkite | buildkite-agent pipeline upload
  kv-correctness plan --format kubernetes --image registry/kv:1 --run-name nightly-7 | kubectl apply -f -

Starts nothing. Units pass artifacts and reports on through the depot: KV_CORRECTNESS_DEPOT must reach each.";
pub(super) const MERGE_EXAMPLES: &str = "\
Examples:
  kv-correctness run --shard 1/2 --out one           the same with 2/2 elsewhere, and then
  kv-correctness merge one two                       the report of the whole, and its exit code
  kv-correctness merge --depot s3://bucket/prefix --run-name nightly-7

Parts must be of one suite, on machines and in environments of one kind; the field that differs is named.";

pub(super) const REPORT_EXAMPLES: &str = "\
Examples:
  kv-correctness report                              the summary of the last run here
  kv-correctness report nightly --format html --out page.html
  kv-correctness report --format junit > junit.xml
  kv-correctness report --format lmcache-jsonl --out results    the files of LMCache's own summary scripts";

pub(super) const DOCTOR_EXIT_CODES: &str = "\
Exit codes: 0 the suite can run here on at least one of its routes (without --suite: some suite can), 2 it cannot";

pub(super) const ENV_EXAMPLES: &str = "\
Examples:
  kv-correctness env                                 what `run` would make here on first use
  kv-correctness env --device cuda                   for a GPU machine, as when an image is built on one without

Prints the environment's Python.";

pub(super) const SUITE_EXAMPLES: &str = "\
Examples:
  kv-correctness suite show canary > mine.toml       a suite of your own begins with one that works
  kv-correctness suite check mine.toml               its mistakes, with line and column; runs nothing";

pub(super) const GC_EXAMPLES: &str = "\
Examples:
  kv-correctness gc --dry-run                        what would go, and how much that is
  kv-correctness gc --unused-days 0                  everything that no run uses now

Leaves what `fetch` got, and environments that others name. Leftovers are stores of `--no-cache` and unfinished folders of runs that
ended early, embedded models, caches of engines, and shared memory of servers that were killed.";
