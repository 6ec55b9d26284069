#!/usr/bin/env bash
# The Hub server of the tests, asked by the Python clients of the Hub, so that it does not mirror our own mistakes. Needs the
# package registry. Environments are made below the folder named first (default: target/live) and kept. SERVER is the program.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
SERVER=${SERVER:+$(realpath "$SERVER")}
mkdir -p "${1:-$root/target/live}"
cd "${1:-$root/target/live}"
if [ -z "$SERVER" ]; then
  cargo build --manifest-path "$root/Cargo.toml" --package hub-server
  SERVER=$root/target/debug/hub-server
fi
work=$(mktemp -d)
server=
stop() { [ -z "$server" ] || kill "$server"; }
trap 'stop; rm -r "$work"' EXIT
number=0

check() { # version of huggingface_hub, HF_HUB_DISABLE_XET, options of the server
  local python=hub-$1/bin/python version=$1 disabled=$2
  shift 2
  if [ ! -e "hub-$version/.ready" ]; then
    python3 -m venv "hub-$version"
    "hub-$version/bin/pip" install --quiet "huggingface_hub==$version" hf_xet
    touch "hub-$version/.ready"
  fi
  number=$((number + 1))
  mkdir "$work/gated-$number"
  echo '{}' >"$work/gated-$number/config.json"
  : >"$work/told-$number"
  "$SERVER" --put "org/gated=$work/gated-$number" --gated org/gated "$@" >"$work/told-$number" &
  server=$!
  until [ "$(wc -l <"$work/told-$number")" -ge 2 ]; do
    kill -0 "$server"
    sleep 0.1
  done
  echo "$*"
  HF_ENDPOINT=$(sed -n 1p "$work/told-$number") HF_TOKEN=$(sed -n 2p "$work/told-$number") HF_HOME=$work/home-$number \
    HF_HUB_DISABLE_XET=$disabled HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1 TMPDIR=$work "$python" "$here/hub.py"
  stop
  wait "$server" 2>/dev/null || true
  server=
}

for version in 0.36.2 1.33.0 2.4.0; do
  check "$version" 1 --transfers basic
  check "$version" 1 --transfers multipart --page-size 2
  check "$version" 1 --resolve-cache --data "$work/lfs-$version"
  check "$version" 0 --transfers basic,multipart,xet
  check "$version" 0 --transfers xet --resolve-cache --data "$work/xet-$version"
done
