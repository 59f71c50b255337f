#!/usr/bin/env bash
# Counts instructions per job, by function and by source file: those that 100,000 more jobs take, in
# the thread that enqueues and takes them. Needs valgrind.
#
# Valgrind offers the program neither AVX-512 nor the vDSO. So where the processor has AVX-512 and
# VPCLMULQDQ, the checksum takes fewer instructions than shown here. And the clock is read by a
# system call, of which only the call itself is counted.
#
#   benches/instructions.sh [arguments of benches/steady, such as --burst 1 or --payload 1024]
set -euo pipefail
cd "$(dirname "$0")/.."

few=20000
many=120000

# Built with debug information, and with a rustix that does not look for the vDSO, which valgrind
# does not have.
cargo build --quiet --locked --profile bench -p steady --features rustix/use-libc-auxv
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT

# Prints the instructions that this many jobs take below a function of benches/steady, by source
# file and function, tab-separated and sorted.
count() {
    local function=$1
    shift
    valgrind --quiet --tool=callgrind --callgrind-out-file="$scratch/profile" \
        --toggle-collect="steady::$function" \
        "${CARGO_TARGET_DIR:-target}/release/steady" "$@"
    callgrind_annotate --threshold=100 --auto=no "$scratch/profile" | awk -v OFS='\t' '
        /^ *[0-9,]+ \(/ {
            count = $1
            gsub(",", "", count)
            sub(/^ *[0-9,]+ \([ 0-9.]+%\) */, "")
            sub(/ *\[[^]]*\] *$/, "")
            sum[$0] += count
        }
        END { for (place in sum) print place, sum[place] }' | LC_ALL=C sort -t $'\t' -k 1,1
}

for function in ${FUNCTIONS:-enqueue deliver_and_ack}; do
    count "$function" "$few" "$@" >"$scratch/few"
    count "$function" "$many" "$@" >"$scratch/many"
    echo "$function, for each job:"
    LC_ALL=C join -t $'\t' -a 2 -e 0 -o 0,1.2,2.2 "$scratch/few" "$scratch/many" |
        awk -F '\t' -v OFS='\t' -v more=$((many - few)) '
            {
                each = ($3 - $2) / more
                if ($1 == "PROGRAM TOTALS") {
                    sum["all" OFS "instructions"] = each
                    next
                }
                file = name = $1
                sub(/:.*/, "", file)
                sub(/^.*\/registry\/src\/[^\/]*\//, "", file)
                sub(/^\/rustc\/[0-9a-f]*\//, "", file)
                sub(/^[^:]*:/, "", name)
                sum["function" OFS name] += each
                sum["source" OFS file] += each
            }
            END {
                for (place in sum)
                    if (sum[place] >= 0.5) {
                        split(place, part, OFS)
                        printf "%s\t%8.1f\t%s\n", part[1], sum[place], part[2]
                    }
            }' | LC_ALL=C sort -t $'\t' -k 1,1 -k 2,2nr
done
