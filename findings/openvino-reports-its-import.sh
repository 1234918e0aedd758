#!/usr/bin/env bash
# Importing OpenVINO prepares to report to its makers that it was imported, without a question.
#
# Packages: openvino 2026.4.1, openvino-telemetry 2025.2.0
# Expected: A library that runs networks on one's own machine tells nobody; one that does asks first.
# Seen: `import openvino` makes a random identity of this user, in ~/intel/openvino_ga_cid, and sends an event with it to Google Analytics,
#   unless somebody has run `opt_in_out --opt_out` before, or one of the variables of build servers is set. `convert_model` sends more.
#   Where the package openvino-telemetry cannot be imported, all else works and nothing is sent.
# Why it matters: Hospitals ask which programs open connections. Synthorax hides that package while it imports OpenVINO; others should too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
mkdir home hidden
here() { env -i PATH="$PATH" HOME="$work/$1" https_proxy=http://127.0.0.1:9 venv/bin/python -c "$2"; }  # the proxy lets nothing out
here home "import openvino"
here hidden "import sys; sys.modules['openvino_telemetry'] = None; import openvino; openvino.convert_model; openvino.Core()"
echo "after import openvino: $(ls home/intel 2>/dev/null | tr '\n' ' '); with openvino-telemetry hidden: '$(ls hidden)'"
test -s home/intel/openvino_ga_cid
test ! -e hidden/intel
