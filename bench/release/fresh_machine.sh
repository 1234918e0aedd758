#!/usr/bin/env bash
# How long the README's two commands take on a machine that has Python and nothing of ours: HEAD is cloned into an empty folder, with
# an empty home, no packages but those that the commands install, and no pip cache.
#
#   bench/release/fresh_machine.sh                      or  PYTHON=python3.12 bench/release/fresh_machine.sh
set -euo pipefail
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)

# The system's Python: not the one of an environment that happens to be active, or of this checkout.
path=$(printf %s "$PATH" | tr : '\n' | grep -vxF -e "${VIRTUAL_ENV:-$repository/.venv}/bin" -e "$repository/.venv/bin" | paste -sd:)
python=$(PATH=$path command -v "${PYTHON:-python3}") || { echo "no ${PYTHON:-python3} found" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/home" "$folder/tmp"
git clone --quiet "$repository" "$folder/synthorax"
cd "$folder/synthorax"

# Only the machine's own way to its packages is passed on: proxies, certificates and pip's settings.
passed=()
while IFS= read -r name; do
  passed+=("$name=${!name}")
done < <(compgen -e | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA_BUNDLE$|LANG$|LC_|TERM$|([Hh][Tt][Tt][Pp][Ss]?|[Nn][Oo]|[Aa][Ll][Ll])_([Pp][Rr][Oo][Xx][Yy])$)' |
  grep -vxE 'PIP_(TARGET|PREFIX|USER|CACHE_DIR)')

status=0
summary=""
timed() {
  echo "== $*"
  local code=0 start=$SECONDS
  time env -i "${passed[@]}" PATH="$path" HOME="$folder/home" TMPDIR="$folder/tmp" PIP_NO_CACHE_DIR=1 PYTHONNOUSERSITE=1 "$python" "$@" || code=$?
  summary+=$(printf '%-24s exit code %d   %d min %02d s' "python3 $*" "$code" $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)))$'\n'
  [ "$code" = 0 ] || status=1
}

timed dev.py demo
[ -s demo/report.html ] || { echo "demo/report.html is missing" >&2; status=1; }
timed dev.py test

echo
echo "$("$python" --version), $(git rev-parse --short HEAD), $(getconf _NPROCESSORS_ONLN) cores"
printf '%s' "$summary"
printf '%-24s %s\n' ".venv" "$(du -sh .venv | cut -f1)" "  of which torch" "$(du -csh .venv/lib/*/site-packages/{torch,nvidia} 2>/dev/null | tail -1 | cut -f1)" "demo/" "$(du -sh demo | cut -f1)"
exit "$status"
