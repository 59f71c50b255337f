#!/usr/bin/env bash
# Installs the job systems of the scenario `jobs` in pinned versions, below this directory. One that
# cannot be installed is left out with a message, and so is its row in the report.
set -uo pipefail
cd "$(dirname "$0")"

missing=0
step() {
    local what=$1
    shift
    if "$@"; then
        echo "$what: installed"
    else
        echo "$what: not installed" >&2
        missing=1
    fi
}

bullmq() {
    command -v npm >/dev/null || { echo "needs Node.js and npm" >&2; return 1; }
    npm --prefix bullmq ci --no-audit --no-fund --ignore-scripts
}

python() {
    # Cleared: an environment of another Python would be mixed with this one's.
    python3 -m venv --clear .venv || { echo "needs python3 with venv (python3-venv)" >&2; return 1; }
    .venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements.txt
}

apalis() {
    cargo build --release --locked --manifest-path apalis/Cargo.toml --target-dir apalis/target
}

step "BullMQ" bullmq
step "RQ and Celery" python
step "apalis-sqlite" apalis
command -v redis-server >/dev/null || echo "no Redis: run benches/peers/servers.sh" >&2
exit "$missing"
