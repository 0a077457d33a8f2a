#!/usr/bin/env bash
# Install packages with uv if possible, which is seven times as fast as pip, or else with pip.
# usage: install.sh PYTHON ARGUMENTS...   ARGUMENTS are those of `pip install`.
set -euo pipefail
python=$1
shift
pip() { "$python" -m pip "$@" --quiet; }

# option NAME   Prints the value of an option in pip's configuration. A list becomes words on one line.
option() {
  "$python" -m pip config list |
    sed -n "s/^.*\.$1='\(.*\)'$/\1/p" | # lines such as global.cert='/path'
    tail -1 |
    sed 's/\\n/ /g'
}

# pass VARIABLE NAME   uv does not read pip's configuration, so it receives an option as an environment variable.
pass() {
  value=$(option "$2")
  [ -z "$value" ] || export "$1=$value"
}

if command -v uv >/dev/null || pip install uv; then
  uv=$(command -v uv || echo "$(dirname "$python")/uv")
  pass UV_DEFAULT_INDEX index-url
  pass UV_INDEX extra-index-url
  pass UV_FIND_LINKS find-links
  pass UV_CONSTRAINT constraint
  pass SSL_CERT_FILE cert
  export UV_INDEX_STRATEGY=unsafe-best-match # as pip does
  exec "$uv" pip install --quiet --python "$python" "$@"
fi
pip install --upgrade pip # versions before 25.1 do not support dependency groups
pip install "$@"
