#!/usr/bin/env bash
# usage: install.sh PYTHON ARGUMENTS...   Installs with uv if possible, which is seven times as fast as pip.
set -euo pipefail
python=$1
shift
pip() { "$python" -m pip "$@" --quiet; }

# uv does not read pip's configuration, so its options are passed as environment variables.
option() { "$python" -m pip config list | sed -n "s/^.*\.$1='\(.*\)'$/\1/p" | tail -1 | sed 's/\\n/ /g'; }
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
