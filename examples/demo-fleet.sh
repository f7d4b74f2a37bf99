#!/usr/bin/env bash
# A server and four devices as processes of this machine, with TLS and a key for each device:
# one subject of the watch dataset on each, trained together, exported, then all stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

home=$(mktemp -d)
address="127.0.0.1:$(python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')"
started=()

stop() {
  local ended=0
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" || ended=$?; done
  rm -rf "$home"
  echo "server and devices are stopped"
}
trap stop EXIT

access=(--server "$address" --credentials "$home/server")

wildflower server init --state "$home/server" --name localhost
for device in 1 2 3 4; do
  wildflower server add-client "device-$device" --state "$home/server" --hosts "$device" --out "$home/device-$device"
done

wildflower server start --state "$home/server" --host 127.0.0.1 --port "${address##*:}" &
started+=($!)
for _ in {1..60}; do
  wildflower status "${access[@]}" > /dev/null 2>&1 && break
  sleep 0.5
done
for device in 1 2 3 4; do
  wildflower client --server "$address" --credentials "$home/device-$device" \
    --data watch --client-id "$device" --state "$home/device-$device/state" &
  started+=($!)
done

wildflower submit examples/watch-lstm-fleet.toml "${access[@]}" --follow
