#!/usr/bin/env bash
# Counts system calls per job: those that a million more jobs make, over all threads of the process,
# so that the calls for opening and closing the queue cancel out. Needs strace.
#
#   benches/syscalls.sh [arguments of benches/steady, such as --burst 1 or --payload 1024]
set -euo pipefail
cd "$(dirname "$0")/.."

few=1000000
many=2000000

cargo build --quiet --locked --profile bench -p steady
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

# Prints the system calls that this many jobs make, and how often each is made, sorted by name.
count() {
    strace --follow-forks --summary-only --output "$scratch/summary" \
        "${CARGO_TARGET_DIR:-target}/release/steady" "$@"
    awk '$1 ~ /^[0-9.]+$/ && $NF != "total" { print $NF, $4 }' "$scratch/summary" | sort
}

count "$few" "$@" >"$scratch/few"
count "$many" "$@" >"$scratch/many"
join -a 1 -a 2 -e 0 -o 0,1.2,2.2 "$scratch/few" "$scratch/many" | awk -v few="$few" -v many="$many" '
    { before += $2; after += $3 }
    $2 != $3 { printf "%8d more of %s\n", $3 - $2, $1 }
    END {
        printf "%8d for %d jobs\n%8d for %d jobs\n", before, few, after, many
        printf "%.6f for each job more\n", (after - before) / (many - few)
    }'
