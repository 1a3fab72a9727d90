#!/bin/sh
# Runs a command where the loopback takes no more than RATE (of `tc`: 100mbit, 1gbit; both directions together).
# Needs root: it makes a network namespace, and removes it at the end.
#
#     benches/capped.sh 1gbit target/release/scenarios idle-text-2g --memory 512 --channels 2 --no-qemu
set -eu
rate=$1
shift
namespace=limosa-capped-$$
ip netns add "$namespace"
trap 'ip netns delete "$namespace"' EXIT
ip -n "$namespace" link set lo up
# A burst must hold the largest segment that the loopback passes at once, 64 KiB; at 10 Gbit/s 256 KiB last 0.2 ms.
# What waits for its turn is limited by the buffers of the sockets, not here: nothing is ever dropped.
tc -n "$namespace" qdisc add dev lo root tbf rate "$rate" burst 256k limit 256m
ip netns exec "$namespace" "$@"
