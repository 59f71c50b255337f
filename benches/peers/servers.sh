#!/usr/bin/env bash
# Installs the servers that logmill is compared with (Debian). The benchmark starts its own
# instances.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v beanstalkd >/dev/null || missing+=(beanstalkd)
if ((${#missing[@]} == 0)); then
    echo "redis-server and beanstalkd are installed"
    exit
fi

sudo=()
((EUID == 0)) || sudo=(sudo)
"${sudo[@]}" apt-get update
"${sudo[@]}" apt-get install -y --no-install-recommends "${missing[@]}"
