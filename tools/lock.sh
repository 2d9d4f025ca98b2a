#!/usr/bin/env bash
# Regenerates requirements.txt (what the library and `make demo` run on) and
# requirements-dev.txt (the same plus tests, linters and notebooks) from the ranges in
# setup.cfg, and from the extras docs and browser what `make docs` and `make browser` add
# (requirements-docs.txt, requirements-browser.txt).  One file serves every supported Python:
# environment markers pick the newest JAX that each can install.  TensorFlow stays out: see
# tool.uv in pyproject.toml.
#
#   tools/lock.sh            keep the pinned versions, add or drop what setup.cfg changed
#   tools/lock.sh --upgrade  move everything to the newest versions
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
"$python" -m pip install --quiet "uv>=0.9"
compile() {
  "$python" -m uv pip compile setup.cfg --universal --python-version 3.11 --quiet \
    --no-emit-package setuptools --extra neural-tangents --extra zoo \
    --custom-compile-command "tools/lock.sh" "$@"
}
compile --output-file requirements.txt ${1:+"$1"}
compile --extra dev --constraint requirements.txt --output-file requirements-dev.txt ${1:+"$1"}
for extra in docs browser; do
  "$python" - "$extra" <<'PYTHON' |
import configparser, sys
setup = configparser.ConfigParser()
setup.read("setup.cfg")
print(setup["options.extras_require"][sys.argv[1]])
PYTHON
    "$python" -m uv pip compile - --universal --python-version 3.11 --quiet \
      --custom-compile-command "tools/lock.sh" --constraint requirements-dev.txt \
      --output-file "requirements-$extra.txt" ${1:+"$1"}
done
